"""Arrays that stay in their file: mapped into the address space, read a few rows at a time, and let go of again."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

from pared.compression.data.columns import Array

_KEPT_BYTES = 32 << 20
"""Pages of a mapped file that may count as this process's memory before they are given back."""
_PAGES_AROUND = 64 << 10
"""With a byte that is read, the kernel maps about so many around it."""


class MappedFile:
    """A file mapped for reading. What was read counts as resident memory, so it is given back now and then."""

    def __init__(self, descriptor: int) -> None:
        """Args: descriptor: of an open file that is not empty; it may be closed afterwards."""
        self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        self.bytes: Array = np.frombuffer(self._map, np.uint8)
        self._read = 0

    def read(self, start: int, count: int) -> bytes:
        """A copy of so many bytes."""
        self.has_read(count + _PAGES_AROUND)
        return self.bytes[start : start + count].tobytes()

    def has_read(self, count: int) -> None:
        """So many bytes were read. The pages stay in the system's cache, and come back without the disk."""
        self._read += count
        if self._read > _KEPT_BYTES:
            self._read = 0
            self._map.madvise(mmap.MADV_DONTNEED)


class MappedRows:
    """An array in a mapped file, in C order: `Rows` that are copied out when they are asked for."""

    def __init__(
        self,
        file: MappedFile,
        start: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        widen: Callable[[Array], Array] | None = None,
    ) -> None:
        """Args: start: where its bytes begin; widen: makes the array's own numbers of what is stored."""
        self._file, self._stored, self._widen = file, dtype, widen
        row = math.prod(shape[1:]) * dtype.itemsize
        self._bytes = file.bytes[start : start + shape[0] * row].reshape(shape[0], row)
        self.shape = shape
        self.dtype = dtype if widen is None else widen(np.empty(0, dtype)).dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        if not isinstance(rows, slice) and len(rows) and rows[-1] - rows[0] == len(rows) - 1 and _rises(rows):
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
        if isinstance(rows, slice):
            found = self._bytes[rows].copy()
            self._file.has_read(found.nbytes)
        else:
            found = self._bytes.take(rows, axis=0)
            self._file.has_read(found.nbytes + _PAGES_AROUND * len(rows))
        # Copied as bytes first, for in the file they may lie at any address.
        numbers = found.view(self._stored).reshape(len(found), *self.shape[1:])
        return numbers if self._widen is None else self._widen(numbers)


def bfloat16_as_float32(stored: Array) -> Array:
    """float32 of bfloat16 that was read as uint16."""
    return (stored.astype(np.uint32) << 16).view(np.float32)


def _rises(rows: Array) -> bool:
    return bool((np.diff(rows) == 1).all())
