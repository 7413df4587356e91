"""Ranks weights by |w| without holding or sorting them: a few passes over them count what is smaller than what.

The bits of a float without their sign, read as an integer, rank as its absolute value does: IEEE 754 is made so. The
k-th smallest |w| is then the k-th smallest of such *keys*, and counting finds it exactly: a pass tallies the keys of a
window of 2¹⁸ buckets, and the bucket that the k-th falls into is the next pass's window, until a bucket is one key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.unsignedinteger[Any]]

BUCKETS = 1 << 18
UNSIGNED: dict[str, np.dtype[np.unsignedinteger[Any]]] = {
    "F64": np.dtype("<u8"),
    "F32": np.dtype("<u4"),
    "F16": np.dtype("<u2"),
    "BF16": np.dtype("<u2"),
}
"""The types that can be ranked -> the integers of their width."""

_FLOAT: dict[str, np.dtype[np.floating[Any]]] = {  # numpy has no BF16
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
}
_LARGEST = {"F64": (1 << 63) - 1, "F32": (1 << 31) - 1, "F16": (1 << 15) - 1, "BF16": (1 << 15) - 1}
_INFINITY = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}


def common_type(dtypes: Collection[str]) -> str:
    """The narrowest type that holds every value of all these types exactly."""
    kinds = set(dtypes)
    return next(iter(kinds)) if len(kinds) == 1 else "F64" if "F64" in kinds else "F32"


def keys(bits: Keys, dtype: str, common: str) -> Keys:
    """|w| as integers that rank alike, across types: the bits without the sign of the same value in type `common`.

    Args:
        bits: the weights, as integers of `UNSIGNED[dtype]`.
    """
    if dtype != common:
        with np.errstate(invalid="ignore"):  # NaN stays NaN, for `hold_nan` to find
            bits = _floats(bits, dtype).astype(_FLOAT[common]).view(UNSIGNED[common])
    return np.bitwise_and(bits, bits.dtype.type(_LARGEST[common]))


def hold_nan(ranked: Keys, common: str) -> bool:
    """Whether one of these keys is that of NaN, which has no rank."""
    return bool(ranked.max(initial=0) > _INFINITY[common])


def magnitude(key: int, common: str) -> float:
    """The |w| of a key."""
    return float(_floats(np.array([key], UNSIGNED[common]), common)[0])


def _floats(bits: Keys, dtype: str) -> npt.NDArray[np.floating[Any]]:
    if dtype == "BF16":  # the upper half of an F32
        bits, dtype = np.left_shift(bits, 16, dtype=UNSIGNED["F32"]), "F32"
    return bits.view(_FLOAT[dtype])


@dataclass(frozen=True)
class Cut:
    """Where the smallest keys end: all below `key` are among them, and the first `ties` of those equal to it."""

    key: int
    ties: int


def find_cut(passes: Callable[[], Iterable[Keys]], count: int, common: str, guess: int) -> Cut:
    """The cut below which the `count` smallest keys lie, exactly.

    Args:
        passes: called for each pass; gives all the keys, a block at a time.
        count: no more than there are keys.
        guess: a key that may be near the cut; a good one saves two passes, a bad one costs one.
    """
    if not count:
        return Cut(0, 0)
    whole = max(0, _LARGEST[common].bit_length() - (BUCKETS.bit_length() - 1))
    # Around the guess, a 64th of its own size for F32 to either side. No wider type is resolved at once.
    shift = 29 if common == "F64" else 0
    first = max(0, guess - (BUCKETS // 2 << shift))
    while True:
        below, tally = _tallied(passes(), first, shift)
        reached = below + np.cumsum(tally)
        if not below < count <= reached[-1]:  # the guess was bad
            first, shift = 0, whole
            continue
        bucket = int(np.searchsorted(reached, count))
        first += bucket << shift
        if not shift:
            return Cut(first, int(count - reached[bucket] + tally[bucket]))
        shift = max(0, shift - (BUCKETS.bit_length() - 1))


def _tallied(blocks: Iterable[Keys], first: int, shift: int) -> tuple[int, npt.NDArray[np.int64]]:
    """How many keys lie below `first`, and how many in each bucket of 2^shift keys from there on."""
    below, tally = 0, np.zeros(BUCKETS, np.int64)
    for block in blocks:
        below += int(np.count_nonzero(block < first))
        buckets = block - first  # wraps below `first`, and so lands beyond every bucket
        if shift:
            buckets >>= shift
        np.add.at(tally, buckets[np.flatnonzero(buckets < BUCKETS)], 1)
    return below, tally
