"""How the elements of one array become bytes of several kinds, each kind for an entropy coder of its own.

Everything here works on bit patterns, the elements as unsigned integers: what comes back has the same bits, -0.0 and
the payload of NaN included. Which coding an array gets is found by trying them.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Patterns = NDArray[Any]
"""Flat array of `uint8`, `uint16`, `uint32` or `uint64`, little-endian."""
Bytes = NDArray[np.uint8]
Pieces = dict[str, Bytes]
"""Kind of stream -> what an array adds to it."""

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""numpy has no bfloat16: an array of this type holds the bits; `.view("<u2")` shows them."""

DTYPES = {
    "bool": np.dtype("?"),
    **{name: np.dtype(name).newbyteorder("<") for name in ("uint8", "uint16", "uint32", "uint64")},
    **{name: np.dtype(name).newbyteorder("<") for name in ("int8", "int16", "int32", "int64")},
    **{name: np.dtype(name).newbyteorder("<") for name in ("float16", "float32", "float64")},
    "bfloat16": BFLOAT16,
}


class Contradiction(ValueError):
    """What a file says, and what it holds, do not fit together."""


SHARED_MOST = 256
"""An array of at most so many distinct values is coded as a codebook and a byte for each element."""

_GAP_MOST = 255
_PATIENCE = 1 << 20  # from so many bytes on, LZMA is tried only where deflate found something to save
_LZMA = {"id": lzma.FILTER_LZMA1, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 20}


# -- arrays -------------------------------------------------------------------------------------


def patterns_of(array: NDArray[Any], dtype: str) -> Patterns:
    """The elements of an array in C order, as bit patterns."""
    flat = np.ascontiguousarray(array).reshape(-1).astype(DTYPES[dtype], copy=False)
    return flat.view(f"<u{flat.itemsize}")


def encode(patterns: Patterns) -> tuple[list[Any], Pieces]:
    """The smallest coding of an array: `[shared, places, …]` as the header has it, and the bytes."""
    places = np.flatnonzero(patterns)
    codings = [_with_values(["all"], {}, patterns)]
    if len(places) < len(patterns):
        nonzero = patterns[places]
        codings.append(_with_values(["mask"], {"mask": np.packbits(patterns != 0)}, nonzero))
        codings.append(_with_values(*_by_gaps(places), nonzero))
    return codings[0] if len(codings) == 1 else min(codings, key=lambda coding: _cost(coding[1]))


