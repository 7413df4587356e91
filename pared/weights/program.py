"""Splits a TorchScript archive into its tensors and the rest, and joins both again.

The archive is a zip. Its pickles say which records hold tensors (`data/0`), and how the tensors lie in them; what they
name is never looked up, and torch is not needed.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pared.weights.coding import DTYPES
from pared.weights.packed import Filled, Record

Array = NDArray[Any]

_PICKLES = {"data.pkl": "data", "constants.pkl": "constants"}  # and where their tensors are
_STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
}
_ALIGNMENT = 64  # of records, as torch writes them


def split(archive: BinaryIO) -> tuple[list[Record], dict[str, Array]]:
    """The records of a TorchScript archive, and the tensors taken out of them, by their names in the model.

    What several names share is taken out once. Constants of the code, which have no names, go by those of their
    records. So does a record that no tensor fills by itself (there are only views into it), as an array of one
    dimension. Left out are positions in the source (`.debug_pkl`), which only serve messages of errors.
    """
    with zipfile.ZipFile(archive) as opened:
        contents = {entry.filename: opened.read(entry) for entry in opened.infolist()}
    folder = next(iter(contents)).partition("/")[0]
    views: dict[str, dict[str, _Tensor]] = {}
    for pickled, records in _PICKLES.items():
        if f"{folder}/{pickled}" in contents:
            root = _Inert(io.BytesIO(contents[f"{folder}/{pickled}"])).load()
            for name, tensor in _tensors(root, ""):
                record = f"{records}/{tensor.storage}"
                views.setdefault(record, {})[name if records == "data" else record] = tensor
    tensors: dict[str, Array] = {}
    filled: dict[str, Filled] = {}
    for record, names in views.items():
        content = contents[f"{folder}/{record}"]
        filling = _filling(names, content, taken=tensors)
        if filling is None:
            dtype = DTYPES[next(iter(names.values())).dtype]
            if len(content) % dtype.itemsize:
                continue
            filling = record, None, np.frombuffer(content, dtype)
        name, order, tensors[filling[0]] = filling
        filled[f"{folder}/{record}"] = Filled(name, order)
    program = [
        Record(name, filled.get(name, content)) for name, content in contents.items() if not name.endswith(".debug_pkl")
    ]
    return program, tensors


def join(program: Sequence[Record], tensors: Mapping[str, Array], file: Path | BinaryIO) -> None:
    """Write the archive that a program and its tensors make up: what torch.jit.load opens."""
    with zipfile.ZipFile(file, "w") as archive:
        for record in program:
            write_record(archive, record.name, _content(record, tensors), compressed="/code/" in record.name)


def write_record(archive: zipfile.ZipFile, name: str, content: bytes, *, compressed: bool) -> None:
    """Append a record as torch does: its content begins at a multiple of 64 bytes, so that it can be mapped."""
    info = zipfile.ZipInfo(name)
    padding = -((archive.fp.tell() if archive.fp else 0) + 30 + len(name.encode()) + 4) % _ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    archive.writestr(info, content, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)


def _content(record: Record, tensors: Mapping[str, Array]) -> bytes:
    if isinstance(record.content, bytes):
        return record.content
    tensor = tensors[record.content.tensor]
    return (tensor if record.content.order is None else tensor.transpose(record.content.order)).tobytes()


# -- the pickles --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    """How a tensor lies in its storage, counted in elements."""

    storage: str
    dtype: str
    stored: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Object:
    """Stands for anything that a pickle makes: its class is not looked up, and what it is made of is kept."""

    def __init__(self, *parts: Any) -> None:
        self.parts: Any = parts[0] if len(parts) == 1 else parts

    def __setstate__(self, state: Any) -> None:
        self.parts = state


class _Inert(pickle.Unpickler):
    """Reads a pickle of torch, and runs nothing that it names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        return name if module == "torch" and name in _STORAGES else _Object

    def persistent_load(self, pid: Any) -> tuple[str, str | None, int]:
        _, storage, key, _, stored = pid
        return key, _STORAGES.get(storage) if isinstance(storage, str) else None, stored


def _rebuilt(
    storage: tuple[str, str | None, int], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor | None:
    key, dtype, stored = storage
    return None if dtype is None else _Tensor(key, dtype, stored, offset, shape, strides)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, _Tensor]]:
    """All tensors in what a pickle holds, each with the attributes that lead to it."""
    if isinstance(value, _Tensor):
        yield name, value
    elif isinstance(value, _Object):
        yield from _tensors(value.parts, name)
    elif isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(part, f"{name}.{key}" if name else str(key))


def _filling(
    names: Mapping[str, _Tensor], content: bytes, *, taken: Mapping[str, Array]
) -> tuple[str, tuple[int, ...] | None, Array] | None:
    """The first tensor that is all of its record: its name, the order of its dimensions in memory, and itself."""
    for name, tensor in names.items():
        dtype = DTYPES[tensor.dtype]
        if name in taken or math.prod(tensor.shape) * dtype.itemsize != len(content) or tensor.offset:
            continue
        order = tuple(sorted(range(len(tensor.shape)), key=lambda dim: -tensor.strides[dim]))
        laid_out = np.frombuffer(content, dtype).reshape([tensor.shape[dim] for dim in order])
        strides = [tensor.strides[dim] * dtype.itemsize for dim in order]
        if any(
            size > 1 and mine != its for size, mine, its in zip(laid_out.shape, strides, laid_out.strides, strict=True)
        ):
            continue
        array = laid_out.transpose(np.argsort(order))
        return name, None if array.flags.c_contiguous else order, array
    return None
