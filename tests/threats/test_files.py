"""Hostile model files as the child meets them: refused by what they say before torch reads them, and nothing runs."""

from __future__ import annotations

import builtins
import collections
import functools
import io
import json
import os
import pathlib
import pickle
import random
import shutil
import struct
import subprocess
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from pared.compression.data import inspect_dataset
from pared.compression.loading import load_model
from pared.compression.work import DatasetFile, ModelFile
from pared.errors import ParedError, UnsupportedModel
from tests.support.campaign import counted
from tests.support.files.onnx import like_sklearn
from tests.support.mutants import mutant

ARCHITECTURE = {"layers": [["Linear", {"in_features": 3, "out_features": 2}, "fc"]]}


def load(folder: Path, content: bytes, name: str = "model.bin") -> None:
    path = folder / name
    path.write_bytes(content)
    load_model(ModelFile(path, name, "0" * 64, ARCHITECTURE))


def saved(value: Any, *, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


@functools.cache
def program() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), buffer)
    return buffer.getvalue()


def entries_of(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def zipped(entries: Any, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of names and contents; names may come twice."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, content, method)
    return buffer.getvalue()


# -- bombs --------------------------------------------------------------------------------------


def with_entry(name: str, content: bytes = b"x", method: int = zipfile.ZIP_STORED) -> bytes:
    """The program with one more entry."""
    buffer = io.BytesIO(zipped(entries_of(program())))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, content, method)
    return buffer.getvalue()


def one_content_many_times() -> bytes:
    """Every entry of the directory is at the same place, as in a bomb of overlapping files."""
    content = zipped({f"archive/code/{i:03}.py": bytes(1 << 16) for i in range(200)})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        first, *_ = archive.infolist()
    changed = bytearray(content)
    at = content.index(b"PK\x01\x02")
    while (at := content.find(b"PK\x01\x02", at)) >= 0:
        changed[at + 42 : at + 46] = struct.pack("<L", first.header_offset)
        at += 4
    return bytes(changed)


def with_sizes(packed: int, unpacked: int, *, local: bool) -> bytes:
    """The sizes of one entry are others, in its own header or in the directory."""
    content = bytearray(zipped(entries_of(program())))
    at = content.index(b"PK\x03\x04" if local else b"PK\x01\x02") + (18 if local else 20)
    content[at : at + 8] = struct.pack("<LL", packed, unpacked)
    return bytes(content)


def with_count(count: int) -> bytes:
    content = bytearray(program())
    at = content.rindex(b"PK\x05\x06")
    content[at + 8 : at + 12] = struct.pack("<HH", count, count)
    return bytes(content)


END = b"PK\x05\x06" + bytes(18)
"""The last record of an archive of nothing."""
ZEROS = bytes(64 << 20)
BOMBS: dict[str, Callable[[], bytes]] = {
    "all deflated": lambda: zipped(entries_of(program()), zipfile.ZIP_DEFLATED),
    "a name that leads out": lambda: with_entry("archive/../../evil"),
    "a directory of a larger size": lambda: with_sizes(8, 1 << 31, local=False),
    "a directory of other entries": lambda: with_count(0xFFFE),
    "a header of a larger size": lambda: with_sizes(1 << 30, 1 << 30, local=True),
    "entries that overlap": one_content_many_times,
    "a name twice": lambda: zipped([*entries_of(program()).items()] * 2),
    "weights deflated": lambda: with_entry("archive/data/9", ZEROS, zipfile.ZIP_DEFLATED),
    "bzip2": lambda: with_entry("archive/data/9", ZEROS, zipfile.ZIP_BZIP2),
    "lzma": lambda: with_entry("archive/data/9", ZEROS, zipfile.ZIP_LZMA),
    "300 MiB of code": lambda: with_entry("archive/code/bomb.py", bytes(300 << 20), zipfile.ZIP_DEFLATED),
    "a folder of weights that are zeros": lambda: zipped(
        {"config.json": b"{}", "model.safetensors": safetensors_bytes({"w": torch.zeros(1 << 24)})},
        zipfile.ZIP_DEFLATED,
    ),
}


@counted(4, 12)
def test_bombs_are_refused_before_torch_opens_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    opened = []
    for owner, name in ((torch, "load"), (torch.jit, "load"), (torch._C, "PyTorchFileReader")):
        monkeypatch.setattr(owner, name, lambda *a, name=name, **k: opened.append(name))
    longest = 0
    for bomb in list(BOMBS)[:count]:
        content = BOMBS[bomb]()
        longest = max(longest, len(content))
        with pytest.raises(UnsupportedModel):
            load(tmp_path, content)
        assert opened == [], bomb
    print(f"\n{count} bombs of up to {longest:,} bytes, each refused before torch opened it")


def test_an_archive_behind_an_onnx_model_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was recognised by its first bytes, so that no directory was checked."""
    for behind in (zipped({"m.onnx": bytes(1 << 20)}, zipfile.ZIP_DEFLATED), b"PK\x06\x07" + bytes(8) * 2 + END):
        opened = []
        monkeypatch.setattr(zipfile.ZipFile, "open", lambda *a, opened=opened, **k: opened.append(a))
        with pytest.raises(UnsupportedModel):
            load(tmp_path, like_sklearn().SerializeToString() + behind)
        assert opened == []


# -- tensors that claim more than they have -----------------------------------------------------

LARGE = [
    torch.ones(1).expand(shape)
    for shape in [(10**9,), (10**13,), (10**5, 10**5), (3, 10**9), (10**4, 10**4, 3, 3), (1000,) * 4, (2**40, 1)]
] + [
    torch.ones(100).as_strided((10**8, 100), (0, 1)),
    torch.ones(1000).as_strided((500, 10**7, 500), (1, 0, 1)),
    torch.ones(7, 1).expand(7, 10**10),
]
FORMS = ("zip", "old", "torchscript")


class Holds(nn.Module):
    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("big", tensor)

    def forward(self, x):
        return x


def holding(tensor: torch.Tensor, form: str) -> bytes:
    if form == "torchscript":
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(Holds(tensor)), buffer)
        return buffer.getvalue()
    return saved({"fc.weight": tensor}, old=form == "old")


@counted(3, 10)
def test_tensors_of_more_elements_than_the_file_has_are_refused(tmp_path: Path, count: int) -> None:
    for number, tensor in enumerate(LARGE[:count]):
        for form in (
            ("zip", "old", "torchscript") if count == len(LARGE) else ("zip", "old", "torchscript")[number:][:1]
        ):
            content = holding(tensor, form)
            assert len(content) < 20_000
            with pytest.raises(UnsupportedModel, match="claims"):
                load(tmp_path, content)
    print(f"\n{count} shapes of up to {max(t.numel() for t in LARGE[:count]):,} elements, in each form refused")


# -- pickles ------------------------------------------------------------------------------------


class Does:
    """A pickle of it calls the function when it is opened."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def deeds(marker: Path) -> Iterator[Any]:
    """Ten ways to leave a file, of which some begin with what torch itself allows."""
    touch = f"touch {marker}"
    text = f"open({str(marker)!r}, 'w').close()"
    yield Does(os.system, touch)
    yield Does(subprocess.check_call, ["touch", str(marker)])
    yield Does(eval, text)
    yield Does(exec, text)
    yield Does(builtins.open, str(marker), "w")
    yield Does(pathlib.Path.touch, marker)
    yield Does(shutil.copy, "/etc/hostname", str(marker))
    yield Does(torch.storage._load_from_bytes, pickle.dumps(Does(os.system, touch)))
    yield Does(torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (touch,), {})
    yield Does(functools.reduce, os.system, [touch, touch])


def object_array(deed: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([deed, deed], dtype=object), y=np.zeros(2))
    return buffer.getvalue()


def in_program(name: str, deed: Any) -> bytes:
    """The program whose pickle of this name is another."""
    entries = entries_of(program())
    inside = next(each for each in entries if each.endswith(f"/{name}"))
    return zipped(entries | {inside: pickle.dumps(deed, 2)})


def in_folder(deed: Any) -> bytes:
    return zipped({"config.json": b'{"architectures": ["BertModel"]}', "pytorch_model.bin": saved({"w": deed})})


PLACES: dict[str, Callable[[Any], bytes]] = {
    "a pickle": lambda deed: pickle.dumps(deed, 2),
    "a new pickle": lambda deed: pickle.dumps(collections.OrderedDict(a=deed), 5),
    "a weight": lambda deed: saved({"fc.weight": deed, "fc.bias": torch.ones(2)}),
    "a name": lambda deed: saved({deed: torch.ones(2, 3)}),
    "an optimizer's state": lambda deed: saved({"state_dict": {"fc.bias": torch.ones(2)}, "optimizer": [{"lr": deed}]}),
    "an old file": lambda deed: saved({"fc.weight": deed}, old=True),
    "a folder": in_folder,
    "a program's data": lambda deed: in_program("data.pkl", deed),
    "a program's constants": lambda deed: in_program("constants.pkl", (deed,)),
    "an array": object_array,
}


@counted(20, 100)
def test_nothing_runs_of_a_malicious_pickle(tmp_path: Path, count: int) -> None:
    marker = tmp_path / "ran"
    step = len(PLACES) * 10 // count  # of a few, each place and each deed, though not each pair
    tried = [(place, deed) for i, deed in enumerate(deeds(marker)) for place in list(PLACES)[i % step :: step]]
    assert len(tried) == count
    for place, deed in tried:
        content = PLACES[place](deed)
        assert not marker.exists(), "it runs when it is opened, not when it is written"
        path = tmp_path / "data.npz"
        path.write_bytes(content)
        with pytest.raises(ParedError):
            load(tmp_path, content)
        with pytest.raises(ParedError):
            inspect_dataset(DatasetFile(path, path.name))
        assert not marker.exists(), (place, deed.call)
    pickle.loads(PLACES["a pickle"](next(deeds(marker))))
    assert marker.exists(), "whoever opens one as a pickle runs it"
    print(f"\n{count} malicious pickles, as models and as data sets: nothing ran")


# -- headers of safetensors ---------------------------------------------------------------------

SECONDS = 2
"""Of the processor: other tests run beside this one."""


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def many(count: int, name: str = "") -> bytes:
    """A header of so many tensors, of a byte each."""
    return header(
        {f"{name}{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(count)}, bytes(count)
    )


@functools.cache
def headers() -> list[bytes]:
    return [
        safetensors_bytes({"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}),
        safetensors_bytes({f"layers.{i}.weight": torch.ones(2, 2) for i in range(40)}),
        header(
            {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)
        ),
    ]


@functools.cache
def abusive() -> list[bytes]:
    """The largest that the caps let through, and what is just beyond."""
    deep = 8_000_000
    return [
        many(90_000),
        many(75_000, "n" * 100),
        header(b"[" * deep + b"]" * deep),
        header(b'{"a":' * 3_000_000),
        header(b'{"w":{"dtype":"F32","shape":[' + b"1," * deep + b'1],"data_offsets":[0,4]}}', bytes(4)),
        header({"w": {"dtype": "F32", "shape": [9] * 64, "data_offsets": [0, 4]}}, bytes(4)),
        header(b'{"w":{"dtype":"F32","shape":[' + b"9" * 15_000_000 + b'],"data_offsets":[0,4]}}', bytes(4)),
        header({}, length=1 << 33),
        header({}, length=(1 << 64) - 1),
        b'{"a":1}',
    ]


@counted(60, 1000)
def test_every_safetensors_header_is_answered_soon(tmp_path: Path, count: int) -> None:
    rng = random.Random(3)
    slowest, answers = 0.0, {"loaded": 0, "refused": 0}
    for turn in range(count):
        took, loaded = timed(tmp_path, mutant(headers()[turn % 3], rng))
        answers["loaded" if loaded else "refused"] += 1
        slowest = max(slowest, took)
        assert took < SECONDS, f"mutant {turn} took {took:.1f} s"
    print(f"\n{count} safetensors files, each answered: {answers}, the slowest in {slowest:.2f} s")


@pytest.mark.parametrize("count", [pytest.param(10, marks=pytest.mark.campaign)])
def test_headers_at_the_caps_are_answered(tmp_path: Path, count: int) -> None:
    files = abusive()
    assert len(files) == count
    took = [timed(tmp_path, content) for content in files]
    assert not any(loaded for _, loaded in took)
    print(f"\n{count} headers of up to 16 MiB and 90,000 tensors: the slowest refused in {max(took)[0]:.1f} s")


def timed(folder: Path, content: bytes) -> tuple[float, bool]:
    """Seconds of the processor, and whether it is a model."""
    began = time.process_time()
    try:
        load(folder, content, "m.safetensors")
        return time.process_time() - began, True
    except ParedError:
        return time.process_time() - began, False
