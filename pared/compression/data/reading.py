"""Recognises a data set by its content and has its reader read it."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pared.compression.data import arrays, images, records, tables
from pared.compression.data.stored import FORMATS, Stored
from pared.compression.data.zip_members import Zip
from pared.compression.work import DatasetFile
from pared.errors import UnsupportedDataset


class Reader(NamedTuple):
    """One format: whether a file that begins with these bytes, and has so many, is of it, and what reads it."""

    recognises: Callable[[bytes, int], bool]
    read: Callable[[DatasetFile], Stored]


def read_dataset(file: DatasetFile) -> Stored:
    """What a data set holds.

    Raises:
        UnsupportedDataset: not a format we read; says what it looks like.
        InvalidData: the format is right, but arrays are missing, misnamed or not numbers.
        StorageFull: the disk has no room to unpack it.
    """
    if file.path is None:
        return _read_builtin(file.filename)
    size = file.path.stat().st_size
    if size == 0:
        raise UnsupportedDataset("The file is empty. Was the upload cut off?")
    with file.path.open("rb") as opened:
        head = opened.read(512)
    reader = next((reader for reader in READERS if reader.recognises(head, size)), None)
    if reader is None:
        _refuse_others(head)
        return tables.read_csv(file)
    return reader.read(file)


def _read_builtin(name: str) -> Stored:
    if name != "builtin:digits":
        raise UnsupportedDataset(f"There is no data set {name[:60]!r}. Built in: builtin:digits.")
    # The file that sklearn.datasets.load_digits reads; importing scikit-learn for it took over a second a job.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UnsupportedDataset("builtin:digits comes with scikit-learn, which this server's workers lack.")
    rows = _rows_of(Path(package.origin).parent / "datasets/data/digits.csv.gz")
    pixels = rows[:, :-1].reshape(-1, 1, 8, 8) / 16  # (1797, 1, 8, 8), 0 to 1
    return Stored("builtin", {"train": [pixels]}, {"train": rows[:, -1].astype(np.int64)})


@functools.cache
def _rows_of(path: Path) -> Any:
    return np.loadtxt(path, delimiter=",", dtype=np.float32)


def _read_zip(file: DatasetFile) -> Stored:
    assert file.path is not None  # noqa: S101 - it was recognised by its content
    archive = Zip(file.path)
    names = [member.name for member in archive.members]
    if names and all(name.endswith(".npy") for name in names):
        return arrays.read_npz(archive, file)
    if any(name.endswith(("/data.pkl", "/constants.pkl")) for name in names):
        raise UnsupportedDataset(f"This is a PyTorch file: upload it as a model, or save the arrays as .npz. {FORMATS}")
    if records.is_archive(names):
        return records.read_archive(archive, file)
    return images.read_images(archive, file)


READERS = (
    Reader(lambda head, _: head.startswith(b"PK\x03\x04"), _read_zip),
    Reader(arrays.is_safetensors, arrays.read_safetensors),
    Reader(records.is_parquet, records.read_file),
    Reader(records.is_json_lines, records.read_file),
)
"""Asked in turn. What none of them recognises is a table of text, or nothing that we read."""


def _refuse_others(head: bytes) -> None:
    """Anything that is not text, and text that is no table."""
    looks_like = [
        (b"\x93NUMPY", "a single NumPy array, so inputs or targets are missing: save both with np.savez(…, x=x, y=y)"),
        (b"\x89HDF", "an HDF5 file: save its arrays with np.savez(…, x=x, y=y)"),
        (b"\x1f\x8b", "a gzip file: unpack it and upload what is inside"),
        (b"\x80", "a Python pickle; opening it would run its code: save its arrays with np.savez(…, x=x, y=y)"),
        (b"\x89PNG", "one image: upload a .zip with a folder of images for each class"),
        (b"\xff\xd8\xff", "one image: upload a .zip with a folder of images for each class"),
        (b"<", "a web page or XML, not a table: download the file again and look at its size"),
        (b"[", "a JSON array: save it as JSON lines, one object a line, or as .csv"),
        (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` and upload the real file"),
    ]
    for magic, text in looks_like:
        if head.lstrip(b" \r\n\t").startswith(magic):
            raise UnsupportedDataset(f"This is {text}. {FORMATS}")
    if b"\0" in head:
        raise UnsupportedDataset(
            f"This is not a data set that pared knows: it begins with {head[:8].hex(' ')}. {FORMATS}"
        )
