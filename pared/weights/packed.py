"""Writes and reads packed files: named arrays in few bytes, sparse or with shared values where they can be.

The layout is in docs/packed-format.md. A file of an earlier version of the format stays readable.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pared.errors import DamagedPacked, NewerPacked, NotPacked, PackedTooLarge
from pared.weights.coding import (
    DTYPES,
    SHARED_MOST,
    Bytes,
    Contradiction,
    compress,
    decode,
    decompress,
    encode,
    patterns_of,
)

MAGIC = b"PARD"
VERSION = 1
MAX_BYTES = 8 * 2**30
"""What a file may unpack to unless the caller says otherwise: two thousand million float32."""

_HEAD = struct.Struct("<4sBIQI")  # magic, version, checksum, bytes of the file, bytes of the header
_CHECKED_FROM = 9  # the checksum is of all that follows it
_MAX_HEADER = 16 * 2**20
_MAX_DIMENSIONS = 64  # of numpy
_STREAMS = ("gaps", "bits", "mask", "codes", *(f"byte{index}" for index in range(8)), "program")

Array = NDArray[Any]


@dataclass(frozen=True)
class Filled:
    """The content of a record of a program that a tensor holds.

    `order`: its dimensions as they lie in memory, the outermost first, where that is not their own order.
    """

    tensor: str
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Record:
    """One file of the archive that a program is."""

    name: str
    content: bytes | Filled


@dataclass(frozen=True)
class Packed:
    """What a packed file holds."""

    tensors: dict[str, Array]
    architecture: Any | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    program: list[Record] | None = None


def write(
    path: Path,
    tensors: Mapping[str, Array],
    *,
    architecture: Any | None = None,
    metadata: Mapping[str, str] | None = None,
    program: Sequence[Record] | None = None,
) -> None:
    """Write arrays into a packed file, without loss; the same arrays always give the same bytes.

    Equal arrays are stored once. Arrays with at most 256 distinct values besides zero are stored as a codebook and
    codes, arrays with zeros by their non-zero elements, wherever that is smaller.

    Args:
        tensors: name -> array of a type in `coding.DTYPES`.
        architecture: JSON that says how the module is built.
        metadata: anything else worth knowing.
        program: the archive that the tensors were taken out of, to be put together again.

    Raises:
        TypeError: an array of a type that the format does not have, such as complex numbers.
    """
    streams = {kind: bytearray() for kind in _STREAMS}
    entries: list[list[Any]] = []
    written: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for name, array in tensors.items():
        dtype = next((known for known, its in DTYPES.items() if its == array.dtype.newbyteorder("<")), None)
        if dtype is None:
            raise TypeError(f"The array {name} is of type {array.dtype}; packed files hold {', '.join(DTYPES)}.")
        patterns = patterns_of(array, dtype)
        key = dtype, array.shape, hashlib.sha256(patterns.data).digest()
        if key in written:
            entries.append([name, written[key]])
            continue
        written[key] = name
        coding, pieces = encode(patterns)
        entries.append([name, dtype, list(array.shape), *coding])
        for kind, piece in pieces.items():
            streams[kind] += piece.tobytes()
    header: dict[str, Any] = {"tensors": entries}
    if program is not None:
        header["program"] = [[record.name, *_program_entry(record.content)] for record in program]
        streams["program"] += b"".join(record.content for record in program if isinstance(record.content, bytes))
    if architecture is not None:
        header["architecture"] = architecture
    if metadata:
        header["metadata"] = dict(metadata)
    body = bytearray()
    header["streams"] = {}
    for kind, stream in streams.items():
        if stream:
            codec, packed = compress(bytes(stream))
            header["streams"][kind] = [codec, len(packed), len(stream)]
            body += packed
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > _MAX_HEADER:
        raise ValueError(f"The header would take {len(text):,} bytes; the most that is read is {_MAX_HEADER:,}.")
    head = zlib.compress(text, 9, -zlib.MAX_WBITS)
    checked = struct.pack("<QI", _HEAD.size + len(head) + len(body), len(head)) + head + body
    path.write_bytes(struct.pack("<4sBI", MAGIC, VERSION, zlib.crc32(checked)) + checked)


def read(path: Path, *, max_bytes: int = MAX_BYTES) -> Packed:
    """Read a packed file.

    Args:
        max_bytes: most bytes that its arrays together, and their streams, may come to. What the file claims is held
            against this before room is made for it.

    Raises:
        NotPacked: the file is something else.
        NewerPacked: it is of a later version of the format.
        DamagedPacked: it was cut off or changed, or contradicts itself.
        PackedTooLarge: it unpacks to more than `max_bytes`.
    """
    name = path.name
    if path.stat().st_size > max_bytes:
        raise PackedTooLarge(_too_large(name, path.stat().st_size, max_bytes))
    data = path.read_bytes()
    header_size = _checked(name, data)
    try:
        header = _header(data[_HEAD.size : _HEAD.size + header_size])
        return _contents(header, memoryview(data)[_HEAD.size + header_size :], name, max_bytes)
    except (ValueError, RecursionError) as error:
        raise DamagedPacked(
            f"{name} contradicts itself: {error}. Its checksum is right, so it was written like this: "
            "make it anew, with another version of what wrote it."
        ) from error
    except MemoryError as error:
        raise PackedTooLarge(
            f"{name} unpacks to more than this machine has memory for. Unpack it on a larger one."
        ) from error


# -- the container ------------------------------------------------------------------------------


def _checked(name: str, data: bytes) -> int:
    """The size of the header of a file that is whole."""
    if not data.startswith(MAGIC):
        raise NotPacked(f"{name} is not a packed file: it does not begin as one. Give the model.packed of a job.")
    if len(data) < _HEAD.size:
        raise DamagedPacked(f"{name} is cut off after {len(data)} bytes. Download it again.")
    _, version, checksum, size, header_size = _HEAD.unpack_from(data)
    if version > VERSION:
        raise NewerPacked(
            f"{name} is of format {version}, and this pared reads up to {VERSION}. Install a newer pared: "
            "pip install -U pared."
        )
    if len(data) < size:
        raise DamagedPacked(f"{name} is cut off: it has {len(data):,} of {size:,} bytes. Download it again.")
    if len(data) > size:
        raise DamagedPacked(
            f"{name} has {len(data):,} bytes where its header says {size:,}: something was added to it, or changed in "
            "it. Download it again."
        )
    if zlib.crc32(data[_CHECKED_FROM:]) != checksum or version < 1:
        raise DamagedPacked(f"{name} was changed since it was written: its checksum is wrong. Download it again.")
    return int(header_size)


def _header(packed: bytes) -> dict[str, Any]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        text = inflate.decompress(packed, _MAX_HEADER)
    except zlib.error as error:
        raise Contradiction(f"its header cannot be decompressed ({error})") from error
    if not inflate.eof or inflate.unused_data:
        raise Contradiction("its header has another size than it says")
    header = json.loads(text, parse_constant=_no_such_number)
    if not isinstance(header, dict) or not header.keys() >= {"tensors", "streams"}:
        raise Contradiction("its header lacks tensors or streams")
    return header


def _contents(header: dict[str, Any], body: memoryview, name: str, max_bytes: int) -> Packed:
    entries = [_Entry.of(item) for item in _list(header["tensors"])]
    spans = {kind: _stream_span(kind, item) for kind, item in _dict(header["streams"]).items()}
    dense = sum(entry.size * entry.width for entry in entries)
    unpacked = sum(size for _, _, size in spans.values())
    if max(dense, unpacked) > max_bytes:
        raise PackedTooLarge(_too_large(name, max(dense, unpacked), max_bytes))
    if sum(packed for _, packed, _ in spans.values()) != len(body):
        raise Contradiction("its streams take more or less room than there is")
    streams = _Streams()
    at = 0
    for kind, (codec, packed, size) in spans.items():
        streams.add(kind, decompress(codec, bytes(body[at : at + packed]), size))
        at += packed
    tensors: dict[str, Array] = {}
    for entry in entries:
        if entry.name in tensors:
            raise Contradiction(f"two of its arrays are called {entry.name[:100]!r}")
        tensors[entry.name] = _array(entry, tensors, streams)
    program = None
    if "program" in header:
        program = [_record(item, tensors, streams) for item in _list(header["program"])]
    if not streams.used_up():
        raise Contradiction("its streams hold more than its arrays need")
    metadata = _dict(header.get("metadata", {}))
    if not all(isinstance(value, str) for value in metadata.values()):
        raise Contradiction("its metadata is not text")
    return Packed(tensors, header.get("architecture"), metadata, program)


class _Streams:
    """The unpacked streams, each read from its beginning to its end."""

    def __init__(self) -> None:
        self._left: dict[str, memoryview] = {}

    def add(self, kind: str, stream: bytes) -> None:
        self._left[kind] = memoryview(stream)

    def take(self, kind: str, count: int) -> Bytes:
        left = self._left.get(kind, memoryview(b""))
        if count > len(left):
            raise Contradiction(f"its stream of {kind} ends too early")
        self._left[kind] = left[count:]
        return np.frombuffer(left[:count], np.uint8)

    def used_up(self) -> bool:
        return not any(len(left) for left in self._left.values())


def _stream_span(kind: str, description: Any) -> tuple[str, int, int]:
    """Codec, bytes in the file and bytes unpacked of a stream."""
    codec, packed, size = _list(description, 3)
    if kind not in _STREAMS or not isinstance(codec, str):
        raise Contradiction(f"its stream of {kind[:20]} is of no known kind")
    return codec, _number(packed), _number(size)


# -- arrays and records -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """What the header says of an array: `[name, dtype, shape, shared, places, …]`, or `[name, an equal one]`."""

    name: str
    same_as: str | None = None
    dtype: str = ""
    shape: tuple[int, ...] = ()
    shared: int = 0
    places: str = "all"
    arguments: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Elements that are stored for it."""
        return 0 if self.same_as is not None else math.prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes an element."""
        return 0 if self.same_as is not None else DTYPES[self.dtype].itemsize

    @classmethod
    def of(cls, description: Any) -> _Entry:
        """An entry from its description in a header, which is checked."""
        if len(_list(description)) == 2:
            name, other = map(_text, description)
            return cls(name, same_as=other)
        if len(description) < 5:
            raise Contradiction("an array is described in too few words")
        name, dtype, places = _text(description[0]), _text(description[1]), _text(description[4])
        shape, shared = tuple(map(_number, _list(description[2]))), _number(description[3])
        arguments = tuple(map(_number, description[5:]))
        if dtype not in DTYPES:
            raise Contradiction(f"{name[:100]!r} is of the unknown type {dtype[:20]!r}")
        # With a dimension of 0 the others may be anything, and numpy takes no more than an index can count.
        if len(shape) > _MAX_DIMENSIONS or math.prod(max(size, 1) for size in shape) >= 1 << 48:
            raise Contradiction(f"the shape of {name[:100]!r} is none")
        if {"all": 0, "mask": 0, "gaps": 2}.get(places) != len(arguments) or shared > SHARED_MOST:
            raise Contradiction(f"the coding of {name[:100]!r} is none")
        if places == "gaps" and (arguments[0] > math.prod(shape) or arguments[1] > 33):
            raise Contradiction(f"{name[:100]!r} has more non-zero elements than elements")
        return cls(name, None, dtype, shape, shared, places, arguments)


def _array(entry: _Entry, before: Mapping[str, Array], streams: _Streams) -> Array:
    if entry.same_as is not None:
        if entry.same_as not in before:
            raise Contradiction(f"{entry.name[:100]!r} is as an array that does not come before it")
        return before[entry.same_as]
    patterns = decode(entry.size, entry.width, entry.shared, entry.places, entry.arguments, streams.take)
    if entry.dtype == "bool" and entry.size and int(patterns.max()) > 1:
        raise Contradiction(f"{entry.name[:100]!r} holds truth values other than 0 and 1")
    return patterns.view(DTYPES[entry.dtype]).reshape(entry.shape)


def _program_entry(content: bytes | Filled) -> list[Any]:
    """The content of a record as the header has it."""
    if isinstance(content, bytes):
        return [len(content)]
    return [content.tensor] if content.order is None else [content.tensor, list(content.order)]


def _record(description: Any, tensors: Mapping[str, Array], streams: _Streams) -> Record:
    name, content, *order = _list(description)
    if isinstance(content, int):
        return Record(_text(name), streams.take("program", _number(content)).tobytes())
    if _text(content) not in tensors:
        raise Contradiction(f"its program needs an array {content[:100]!r} that it does not have")
    if not order:
        return Record(_text(name), Filled(content))
    permutation = tuple(map(_number, _list(order[0])))
    if sorted(permutation) != list(range(tensors[content].ndim)) or len(order) > 1:
        raise Contradiction(f"the order of {content[:100]!r} in memory is none")
    return Record(_text(name), Filled(content, permutation))


# -- what a header may say ----------------------------------------------------------------------


def _list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        raise Contradiction("its header has something else where a list is needed")
    return value


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Contradiction("its header has something else where an object is needed")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Contradiction("its header has something else where text is needed")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise Contradiction("its header has something else where a count is needed")
    return value


def _no_such_number(text: str) -> NoReturn:
    raise Contradiction(f"its header holds {text}, which is no JSON")


def _too_large(name: str, size: int, most: int) -> str:
    return (
        f"{name} says that it unpacks to {size:,} bytes, and {most:,} are the most taken here. If you trust it, read "
        "it with pared.weights.packed.read(path, max_bytes=…)."
    )
