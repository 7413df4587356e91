"""Sequences of different lengths as rows that are padded at their end: token ids, and labels of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pared.compression.data.columns import Array
from pared.compression.tasks.labels import IGNORED


class Ragged:
    """Rows (samples, width) of int64, which are padded when they are taken. Of longer sequences the end is left out."""

    decoded = False

    def __init__(self, values: Array, starts: Array, lengths: Array, *, fill: int, width: int | None = None) -> None:
        """Set up.

        Args:
            values: of all sequences, one after the other, int64.
            starts, lengths: where each one begins among them and how long it is, (samples,) int64.
            fill: what a row ends with, where it is shorter than others.
            width: of all rows; None: that of the longest.
        """
        self._values, self._starts, self._whole, self._fill = values, starts, lengths, fill
        self._width = max(1, self.longest) if width is None else width

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], fill: int) -> Ragged:
        """Sequences of whole numbers."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        values = np.fromiter((each for one in sequences for each in one), np.int64, int(lengths.sum()))
        return cls(values, lengths.cumsum() - lengths, lengths, fill=fill)

    @property
    def shape(self) -> tuple[int, int]:
        """(samples, width)."""
        return len(self._starts), self._width

    @property
    def dtype(self) -> np.dtype[Any]:
        """int64."""
        return np.dtype(np.int64)

    @property
    def lengths(self) -> Array:
        """How much of each row is no padding, (samples,) int64."""
        return np.minimum(self._whole, self._width)

    @property
    def longest(self) -> int:
        """Numbers of the longest sequence."""
        return int(self._whole.max(initial=0))

    def __getitem__(self, rows: Any, /) -> Array:
        """The rows of these indices, an int64 array or a slice."""
        place = np.arange(self._width)
        there = place < self.lengths[rows][:, None]
        index = np.where(there, self._starts[rows][:, None] + place, 0)
        return np.where(there, self._values[index] if len(self._values) else 0, self._fill)

    def rows(self, begin: int, end: int) -> Ragged:
        """The sequences from `begin` up to, not including, `end`."""
        part = slice(begin, end)
        return Ragged(self._values, self._starts[part], self._whole[part], fill=self._fill, width=self._width)

    def cut(self, width: int) -> Ragged:
        """The same sequences in rows of this width."""
        return Ragged(self._values, self._starts, self._whole, fill=self._fill, width=width)

    def longer_than(self, width: int) -> int:
        """How many sequences have more than so many numbers."""
        return int((self._whole > width).sum())

    def following(self) -> Ragged:
        """At each place the number that follows it, and `IGNORED` where none does: what a language model predicts."""
        lengths = np.maximum(self._whole - 1, 0)
        return Ragged(self._values, self._starts + 1, lengths, fill=IGNORED, width=self._width)
