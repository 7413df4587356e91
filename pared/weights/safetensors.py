"""Reads the header of a safetensors file, and trusts none of it: https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
}  # fmt: skip


class BadSafetensors(Exception):
    """The file is no safetensors file, is damaged, or lies about itself. The text says how, and begins with "its"."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its bytes are those from `start` to `stop`, counted from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """How many bytes it takes."""
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """What precedes the data, as it is (`head`), and what it says: the tensors in the order in which they lie."""

    head: bytes
    tensors: tuple[TensorEntry, ...]


def read_header(path: Path, begin: int = 0, size: int | None = None) -> Header:
    """The header of a safetensors file, held against the file: every byte belongs to exactly one tensor.

    Args:
        begin, size: where the file lies within another one, such as a zip that stores it, and how many bytes it has.

    Raises:
        BadSafetensors: the header is too large or malformed, or its offsets leave the file, overlap or leave gaps.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size - begin if size is None else size
    with path.open("rb") as file:
        file.seek(begin)
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise BadSafetensors(f"its header claims {length:,} bytes; the file or the limit of 16 MiB is smaller")
        text = file.read(length)
    data = begin + 8 + length
    tensors = sorted(_entries(text, data), key=lambda entry: (entry.start, entry.stop))
    end = data
    for entry in tensors:
        if entry.start != end:
            raise BadSafetensors("its tensors overlap or leave gaps")
        end = entry.stop
    if end != begin + size:
        rest = begin + size - data
        raise BadSafetensors(f"its tensors take {end - data:,} bytes, but the file has {rest:,} (cut off?)")
    return Header(prefix + text, tuple(tensors))


def _entries(text: bytes, data: int) -> list[TensorEntry]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise BadSafetensors("its header is not JSON") from error
    if not isinstance(header, dict):
        raise BadSafetensors("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadSafetensors("its metadata is not text by name")
    if len(header) > MAX_TENSORS:
        raise BadSafetensors(f"its header has {len(header):,} tensors; the limit is {MAX_TENSORS:,}")
    return [_entry(name, entry, data) for name, entry in header.items()]


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    "".join(mapping).encode()  # half a surrogate pair is no text
    if len(mapping) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in mapping if names.count(name) > 1)
        raise BadSafetensors(f"its header names {shown(double)} twice")
    return mapping


def _entry(name: str, entry: Any, data: int) -> TensorEntry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadSafetensors(f"its header entry of {shown(name)} is malformed")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if numbers == [None] or len(shape) > 64 or len(offsets) != 2 or any(type(n) is not int or n < 0 for n in numbers):
        raise BadSafetensors(f"the shape or the offsets of {shown(name)} are malformed")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise BadSafetensors(f"{shown(name)} has a type we don't know: {shown(str(dtype))}")
    if math.prod(shape) * BITS[dtype] != (offsets[1] - offsets[0]) * 8:
        raise BadSafetensors(f"{shown(name)} has another size than its shape says")
    return TensorEntry(name, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def shown(name: str) -> str:
    """A name in a message: no longer than a line, and with nothing in it that a terminal cannot print."""
    return ascii(name[:100]) if not name.isprintable() else repr(name[:100])
