from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save as safetensors_bytes
from safetensors.torch import save as safetensors_of
from torch import nn

from pared.compression.architectures import build
from pared.compression.data import inspect_dataset, load_dataset
from pared.compression.jobs.fitting import check_fits
from pared.compression.loading import LoadedModel
from pared.compression.work import DatasetFile
from pared.errors import InvalidData, ModelFailed, ParedError, ShapeMismatch, UnsupportedDataset
from pared.specs import Preprocess

DIGITS = DatasetFile(None, "builtin:digits")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = np.arange(40) % 4


@pytest.fixture
def dataset(tmp_path):
    def write(content: bytes, name="data.bin"):
        path = tmp_path / name
        path.write_bytes(content)
        return DatasetFile(path, name)

    return write


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def image(mode="L", size=(6, 5), fill=7, kind="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, fill).save(buffer, kind)
    return buffer.getvalue()


def claiming(png: bytes, width: int, height: int) -> bytes:
    """The image with another size in its header, of which the checksum is right."""
    header = png[12:16] + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def load(file, task="classification", preprocess=None, seed=0):
    return load_dataset(file, task=task, preprocess=preprocess, seed=seed)


def counts(data):
    return [data.samples(split) for split in ("train", "val", "test")]


def everything(data):
    return {split: (data.inputs[split][0].tolist(), data.targets[split].tolist()) for split in data.targets}


# -- formats ------------------------------------------------------------------------------------


def test_digits_come_as_images_from_0_to_1():
    data = load(DIGITS)
    assert data.inputs["train"][0].shape == (1257, 1, 8, 8)
    assert (data.classes, data.splits, counts(data)) == (10, "by_seed", [1257, 270, 270])
    assert float(data.inputs["train"][0].max()) == 1.0


def test_npz_safetensors_and_csv_of_the_same_table_give_the_same_data(dataset):
    rows = ["a,b,c,label", *(",".join([*map(repr, map(float, x)), str(y)]) for x, y in zip(X, Y, strict=True))]
    files = [npz(x=X, y=Y), safetensors_bytes({"x": X, "y": Y}), "\n".join(rows).encode()]
    loaded = [load(dataset(content)) for content in files]
    assert everything(loaded[0]) == everything(loaded[1]) == everything(loaded[2])
    assert [data.format for data in loaded] == ["npz", "safetensors", "csv"]


def test_compressed_npz_and_half_precision_load(dataset):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=X.astype(np.float16), y=Y)
    assert load(dataset(buffer.getvalue())).inputs["train"][0].dtype == torch.float32


def test_types_follow_their_meaning(dataset):
    def dtype(array):
        return load(dataset(npz(x=array, y=Y))).example()[0].dtype

    assert dtype(np.zeros((40, 4), np.int32)) == torch.int64  # token ids
    assert dtype(np.zeros((40, 4), np.int8)) == torch.int64
    assert dtype(np.zeros((40, 1, 4, 4), np.uint8)) == torch.float32  # pixels
    assert dtype(np.zeros((40, 4), np.float64)) == torch.float32
    assert dtype(np.zeros((40, 4), bool)) == torch.float32


def test_several_inputs_stay_together(dataset):
    first, second = np.arange(40.0)[:, None], np.arange(40.0)[:, None] * 2
    data = load(dataset(npz(x0=first, x1=second, y=Y)))
    for (one, two), y in data.batches("train", 7, torch.Generator().manual_seed(1)):
        assert torch.equal(one * 2, two)
        assert torch.equal(one[:, 0].long() % 4, y)


def test_words_in_a_table_become_columns_and_classes(dataset):
    rows = ["colour;size;y", *(f"{('red', 'blue')[i % 2]};{i}.5;{('cat', 'dog', 'ant')[i % 3]}" for i in range(30))]
    data = load(dataset("\n".join(rows).encode()))
    assert data.class_names == ["ant", "cat", "dog"]
    assert data.inputs["train"][0].shape[1] == 3
    blue_red_size = data.inputs["train"][0][0].tolist()
    i = int(blue_red_size[2])
    assert blue_red_size[:2] == [float(i % 2 == 1), float(i % 2 == 0)]
    assert "'colour' became 2 columns of 0 and 1: blue, red" in data.warnings[0]


