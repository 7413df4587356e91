"""Data sets that do not fit into the job's memory give the same batches as in memory, and are read as needed."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from pared.compression.data import decoding, inspect_dataset
from pared.compression.data.columns import StoredColumn, token_range
from pared.compression.data.room import room_for
from pared.compression.data.zip_members import Zip
from pared.compression.work import DatasetFile
from pared.errors import InvalidData, ParedError
from pared.specs import Preprocess
from tests.unit.compression.test_data import RNG, dataset, image, load, npz, zipped
from tests.unit.compression.test_data_forms import forms, pairs

__all__ = ["dataset"]

Y = np.arange(120) % 4
SCALED = Preprocess(scale=0.5, mean=[1.0], std=[3.0])


def compressed(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def noise(index: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    shape = (6, 7, 3) if mode == "RGB" else (6, 7)
    Image.fromarray(np.random.default_rng(index).integers(0, 255, shape, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def numbers(dtype) -> np.ndarray:
    return (RNG.normal(size=(120, 3, 4)) * 50).astype(dtype)


FILES = {
    "npz": (lambda: npz(x=numbers(np.float32), y=Y), SCALED),
    "npz, unscaled": (lambda: npz(x=numbers(np.float32), y=Y), None),
    "npz of halves": (lambda: npz(x=numbers(np.float16), y=Y), SCALED),
    "npz of doubles": (lambda: npz(x=numbers(np.float64), y=Y), SCALED),
    "npz, big-endian": (lambda: npz(x=numbers(">f4"), y=Y), None),
    "npz of bytes": (lambda: npz(x=numbers(np.uint8), y=Y), SCALED),
    "npz of token ids": (lambda: npz(x=RNG.integers(0, 99, (120, 5)), y=Y), None),
    "npz of two inputs": (lambda: npz(x0=numbers(np.float32), x1=np.arange(120.0), y=Y), SCALED),
    "npz with splits": (
        lambda: npz(x=numbers("f4"), y=Y, x_test=numbers("f4"), y_test=Y), SCALED),
    "compressed npz": (lambda: compressed(x=numbers(np.float32), y=Y), SCALED),
    "safetensors": (lambda: safetensors_bytes({"x": torch.randn(120, 3, 4), "y": torch.from_numpy(Y)}), SCALED),
    "safetensors of bfloat16": (
        lambda: safetensors_bytes({"x": torch.randn(120, 3).bfloat16(), "y": torch.from_numpy(Y)}), None),
    "images": (lambda: zipped({f"{c}/{i}.png": noise(i) for c in "ab" for i in range(30)}), SCALED),
    "grey images": (lambda: zipped({f"{c}/{i}.png": noise(i, "L") for c in "ab" for i in range(30)}), None),
}  # fmt: skip


def batches(data, split="train", seed: int | None = 3) -> list[Tensor]:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return [tensor for inputs, targets in data.batches(split, 16, generator) for tensor in (*inputs, targets)]


@pytest.mark.parametrize("form", FILES)
def test_batches_are_the_same_bits_as_in_memory(form, dataset):
    make, preprocess = FILES[form]
    file = dataset(make())
    held, read = load(file, preprocess=preprocess), load(replace(file, memory_bytes=4096), preprocess=preprocess)
    assert all(isinstance(column, Tensor) for column in held.inputs["train"])
    assert all(isinstance(column, StoredColumn) for column in read.inputs["train"])
    for split in ("train", "val", "test"):
        for seed in (3, None, 3):  # decoded images lie there from the first pass on
            for one, other in zip(batches(held, split, seed), batches(read, split, seed), strict=True):
                assert torch.equal(one, other)
                assert one.dtype == other.dtype
    assert torch.equal(held.example()[0], read.example()[0])


@pytest.mark.parametrize("form", FILES)
def test_some_samples_are_the_same_bits_from_memory_and_from_the_file(form, dataset):
    make, preprocess = FILES[form]
    file = replace(dataset(make()), most=7)
    held, read = load(file, preprocess=preprocess), load(replace(file, memory_bytes=4096), preprocess=preprocess)
    for split in ("train", "val", "test"):
        assert held.samples(split) == read.samples(split) == 7
        for one, other in zip(batches(held, split, None), batches(read, split, None), strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype


def test_masks_are_the_same_bits_as_in_memory(dataset):
    file = dataset(zipped(pairs(count=60)))
    held, read = forms(file), forms(replace(file, memory_bytes=4096))
    assert isinstance(read.targets["train"], StoredColumn)
    assert all(torch.equal(one, other) for one, other in zip(batches(held), batches(read), strict=True))


def test_bad_numbers_are_found_wherever_they_lie(dataset, monkeypatch):
    monkeypatch.setattr("pared.compression.data.columns.CHUNK_BYTES", 64)
    x = numbers(np.float32)
    x[77, 2, 1] = x[110, 0, 0] = np.nan
    with pytest.raises(InvalidData, match=r"x, train has 2 entries .* the first is nan at \[77, 2, 1\]"):
        load(dataset(npz(x=x, y=Y)))


def test_token_ids_are_ranged_chunk_by_chunk(dataset, monkeypatch):
    monkeypatch.setattr("pared.compression.data.columns.CHUNK_BYTES", 64)
    x = RNG.integers(10, 20, (120, 5))
    x[33, 4], x[90, 1] = 3, 77
    column = load(replace(dataset(npz(x=x, y=Y)), memory_bytes=64)).inputs["train"][0]
    found = token_range(column)
    assert (found.low, found.high) == (int(column.held().min()), int(column.held().max()))
    assert int(column.held()[found.high_row].max()) == found.high
    assert int(column.held()[found.low_row].min()) == found.low


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def test_what_was_read_does_not_stay_resident(tmp_path):
    rows = 400  # of 1 MiB
    path = tmp_path / "large.npz"
    with path.open("wb") as file:
        np.savez(file, x=np.broadcast_to(np.ones(1, np.float32), (rows, 1 << 18)), y=np.arange(rows) % 4)
    before, most = resident_mib(), 0.0
    data = load(DatasetFile(path, path.name, memory_bytes=64 << 20))
    for _ in data.batches("train", 8):
        most = max(most, resident_mib())
    assert most - before < 250


def mapped_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssFile:")[2].split()[0]) / 1024


def test_looking_at_each_member_of_a_zip_does_not_leave_it_resident(tmp_path):
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(3000):
            archive.writestr(f"{index}.png", bytes(30_000))
    before = mapped_mib()
    opened = Zip(path)
    assert len(opened.members) == 3000
    assert mapped_mib() - before < 60  # of 86


def test_damaged_members_are_found_though_they_are_not_loaded(dataset):
    content = bytearray(npz(x=numbers(np.float32), y=Y))
    content[400] ^= 1
    with pytest.raises(ParedError, match="does not unpack to what was packed"):
        load(dataset(bytes(content)))


def test_half_an_image_is_named_when_it_is_needed(dataset):
    entries = {f"{c}/{i}.png": noise(i) for c in "ab" for i in range(30)}
    entries["b/7.png"] = entries["b/7.png"][:90]
    file = dataset(zipped(entries))
    with pytest.raises(InvalidData, match=r"b/7\.png"):
        load(file)
    data = load(replace(file, memory_bytes=4096))
    with pytest.raises(InvalidData, match=r"b/7\.png does not decode"):
        [batches(data, split) for split in ("train", "val", "test")]
    with pytest.raises(InvalidData, match=r"b/7\.png"):
        inspect_dataset(replace(file, memory_bytes=4096))


def test_decoded_images_are_kept_as_far_as_the_room_goes(dataset, monkeypatch):
    file = replace(dataset(zipped({f"{c}/{i}.png": noise(i) for c in "ab" for i in range(30)})), memory_bytes=1000)
    room = room_for(file)
    assert room.unpacked // (3 * 6 * 7) < 60
    opened = []
    plain = decoding.opened
    monkeypatch.setattr(
        decoding, "opened", lambda archive, member, **how: opened.append(member) or plain(archive, member)
    )
    data = load(file)
    first = [batches(data, split) for split in ("train", "val", "test")]
    assert len(opened) == 60
    again = [batches(data, split) for split in ("train", "val", "test")]
    assert len(opened) == 60 + 60 - room.unpacked // (3 * 6 * 7)
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_unpacks_to_more_than_the_disk_may_take_is_refused(dataset):
    file = dataset(compressed(x=np.zeros((1000, 500), np.float32), y=np.arange(1000) % 4))
    with pytest.raises(InvalidData, match=r"np.savez instead of np.savez_compressed"):
        load(replace(file, memory_bytes=1 << 16))
    assert load(replace(file, memory_bytes=1 << 20)).samples("train") == 700


def test_large_arrays_stored_by_column_are_refused_with_advice(dataset):
    file = dataset(npz(x=np.asfortranarray(numbers(np.float32)), y=Y))
    assert load(file).samples("train") == 84
    with pytest.raises(InvalidData, match=r"numpy.ascontiguousarray\(x\)"):
        load(replace(file, memory_bytes=4096))


def test_an_image_that_unpacks_to_too_much_is_refused(dataset, monkeypatch):
    monkeypatch.setattr("pared.compression.data.images.MAX_FILE_BYTES", 50)
    with pytest.raises(InvalidData, match=r"a/1.png unpacks to [\d,]+ bytes: too many for an image"):
        load(dataset(zipped({"a/1.png": image(), "b/1.png": image()})))
