"""Recognises a data set by its content and reads its arrays, as they are stored."""

from __future__ import annotations

import importlib.util
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.torch
import torch

from pared.compression.data.images import read_image_folders
from pared.compression.data.samples import Split
from pared.compression.data.stored import FORMATS, MAX_ELEMENTS, Array, Stored
from pared.compression.data.tables import read_csv
from pared.compression.loading.archives import BadArchive, zip_directory
from pared.compression.work import DatasetFile
from pared.errors import InvalidData, UnsupportedDataset
from pared.weights.safetensors import read_header
from pared.wording import shortened


def read_dataset(file: DatasetFile) -> Stored:
    """Read the arrays of a data set.

    Raises:
        UnsupportedDataset: not a format we read; says what it looks like.
        InvalidData: the format is right, but arrays are missing, misnamed or not numbers.
    """
    if file.path is None:
        return _read_builtin(file.filename)
    size = file.path.stat().st_size
    if size == 0:
        raise UnsupportedDataset("The file is empty. Was the upload cut off?")
    with file.path.open("rb") as opened:
        head = opened.read(512)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file.path)
    if size > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return _read_safetensors(file.path)
    _refuse_others(head)
    return read_csv(file.path)


def by_split(arrays: Mapping[str, Array], kind: str) -> Stored:
    """Sort arrays into splits by their names: `x` or `x0`, `x1`, … and `y`, alone or with `_train`, `_val`, `_test`."""
    inputs: dict[Split, dict[int, Array]] = {}
    targets: dict[Split, Array] = {}
    ignored = []
    for name, array in arrays.items():
        match = re.fullmatch(r"(?:x(\d{0,2})|(y))(?:_(train|val|valid|validation|test))?", name.lower())
        if match is None:
            ignored.append(name[:60])
            continue
        split = _split(match[3] or "train")
        destination: dict[Any, Array] = targets if match[2] else inputs.setdefault(split, {})
        key = split if match[2] else int(match[1] or 0)
        if key in destination:
            raise InvalidData(f"Two arrays could be {name!r}: name the training samples either x or x_train, not both.")
        destination[key] = array
    if "train" not in inputs or (targets and inputs.keys() != targets.keys()):
        shapes = shortened([f"{name[:60]} {array.shape}" for name, array in arrays.items()]) or "nothing"
        raise InvalidData(
            "Every split needs inputs, and targets (y) where any has them: name the arrays x (or x0, x1, … for "
            "several inputs) and y; own "
            f"splits as x_train, y_train, x_val, y_val, x_test, y_test. The file holds {shapes}."
        )
    counts = {split: sorted(numbered) for split, numbered in inputs.items()}
    for numbers in counts.values():
        if numbers != list(range(len(counts["train"]))):
            raise InvalidData("Inputs must be numbered x0, x1, … without gaps, and be the same in every split.")
    return Stored(
        format=kind,
        inputs={split: [numbered[i] for i in sorted(numbered)] for split, numbered in inputs.items()},
        targets=targets,
        notes=[f"Arrays that are neither x nor y were left out: {shortened(ignored)}."] if ignored else [],
    )


def _split(name: str) -> Split:
    return "test" if name == "test" else "train" if name == "train" else "val"


def _read_builtin(name: str) -> Stored:
    if name != "builtin:digits":
        raise UnsupportedDataset(f"There is no data set {name[:60]!r}. Built in: builtin:digits.")
    # The file that sklearn.datasets.load_digits reads; importing scikit-learn for it took over a second a job.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UnsupportedDataset("builtin:digits comes with scikit-learn, which this server's workers lack.")
    rows = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",", dtype=np.float32)
    images = rows[:, :-1].reshape(-1, 1, 8, 8) / 16  # (1797, 1, 8, 8), 0 to 1
    return Stored("builtin", {"train": [images]}, {"train": rows[:, -1].astype(np.int64)})


def _read_zip(path: Path) -> Stored:
    try:
        entries = zip_directory(path, max_unpacked=8 * MAX_ELEMENTS)
    except BadArchive as error:
        raise UnsupportedDataset(
            f"This is a damaged or unsafe archive: {error}. Save and upload it again. {FORMATS}"
        ) from error
    names = [entry.filename for entry in entries if not entry.is_dir()]
    if names and all(name.endswith(".npy") for name in names):
        return _read_npz(path, entries)
    if any(name.endswith(("/data.pkl", "/constants.pkl")) for name in names):
        raise UnsupportedDataset(f"This is a PyTorch file: upload it as a model, or save the arrays as .npz. {FORMATS}")
    return read_image_folders(path, entries)


def _read_npz(path: Path, entries: list[zipfile.ZipInfo]) -> Stored:
    try:
        elements = 0
        with zipfile.ZipFile(path) as archive:
            for entry in entries:
                with archive.open(entry) as member:
                    elements += _elements_of_npy(member, entry)
        _check_count(elements)
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except InvalidData:
        raise
    except Exception as error:
        raise UnsupportedDataset(
            f"This .npz is damaged: {str(error)[:200]}. Save it with np.savez(…, x=x, y=y) and upload it again."
        ) from error
    return by_split(arrays, "npz")


def _elements_of_npy(member: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Number of elements that the header of one array claims, held against its size in the archive."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    if dtype.hasobject:
        raise InvalidData(
            f"The array {entry.filename[:60]} holds Python objects; opening them would run code. Make it an array "
            "of numbers, for example with np.stack or astype(np.float32)."
        )
    elements = math.prod(shape)
    if elements * dtype.itemsize > entry.file_size:
        raise ValueError(f"{entry.filename[:60]} claims more than the archive holds")
    return elements


def _check_count(elements: int) -> None:
    if elements > MAX_ELEMENTS:
        raise InvalidData(f"The arrays hold {elements:,} numbers; the most we take is {MAX_ELEMENTS:,}.")


def _read_safetensors(path: Path) -> Stored:
    try:
        _check_count(sum(entry.elements for entry in read_header(path).tensors))
        tensors = safetensors.torch.load_file(path)
    except InvalidData:
        raise
    except Exception as error:
        raise UnsupportedDataset(f"This safetensors file is damaged: {str(error)[:200]}. Upload it again.") from error
    return by_split(
        {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in tensors.items()}, "safetensors"
    )


def _refuse_others(head: bytes) -> None:
    """Anything that is not text, and text that is no table."""
    looks_like = [
        (b"\x93NUMPY", "a single NumPy array, so inputs or targets are missing: save both with np.savez(…, x=x, y=y)"),
        (b"PAR1", "a Parquet file: save it as .csv or .npz"),
        (b"\x89HDF", "an HDF5 file: save its arrays with np.savez(…, x=x, y=y)"),
        (b"\x1f\x8b", "a gzip file: unpack it and upload what is inside"),
        (b"\x80", "a Python pickle; opening it would run its code: save its arrays with np.savez(…, x=x, y=y)"),
        (b"\x89PNG", "one image: upload a .zip with a folder of images for each class"),
        (b"\xff\xd8\xff", "one image: upload a .zip with a folder of images for each class"),
        (b"<", "a web page or XML, not a table: download the file again and look at its size"),
        (b"{", "JSON: save it as .csv or .npz"),
        (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` and upload the real file"),
    ]
    for magic, text in looks_like:
        if head.lstrip(b" \r\n\t").startswith(magic):
            raise UnsupportedDataset(f"This is {text}. {FORMATS}")
    if b"\0" in head:
        raise UnsupportedDataset(
            f"This is not a data set that pared knows: it begins with {head[:8].hex(' ')}. {FORMATS}"
        )