def test_a_table_without_a_header_takes_its_last_column(dataset):
    rows = [f"{i},{i * 2},{i % 2}" for i in range(20)]
    data = load(dataset("\n".join(rows).encode()))
    assert sum(counts(data)) == 20
    assert "No header" in data.warnings[0]


def test_the_named_column_is_the_target_wherever_it_stands(dataset):
    rows = ["label,a,0", *(f"{i % 2},{i},{i}" for i in range(20))]
    data = load(dataset("\n".join(rows).encode()))
    assert data.classes == 2
    assert data.inputs["train"][0].shape[1] == 2


def test_image_folders_become_classes(dataset):
    entries = {f"pets/{name}/{i}.png": image(fill=i) for name in ("dog", "cat") for i in range(10)}
    entries |= {"__MACOSX/pets/cat/._1.png": b"x", "pets/readme.txt": b"x"}
    data = load(dataset(zipped(entries)))
    assert data.class_names == ["cat", "dog"]
    assert data.inputs["train"][0].shape[1:] == (1, 5, 6)
    assert float(data.inputs["train"][0].max()) > 1  # raw pixels: `preprocess` scales them


def test_image_folders_may_bring_splits_and_colour(dataset):
    entries = {f"{split}/{c}/{i}.jpg": image("RGB", fill=(i, 0, 0), kind="JPEG")
               for split in ("train", "test") for c in "ab" for i in range(6)}  # fmt: skip
    entries["train/a/grey.png"] = image()
    data = load(dataset(zipped(entries)))
    assert data.splits == "given"
    assert data.samples("test") == 12
    assert data.inputs["test"][0].shape[1:] == (3, 5, 6)


# -- splits -------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_split_and_another_seed_another():
    assert everything(load(DIGITS, seed=3)) == everything(load(DIGITS, seed=3))
    assert everything(load(DIGITS, seed=3)) != everything(load(DIGITS, seed=4))


def test_the_split_does_not_depend_on_preprocessing_or_global_randomness():
    torch.manual_seed(1)
    first = load(DIGITS)
    torch.manual_seed(2)
    second = load(DIGITS, preprocess=Preprocess(scale=0.5))
    assert torch.equal(first.targets["test"], second.targets["test"])
    assert torch.equal(first.inputs["test"][0] * 0.5, second.inputs["test"][0])


def test_every_sample_is_in_exactly_one_split_and_classes_are_in_proportion(dataset):
    y = np.repeat([0, 1, 2], [200, 80, 20])
    data = load(dataset(npz(x=np.arange(300.0), y=y)))
    seen = torch.cat([data.inputs[split][0][:, 0] for split in data.targets])
    assert sorted(seen.tolist()) == list(range(300))
    assert data.targets["test"].bincount().tolist() == [30, 12, 3]
    assert data.targets["val"].bincount().tolist() == [30, 12, 3]


def test_given_splits_are_kept(dataset):
    data = load(
        dataset(npz(x_train=X[:20], y_train=Y[:20], x_val=X[20:30], y_val=Y[20:30], x_test=X[30:], y_test=Y[30:]))
    )
    assert (data.splits, counts(data)) == ("given", [20, 10, 10])
    assert np.array_equal(data.inputs["train"][0].numpy(), X[:20])


def test_a_given_test_split_stays_whole_and_validation_is_drawn_from_training(dataset):
    data = load(dataset(npz(x=X[:30], y=Y[:30], x_test=X[30:], y_test=Y[30:])))
    assert (data.splits, counts(data)) == ("given", [26, 4, 10])
    assert np.array_equal(data.inputs["test"][0].numpy(), X[30:])