def decode(
    size: int, width: int, shared: int, places: str, arguments: tuple[int, ...], take: Callable[[str, int], Bytes]
) -> Patterns:
    """The bit patterns of an array.

    Args:
        size: how many elements.
        width: bytes an element.
        shared: size of the codebook, or 0.
        places: `all`, `mask` or `gaps`.
        arguments: of `gaps`: how many elements are not zero, and how many bits of each gap are written as they are.
        take: the next so many bytes of a stream.

    Raises:
        Contradiction: the bytes contradict themselves.
    """
    if places == "all":
        return _values(size, width, shared, take)
    if places == "mask":
        bits = take("mask", -(-size // 8))
        where = np.flatnonzero(np.unpackbits(bits, count=size))
    else:
        count, low = arguments
        where = _after_gaps(size, count, low, take)
    patterns = np.zeros(size, f"<u{width}")
    patterns[where] = _values(len(where), width, shared, take)
    return patterns


def _with_values(places: list[Any], pieces: Pieces, values: Patterns) -> tuple[list[Any], Pieces]:
    """A coding of places, and the smaller of two codings of the values that stand there."""
    as_they_are = [0, *places], pieces | _planes(values)
    codebook = _codebook(values)
    if codebook is None:
        return as_they_are
    codes = np.searchsorted(codebook, values).astype(np.uint8)
    by_codes = [len(codebook), *places], pieces | {"codes": codes} | _planes(codebook)
    return min(as_they_are, by_codes, key=lambda coding: _cost(coding[1]))


def _codebook(values: Patterns) -> Patterns | None:
    """The distinct values, if they are few."""
    if len(np.unique(values[: 16 * SHARED_MOST])) > SHARED_MOST:  # spares sorting millions
        return None
    distinct: Patterns = np.unique(values)
    return distinct if 0 < len(distinct) <= SHARED_MOST else None


def _values(count: int, width: int, shared: int, take: Callable[[str, int], Bytes]) -> Patterns:
    if not shared:
        return _from_planes(count, width, take)
    codebook = _from_planes(shared, width, take)
    codes = take("codes", count)
    if count and int(codes.max()) >= shared:
        raise Contradiction(f"a code names no value of a codebook of {shared}")
    return codebook[codes]


def _planes(values: Patterns) -> Pieces:
    """A stream for each byte of an element, the most significant first: exponents repeat, mantissas do not."""
    planes = values.astype(values.dtype.newbyteorder(">")).view(np.uint8).reshape(len(values), values.itemsize)
    return {f"byte{index}": np.ascontiguousarray(planes[:, index]) for index in range(values.itemsize)}


def _from_planes(count: int, width: int, take: Callable[[str, int], Bytes]) -> Patterns:
    planes = np.empty((count, width), np.uint8)
    for index in range(width):
        planes[:, width - 1 - index] = take(f"byte{index}", count)
    return planes.reshape(-1).view(f"<u{width}")


def _by_gaps(places: NDArray[np.intp]) -> tuple[list[Any], Pieces]:
    """Places as the numbers of zeros before them (Rice codes): high parts for the entropy coder, low parts as bits."""
    gaps = np.diff(places, prepend=-1) - 1
    longest = int(gaps.max()).bit_length() if len(gaps) else 0
    widths = range(max(0, longest - _GAP_MOST.bit_length()), longest + 1)
    width = min(widths, key=lambda bits: len(gaps) * bits + _entropy_bits(gaps >> bits))
    pieces = {"gaps": (gaps >> width).astype(np.uint8), "bits": _packed_bits(gaps, width)}
    return ["gaps", len(gaps), width], pieces


def _after_gaps(size: int, count: int, width: int, take: Callable[[str, int], Bytes]) -> NDArray[np.int64]:
    high = take("gaps", count)
    bits = np.unpackbits(take("bits", -(-count * width // 8)), count=count * width).reshape(count, width)
    gaps = high.astype(np.int64)
    for column in range(width):
        gaps = 2 * gaps + bits[:, column]
    places = np.cumsum(gaps + 1) - 1
    # No gap is beyond 2^41, so a sum has passed the size long before it could wrap to a negative number.
    if count and not (int(places.max()) < size and int(places.min()) >= 0):
        raise Contradiction("the gaps lead past the end of an array")
    return places


def _packed_bits(numbers: NDArray[np.intp], width: int) -> Bytes:
    """The lowest `width` bits of each number, the most significant first."""
    bits = np.empty((len(numbers), width), np.uint8)
    for column in range(width):
        bits[:, column] = (numbers >> (width - 1 - column)) & 1
    return np.packbits(bits)


def _entropy_bits(numbers: NDArray[np.intp]) -> float:
    counts = np.bincount(numbers)
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum()) if len(counts) else 0.0


def _cost(pieces: Pieces) -> int:
    """About how many bytes of the file these take."""
    return sum(min(len(piece), len(_deflate(piece.data, 6))) for piece in pieces.values())


# -- streams ------------------------------------------------------------------------------------


def compress(stream: bytes) -> tuple[str, bytes]:
    """The smallest of a stream as it is (`stored`), by `deflate` (RFC 1951) and by `lzma` (LZMA1, end marker)."""
    packed = {
        "stored": stream,
        "deflate": min(_deflate(stream, 9), _deflate(stream, 9, zlib.Z_HUFFMAN_ONLY), key=len),
    }
    if len(stream) < _PATIENCE or len(packed["deflate"]) < 0.98 * len(stream):
        packed["lzma"] = lzma.compress(stream, lzma.FORMAT_RAW, filters=[_LZMA])
    codec = min(packed, key=lambda name: len(packed[name]))
    return codec, packed[codec]


def decompress(codec: str, packed: bytes, size: int) -> bytes:
    """A stream again; never more than `size` bytes of it are made.

    Raises:
        Contradiction: it is no such stream of this size.
    """
    try:
        if codec == "stored":
            stream, whole = packed, True
        elif codec == "deflate":
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            stream = inflate.decompress(packed, size + 1)
            whole = inflate.eof and not inflate.unused_data
        elif codec == "lzma":
            decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_LZMA])
            stream = decoder.decompress(packed, size + 1)
            whole = decoder.eof and not decoder.unused_data
        else:
            raise Contradiction(f"there is no codec {codec[:20]!r}")
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise Contradiction(f"a stream cannot be decompressed ({error})") from error
    if not whole or len(stream) != size:
        raise Contradiction("a stream has another size than the header says")
    return stream


def _deflate(data: bytes | memoryview, level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    deflater = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return deflater.compress(data) + deflater.flush()
