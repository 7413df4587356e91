"""The samples of one input as a column: a tensor in memory, or rows that are read where they are stored, as needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

CHUNK_BYTES = 16 << 20
"""About how much is read at once by what goes through all samples."""


class Rows(Protocol):
    """Samples as they are stored, (samples, …): an array, or what reads or decodes them when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """As of an array."""

    def __getitem__(self, rows: Any, /) -> Array:
        """The samples of these indices, an int64 array or a slice; but for an array's own, a copy."""


class StoredColumn:
    """Samples that are read when they are taken: some rows of what is stored, as tensors of one type.

    It has as much of a tensor's interface as batches need.
    """

    def __init__(self, stored: Rows, dtype: torch.dtype, rows: Tensor | None = None) -> None:
        """Args: rows: which samples, by their indices in `stored`; None: all."""
        self.stored, self.dtype, self._rows = stored, dtype, rows
        # A single number each becomes (samples, 1).
        self.shape = torch.Size((len(self), *(stored.shape[1:] or (1,))))

    def __len__(self) -> int:
        return int(self.stored.shape[0]) if self._rows is None else len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all samples as one tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_decoded(self) -> bool:
        """Whether it is decoded when it is read, as images are, so that only then it is known to be whole."""
        return getattr(self.stored, "decoded", False)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """A tensor of these samples; `dim` is 0."""
        return self._tensor((index if self._rows is None else self._rows[index]).numpy())

    def part(self, rows: Tensor) -> StoredColumn:
        """The samples of these indices, still where they are stored."""
        return StoredColumn(self.stored, self.dtype, rows if self._rows is None else self._rows[rows])

    def held(self) -> Tensor:
        """All samples in memory."""
        whole = torch.empty(self.shape, dtype=self.dtype)
        for begin, chunk in chunks(self):
            whole[begin : begin + len(chunk)] = chunk
        return whole

    def slice(self, begin: int, end: int) -> Tensor:
        """A tensor of the samples from `begin` up to, not including, `end`."""
        return self._tensor(slice(begin, end) if self._rows is None else self._rows[begin:end].numpy())

    def _tensor(self, rows: Any) -> Tensor:
        # What was read or decoded is a copy already; rows of an array may be the array itself.
        found = self.stored[rows].astype(_NUMPY[self.dtype], copy=isinstance(self.stored, np.ndarray))
        return torch.from_numpy(found).reshape(-1, *self.shape[1:])


Column = Tensor | StoredColumn

_NUMPY = {torch.float32: np.float32, torch.int64: np.int64, torch.uint8: np.uint8}


def chunks(column: Column) -> Iterator[tuple[int, Tensor]]:
    """(index of its first sample, samples) of one chunk of the column after the other."""
    step = max(1, CHUNK_BYTES * len(column) // max(column.nbytes, 1))
    for begin in range(0, len(column), step):
        end = min(begin + step, len(column))
        yield begin, column.slice(begin, end) if isinstance(column, StoredColumn) else column[begin:end]


class TokenRange(NamedTuple):
    """The lowest and the highest token id of a column, and a sample with each."""

    low: int
    low_row: int
    high: int
    high_row: int


def token_range(column: Column) -> TokenRange:
    """Between what the token ids of a column lie."""
    found: TokenRange | None = None
    for begin, chunk in chunks(column):
        flat = chunk.flatten(1)
        low_row, high_row = int(flat.amin(1).argmin()), int(flat.amax(1).argmax())
        here = TokenRange(int(flat[low_row].min()), begin + low_row, int(flat[high_row].max()), begin + high_row)
        if found is None or here.low < found.low:
            found = TokenRange(here.low, here.low_row, *(here if found is None else found)[2:])
        if here.high > found.high:
            found = TokenRange(*found[:2], here.high, here.high_row)
    assert found is not None  # noqa: S101 - a column has samples
    return found


def part_of(column: Column, rows: Tensor) -> Column:
    """The samples of these indices."""
    return column.part(rows) if isinstance(column, StoredColumn) else column[rows]


def in_memory(column: Column) -> Tensor:
    """All samples as one tensor."""
    return column.held() if isinstance(column, StoredColumn) else column


def raw_chunks(stored: Rows) -> Iterator[tuple[int, Array]]:
    """The same of what is stored, as it is stored."""
    count = stored.shape[0]
    step = max(1, CHUNK_BYTES // max(math.prod(stored.shape[1:]) * stored.dtype.itemsize, 1))
    for begin in range(0, count, step):
        yield begin, stored[slice(begin, min(begin + step, count))]


def whole(stored: Rows) -> Array:
    """All that is stored, in memory."""
    return stored if isinstance(stored, np.ndarray) else stored[:]