def test_batches_cover_a_split_once_in_stored_or_shuffled_order():
    data = load(DIGITS)
    stored = torch.cat([y for _, y in data.batches("val", 64)])
    assert torch.equal(stored, data.targets["val"])
    generator = torch.Generator().manual_seed(5)
    shuffled = torch.cat([y for _, y in data.batches("val", 64, generator)])
    assert not torch.equal(shuffled, stored)
    assert torch.equal(shuffled, data.targets["val"][data.order("val", torch.Generator().manual_seed(5))])
    assert [len(y) for _, y in data.batches("val", 256)] == [256, 14]


def test_the_example_has_the_batch_asked_for(dataset):
    data = load(dataset(npz(x=X, y=Y)))
    assert [len(x) for x in (data.example()[0], data.example(100)[0])] == [2, 100]


def test_preprocess_scales_and_normalises_by_channel(dataset):
    x = np.full((20, 2, 3, 3), 100, np.uint8)
    data = load(dataset(npz(x=x, y=Y[:20])), preprocess=Preprocess(scale=0.01, mean=[0.5, 1], std=[0.5, 2]))
    torch.testing.assert_close(data.example()[0][0, :, 0, 0], torch.tensor([1.0, 0.0]))


# -- targets ------------------------------------------------------------------------------------


def test_regression_targets_are_float_columns(dataset):
    data = load(dataset(npz(x=X, y=np.full(40, 0.5))), task="regression")
    assert (data.classes, data.targets["train"].shape[1:], data.targets["train"].dtype) == (None, (1,), torch.float32)


def test_one_hot_whole_floats_and_words_become_classes(dataset):
    for y in (np.eye(4)[Y], Y.astype(float), Y[:, None], np.array(list("abcd"))[Y]):
        data = load(dataset(npz(x=X, y=y)))
        assert torch.equal(data.targets["train"], load(dataset(npz(x=X, y=Y))).targets["train"])


# -- what is refused ----------------------------------------------------------------------------


def nan_at(*index):
    x = X.copy()
    x[index] = np.nan
    return x


def lying_npz() -> bytes:
    """An array whose header claims 10^12 numbers."""
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    return zipped({"x.npy": array.getvalue(), "y.npy": array.getvalue()})


def bomb_npz() -> bytes:
    """Three gigabytes of claimed bytes per array are refused from the directory, without unpacking."""
    content = bytearray(zipped({"x.npy": b"0" * 1000}))
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    return bytes(content)


def understated() -> bytes:
    """A member that unpacks to more than both of its headers say."""
    content = bytearray(zipped({"x.npy": npy(np.zeros((40, 200))), "y.npy": npy(Y)}))
    size = len(npy(np.zeros((40, 200))))
    for at in [at for at in range(len(content) - 4) if content[at : at + 4] == size.to_bytes(4, "little")]:
        content[at : at + 4] = (size - 200 * 8).to_bytes(4, "little")
    return bytes(content).replace(b"(40, 200)", b"(39, 200)")


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def of_objects() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return npz(x=np.array([[1], [1, 2]], dtype=object), y=Y)


