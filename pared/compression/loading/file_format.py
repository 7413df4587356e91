"""Recognises the format of an uploaded model by its content, and names what a file is that is no model."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pared.compression.loading.archives import BadArchive, check_contents, check_total, zip_directory
from pared.compression.loading.folders.names import find_root
from pared.compression.loading.loaded import SAVE_ADVICE
from pared.compression.loading.program_files import is_program
from pared.errors import UnsupportedModel

MAX_PICKLE_BYTES = 256 * 2**20
MAX_CODE_BYTES = 256 * 2**20

MOST_TIMES = 20
"""So many times its own bytes a zip of a model folder may unpack to: weights with many zeros compress well."""

Container = Literal[
    "torchscript", "exported_program", "zip_state_dict", "legacy_state_dict", "safetensors", "onnx", "huggingface"
]
STATE_DICTS: tuple[Container, ...] = ("zip_state_dict", "legacy_state_dict", "safetensors")
"""Files of weights alone."""
_OF_TORCH: tuple[Container, ...] = ("torchscript", "exported_program", "zip_state_dict")
"""Zips of which torch reads the entries."""


_LOOKS_LIKE: list[tuple[int, bytes, str, str]] = [
    (0, b"\x89HDF", "a Keras or HDF5 file", "pared opens PyTorch models. Convert it to PyTorch first."),
    (
        0,
        b"GGUF",
        "a GGUF file",
        f"Its weights are quantized for llama.cpp. Start from the PyTorch model. {SAVE_ADVICE}",
    ),
    (4, b"TFL3", "a TensorFlow Lite model", "pared opens PyTorch models. Start from the PyTorch model."),
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer",
        "It only names the real file: run `git lfs pull`, upload that.",
    ),
    (0, b"PARD", "a packed file of pared", "Run `pared unpack` on it and upload what comes out."),
    (0, b"\x93NUMPY", "a NumPy array", f"Was this meant as a data set? {SAVE_ADVICE}"),
    (0, b"\x1f\x8b", "a gzip file", "Unpack it and upload what is inside."),
    (0, b"BZh", "a bzip2 file", "Unpack it and upload what is inside."),
    (0, b"\xfd7zXZ", "an xz file", "Unpack it and upload what is inside."),
    (0, b"7z\xbc\xaf", "a 7-Zip file", "Unpack it and upload what is inside."),
    (0, b"\x89PNG", "a PNG image", "Was this meant as a data set? Upload a zip of class folders there."),
    (0, b"\xff\xd8\xff", "a JPEG image", "Was this meant as a data set? Upload a zip of class folders there."),
    (0, b"%PDF", "a PDF document", SAVE_ADVICE),
    (257, b"ustar", "a tar archive", f"Unpack it and upload the model inside. {SAVE_ADVICE}"),
]


def recognise(path: Path) -> Container:
    """What the file is, by its content alone.

    Raises:
        UnsupportedModel: saying what it looks like and what to do.
    """
    size = path.stat().st_size
    if size == 0:
        raise UnsupportedModel("The file is empty. Was the upload cut off, or the model not saved yet?")
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return _recognise_zip(path)
    if size > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "safetensors"
    for offset, magic, name, advice in _LOOKS_LIKE:
        if head[offset:].startswith(magic):
            raise UnsupportedModel(f"This is {name}. {advice}")
    if head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return "legacy_state_dict"
    if begins_as_onnx(head):
        return "onnx"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UnsupportedModel(
            "This is a web page, not a model: a download link that leads to a log-in page saves such a file. "
            "Download the model again and look at its size."
        )
    if text.startswith((b"{", b"[")):
        raise UnsupportedModel(
            f"This is JSON text. An architecture goes into `architecture`; the file is the weights. {SAVE_ADVICE}"
        )
    raise UnsupportedModel(
        f"This is not a model that pared knows: it begins with {head[:8].hex(' ')}. It opens TorchScript, "
        f"torch.export programs, ONNX, state dicts, safetensors and zips of Hugging Face model folders. {SAVE_ADVICE}"
    )


def refuse_damaged(path: Path) -> None:
    """Refuse a file of torch of which a part has changed since it was written. Reads all of it: once is enough.

    Raises:
        UnsupportedModel: it has, or it is no model.
    """
    if recognise(path) in _OF_TORCH:
        try:
            check_contents(path)
        except BadArchive as error:
            raise _unsafe(error) from error


def _unsafe(error: BadArchive) -> UnsupportedModel:
    return UnsupportedModel(f"This is a damaged or unsafe archive: {error}. Save and upload it again.")


def begins_as_onnx(head: bytes) -> bool:
    """Whether a file begins as the message of an ONNX model does: with its version, then the name of what made it.

    Or another field of the model comes next, such as the graph.
    """
    return head[:1] == b"\x08" and len(head) > 2 and 1 <= head[1] <= 20 and head[2:3] in _AFTER_VERSION


_AFTER_VERSION = {b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42", b"\x72"}


def _recognise_zip(path: Path) -> Container:
    try:
        entries = folder_entries(path)
        names = {entry.filename for entry in entries}
        if "model.weights.h5" in names:  # beside a config.json of its own
            raise UnsupportedModel("This is a Keras model. pared opens PyTorch models: convert it to PyTorch first.")
        if is_folder(names):
            return "huggingface"
        check_total(entries, path.stat().st_size + MAX_CODE_BYTES)
        inner = {name.partition("/")[2] for name in names}
        if "constants.pkl" in inner or "data.pkl" in inner:
            _check_torch_archive(entries)
            return "torchscript" if "constants.pkl" in inner else "zip_state_dict"
        if is_program(names):
            return "exported_program"
    except BadArchive as error:
        raise _unsafe(error) from error
    if any(name.endswith(".npy") for name in names):
        raise UnsupportedModel("This is a NumPy archive (.npz), which holds data: upload it as a data set.")
    if "MAR-INF/MANIFEST.json" in names:
        raise UnsupportedModel("This is a TorchServe archive (.mar). Unpack it and upload the model file inside.")
    if any(name.endswith(".onnx") for name in names):
        return "onnx"
    listing = ", ".join(sorted(names)[:5])[:300]
    raise UnsupportedModel(f"This is a zip archive without a PyTorch model in it (it holds {listing}). {SAVE_ADVICE}")


def folder_entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip that may be a model folder.

    Raises:
        BadArchive: as `zip_directory`.
    """
    return zip_directory(path, max_unpacked=MOST_TIMES * path.stat().st_size + MAX_CODE_BYTES)


def is_folder(names: Collection[str]) -> bool:
    """Whether a zip holds a Hugging Face model folder, or a part of one of which one can say what to do.

    Raises:
        UnsupportedModel: the latter.
    """
    inner = {name.partition("/")[2] for name in names}
    return not inner & {"constants.pkl", "data.pkl"} and find_root(names) is not None


def _check_torch_archive(entries: list[zipfile.ZipInfo]) -> None:
    """torch stores everything in one folder, and compresses nothing but code."""
    if len({entry.filename.partition("/")[0] for entry in entries}) != 1:
        raise BadArchive("its entries do not lie in one folder")
    for entry in entries:
        inner = entry.filename.partition("/")[2]
        if entry.compress_type != zipfile.ZIP_STORED and not inner.startswith("code/"):
            raise BadArchive(f"its entry {inner[:100]!r} is compressed, which torch never does")
        if inner.endswith("pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise BadArchive(f"its pickle {inner[:100]!r} has {entry.file_size:,} bytes")