BAD = {
    "NaN": (lambda: npz(x=nan_at(5, 1), y=Y), InvalidData, r"x, train has 1 entries .* nan at \[5, 1\]"),
    "infinity in y": (lambda: npz(x=X, y=np.where(Y == 2, np.inf, Y)), InvalidData, "index 2"),
    "too large": (lambda: npz(x=X.astype(np.float64) * 1e300, y=Y), InvalidData, "too large for float32"),
    "fractional labels": (lambda: npz(x=X, y=Y + 0.5), InvalidData, "no whole numbers.*task=regression"),
    "negative labels": (lambda: npz(x=X, y=Y - 1), InvalidData, r"10 labels are negative \(the first, at index 0"),
    "giant labels": (lambda: npz(x=X, y=Y + 10**9), InvalidData, "too many classes"),
    "one class": (lambda: npz(x=X, y=Y * 0), InvalidData, "nothing to tell apart"),
    "labels of many": (lambda: npz(x=X, y=np.zeros((40, 3))), InvalidData, "one class a sample"),
    "lengths": (lambda: npz(x=X, y=Y[:-1]), InvalidData, "x has 40 samples but y has 39"),
    "one sample": (lambda: npz(x=X[:1], y=Y[:1]), InvalidData, "class|sample"),
    "nine samples": (lambda: npz(x=X[:9], y=Y[:9]), InvalidData, "has 9 training samples; at least 10"),
    "empty": (lambda: npz(x=X[:0], y=Y[:0]), InvalidData, "is empty"),
    "tiny test": (lambda: npz(x=X, y=Y, x_test=X[:1], y_test=Y[:1]), InvalidData, "test split has 1 sample"),
    "no y": (lambda: npz(x=X), InvalidData, "no labels.*task=match"),
    "no x": (lambda: npz(y=Y), InvalidData, r"name the arrays x .*y \(40,\)"),
    "y of one split": (lambda: npz(x=X, x_test=X, y_test=Y), InvalidData, "targets where any split has them"),
    "other inputs in test": (lambda: npz(a=X, b_test=X), InvalidData, "train has a, test has b"),
    "no train": (lambda: npz(x_test=X, y_test=Y), InvalidData, "Every split needs"),
    "x and x_train": (lambda: npz(x=X, x_train=X, y=Y), InvalidData, "not both ways"),
    "gap in inputs": (lambda: npz(x0=X, x2=X, y=Y), InvalidData, "without gaps"),
    "splits differ": (lambda: npz(x=X, y=Y, x_test=X[:, :2], y_test=Y), InvalidData, "differs between splits"),
    "scalar": (lambda: npz(x=1.0, y=2), InvalidData, "not single numbers"),
    "objects": (of_objects, InvalidData, "holds Python objects"),
    "text": (lambda: npz(x=np.array(["a b"] * 40), y=Y), InvalidData, "token ids"),
    "complex": (lambda: npz(x=X.astype(complex), y=Y), InvalidData, "no plain number"),
    "dates": (lambda: npz(x=X.astype("datetime64[s]"), y=Y), InvalidData, "no plain number"),
    "claims more": (lying_npz, UnsupportedDataset, "claims more"),
    "bomb": (bomb_npz, UnsupportedDataset, "unsafe archive|damaged"),
    "truncated": (lambda: npz(x=X, y=Y)[:-30], UnsupportedDataset, "cut off"),
    "no bytes": (lambda: b"", UnsupportedDataset, "empty"),
    "random": (lambda: random.Random(1).randbytes(500), UnsupportedDataset, "not a data set that pared knows"),
    "model": (lambda: zipped({"archive/data.pkl": b"x"}), UnsupportedDataset, "upload it as a model"),
    "zip of text": (lambda: zipped({"a.txt": b"x"}), UnsupportedDataset, "no arrays and no images"),
    "html": (lambda: b"<html></html>", UnsupportedDataset, "web page"),
    "json": (lambda: b'{\n "x": 1}', UnsupportedDataset, "one object a line"),
    "parquet": (lambda: b"PAR1....", UnsupportedDataset, "Parquet file does not open"),
    "pickle": (lambda: b"\x80\x04K\x01.", UnsupportedDataset, "would run its code"),
    "one column": (lambda: b"1\n2\n3\n", UnsupportedDataset, "single column"),
    "prose": (lambda: b"It was a dark and stormy night.\nThe end.\n", UnsupportedDataset, "single column"),
    "latin-1": (lambda: "é,1\n".encode("latin-1") * 20, UnsupportedDataset, "UTF-8"),
    "empty cells": (lambda: b"a,y\n1,0\n,1\n3,0\n", InvalidData, "1 empty cells, the first in row 3"),
    "ragged": (lambda: b"a,b,y\n1,2,0\n1,0\n", InvalidData, "Row 3 has 2 cells"),
    "too many words": (
        lambda: b"name,y\n" + b"".join(b"n%d,%d\n" % (i, i % 2) for i in range(100)), InvalidData, "too many to make"),
    "NaN cell": (lambda: b"a,y\n" + b"1,0\nnan,1\n" * 10, InvalidData, r"nan at \[1, 0\]"),
    "image sizes": (
        lambda: zipped({"a/1.png": image(), "b/1.png": image(size=(9, 9))}), InvalidData, "6×5, b/1.png is 9×9"),
    "broken image": (lambda: zipped({"a/1.png": b"no", "b/1.png": image()}), InvalidData, "a/1.png is not an image"),
    "cut image": (
        lambda: zipped({f"{c}/{i}.png": image("RGB")[: None if i else 50] for c in "ab" for i in range(9)}),
        InvalidData, r"[ab]/0\.png does not decode"),
    "16-bit image": (
        lambda: zipped({"a/1.png": image("I;16", fill=30000), "b/1.png": image("I;16")}), InvalidData, "8-bit"),
    "gigapixels": (
        lambda: zipped({"a/1.png": claiming(image(), 40_000, 25_000), "b/1.png": image()}),
        InvalidData, "pixels than an image may have: too many"),
    "float8": (
        lambda: safetensors_of({"x": torch.zeros(40, 3, dtype=torch.float8_e4m3fn), "y": torch.from_numpy(Y)}),
        InvalidData, "'x' holds F8_E4M3 numbers. Save it as float32"),
    "beyond int64": (lambda: npz(x=np.full((40, 2), 2**63, np.uint64), y=Y), InvalidData, "integers beyond int64"),
    "inputs of other lengths": (
        lambda: npz(x0=X, x1=X[:9], y=Y), InvalidData, "x1 has 9 samples but y has 40 .train split"),
    "one name twice": (lambda: npz(a=X, a_train=X, y=Y), InvalidData, "with or without _train"),
    "unpacks to more": (understated, UnsupportedDataset, "does not unpack to what was packed"),
    "loose images": (lambda: zipped({"1.png": image(), "b/1.png": image()}), InvalidData, "not lie in a class folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_with_advice(case, dataset):
    make, error, says = BAD[case]
    with pytest.raises(error, match=says):
        load(dataset(make()))


def test_word_targets_and_folders_are_no_regression(dataset):
    with pytest.raises(InvalidData, match="task=classification"):
        load(dataset(npz(x=X, y=np.array(list("abcd"))[Y])), task="regression")
    entries = {f"{c}/{i}.png": image() for c in "ab" for i in range(6)}
    with pytest.raises(InvalidData, match="task=classification"):
        load(dataset(zipped(entries)), task="regression")


def test_preprocess_that_does_not_fit_is_refused(dataset):
    file = dataset(npz(x=X, y=Y))
    with pytest.raises(InvalidData, match="has 2 entries"):
        load(file, preprocess=Preprocess(mean=[1, 2]))
    with pytest.raises(InvalidData, match="token ids only"):
        load(dataset(npz(x=Y[:, None], y=Y)), preprocess=Preprocess(scale=2))


def test_an_unknown_built_in_is_refused():
    with pytest.raises(UnsupportedDataset, match="Built in: builtin:digits"):
        load(DatasetFile(None, "builtin:mnist"))


def test_three_hundred_damaged_files_each_load_or_are_refused(dataset):
    images = {f"{c}/{i}.png": image(fill=i) for c in "ab" for i in range(6)}
    originals = [
        npz(x=X, y=Y),
        safetensors_bytes({"x": X, "y": Y}),
        b"a,b,y\n" + b"1,2,0\n3,x,1\n" * 10,
        zipped(images),
    ]
    rng = random.Random(3)
    outcomes = {"loaded": 0, "refused": 0}
    for turn in range(300):
        content = bytearray(originals[turn % 4])
        if turn // 4 % 2:
            del content[rng.randrange(len(content)) :]
        else:
            for _ in range(rng.randint(1, 8)):
                content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            load(dataset(bytes(content)))
            outcomes["loaded"] += 1
        except ParedError as error:
            outcomes["refused"] += bool(error.detail)
    print(outcomes)
    assert sum(outcomes.values()) == 300
    assert min(outcomes.values()) > 10


# -- inspection ---------------------------------------------------------------------------------


def test_inspection_says_shapes_splits_and_classes(dataset):
    shown = inspect_dataset(DIGITS)
    assert shown.inputs == [{"shape": [1, 8, 8], "dtype": "float32"}]
    assert shown.samples == {"train": 1257, "val": 270, "test": 270}
    assert shown.target == {"dtype": "int64", "shape": [], "classes": 10}
    tokens = inspect_dataset(dataset(npz(x=np.zeros((40, 7), np.int64), y=Y / 7)))
    assert tokens.inputs == [{"shape": [7], "dtype": "int64"}]
    assert tokens.target == {"dtype": "float32", "shape": [1]}


# -- model and data -----------------------------------------------------------------------------


def model(module) -> LoadedModel:
    return LoadedModel(torch.jit.script(module.eval()), "torchscript", "scripted")


def test_a_fitting_model_passes():
    check_fits(model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), load(DIGITS))
    check_fits(model(nn.Sequential(nn.Flatten(), nn.Linear(64, 12))), load(DIGITS))


class Cnn(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Linear(4 * 26 * 26, 4)
        self.conv1 = nn.Conv2d(channels, 4, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv1(x)).flatten(1))


class Standardized(Cnn):
    """Its first layer does not read the input as it comes."""

    def forward(self, x):
        x = (x - torch.zeros(1, 3, 1, 1)) / 0.5
        return self.fc(torch.relu(self.conv1(x)).flatten(1))


def flat(first) -> nn.Module:
    return nn.Sequential(OrderedDict(first=first, flat=nn.Flatten(1), fc=nn.Linear(64, 4)))


GREY = r"The model reads x with its layer conv1, which takes 1 input channel: shape \(N, 1, H, W\)\."
COLOUR = r"conv1, which takes 3 input channels: shape \(N, 3, H, W\)\."
MISFITS = {
    "no channels": (
        lambda: Cnn(1), (28, 28), rf"holds \(40, 28, 28\)\. {GREY} The channel .* missing: save x\[:, None\] as x\."),
    "its own words, once": (lambda: Cnn(1), (28, 28), r"The model's own code raised: (?!.*own code raised)"),
    "grey for colour": (lambda: Cnn(3), (28, 28), rf"{COLOUR} .* save x\[:, None\]\.repeat\(3, axis=1\) as x\."),
    "colour for grey": (lambda: Cnn(1), (3, 28, 28), rf"holds \(40, 3, 28, 28\)\. {GREY} The model's own"),
    "channels last": (lambda: Cnn(3), (28, 28, 3), rf"{COLOUR} .* save numpy\.moveaxis\(x, -1, 1\) as x\."),
    "channels last, behind a standardization": (
        lambda: Standardized(3), (28, 28, 3),
        r"holds \(40, 28, 28, 3\)\. .* runs on \(N, 3, 28, 28\): save numpy\.moveaxis\(x, -1, 1\) as x\."),
    "rows of pixels": (lambda: Cnn(1), (784,), rf"{GREY} Save x in that shape\."),
    "whole numbers": (
        lambda: Cnn(1), np.zeros((40, 1, 28, 28), np.int64), rf"{GREY} Save x as float32: integers are .* token ids"),
    "transposed and grouped": (
        lambda: flat(nn.ConvTranspose1d(4, 8, 1, groups=2)), (6, 5), r"takes 4 input channels: shape \(N, 4, L\)"),
    "grouped": (lambda: flat(nn.Conv1d(4, 8, 1, groups=2)), (6, 5), r"takes 4 input channels: shape \(N, 4, L\)"),
    "features": (lambda: flat(nn.Linear(6, 4)), (16, 5), r"layer first, which takes 6 features: shape \(N, 6\)"),
    "flattened": (
        lambda: flat(nn.Identity()), (8, 9), r"takes 64 features, to which each sample is reshaped\. .* 72 numbers"),
    "no token ids": (lambda: flat(nn.Embedding(9, 4)), (16,), r"first, which takes token ids\. Save x as int64"),
}  # fmt: skip


def test_an_inspection_says_how_images_with_their_channels_last_become_what_models_take(dataset):
    for shape, told in (((28, 20, 3), True), ((3, 28, 20), False), ((28, 28), False), ((3, 3, 3), False)):
        found = inspect_dataset(dataset(npz(x=np.zeros((40, *shape), np.float32), y=Y)))
        assert any("(N, 3, 28, 20), save numpy.moveaxis(x, -1, 1)" in each for each in found.warnings) == told


@pytest.mark.parametrize("case", MISFITS)
def test_what_the_first_layer_takes_is_told_beside_what_the_data_hold(case, dataset):
    make, x, says = MISFITS[case]
    x = x if isinstance(x, np.ndarray) else np.zeros((40, *x), np.float32)
    with pytest.raises(ShapeMismatch, match=says):
        check_fits(model(make()), load(dataset(npz(x=x, y=Y))))


def test_the_first_layer_is_found_in_traced_models_and_in_architectures_too(dataset):
    data = load(dataset(npz(x=np.zeros((40, 28, 28), np.float32), y=Y)))
    traced = torch.jit.trace(Cnn(1).eval(), torch.zeros(2, 1, 28, 28))
    for module in (traced, build("lenet5").eval()):
        with pytest.raises(ShapeMismatch, match=GREY):
            check_fits(LoadedModel(module, "torchscript", "traced"), data)


def test_of_several_inputs_the_one_that_does_not_fit_is_named(dataset):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.a = nn.Linear(5, 4), nn.Linear(3, 4)

        def forward(self, x, z):
            return self.a(x) + self.b(z)

    with pytest.raises(ShapeMismatch, match=r"reads x1 with its layer b, which takes 5 features"):
        check_fits(model(Two()), load(dataset(npz(x0=X, x1=X, y=Y))))


def test_a_shape_that_was_only_tried_is_not_told_as_the_models_own(dataset):
    x = np.zeros((40, 1, 32, 32), np.float32)
    with pytest.raises(ShapeMismatch, match=r"shapes tried in its place, it ran on \(N, 1, 28, 28\); others may do"):
        check_fits(model(Cnn(1)), load(dataset(npz(x=x, y=Y))))


def test_labels_beyond_the_outputs_are_told():
    with pytest.raises(InvalidData, match=r"labels go up to 9, but the model has 5 outputs \(classes 0 to 4\)"):
        check_fits(model(nn.Sequential(nn.Flatten(), nn.Linear(64, 5))), load(DIGITS))


def test_token_ids_beyond_the_vocabulary_are_told_wherever_they_are(dataset):
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 4)

        def forward(self, x):
            return self.embedding(x).mean(1)

    x = RNG.integers(0, 50, (40, 6))
    check_fits(model(Text()), load(dataset(npz(x=x, y=Y))))
    x[33, 5] = 77
    with pytest.raises(InvalidData, match="token ids run from 0 to 77"):
        check_fits(model(Text()), load(dataset(npz(x=x, y=Y))))


def test_a_models_own_failure_keeps_its_words(dataset):
    class Raises(nn.Module):
        def forward(self, x):
            raise ValueError("the sensor is upside down")
            return x

    with pytest.raises(ModelFailed, match="the sensor is upside down"):
        check_fits(LoadedModel(Raises(), "state_dict", "state_dict"), load(dataset(npz(x=X, y=Y))))


def test_regression_targets_take_the_shape_of_the_output(dataset):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 1)

        def forward(self, x):
            return self.fc(x).squeeze(1)

    data = load(dataset(npz(x=X, y=Y * 0.5)), task="regression")
    check_fits(model(Flat()), data)
    assert data.targets["train"].dim() == 1
    with pytest.raises(ShapeMismatch, match="gives"):
        check_fits(model(nn.Linear(3, 2)), load(dataset(npz(x=X, y=Y * 0.5)), task="regression"))


def test_no_test_wrote_beside_its_folder():
    assert not list(Path.cwd().glob("data.bin"))
