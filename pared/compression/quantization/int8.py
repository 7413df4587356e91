"""Rounds weights to int8 with a scale for each output channel, symmetric around zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pared.errors import ModelFailed

Array = NDArray[np.float32]

LARGEST = {8: 127, 7: 64}
"""Bits of a weight -> the largest code. Products of 7-bit weights and uint8 inputs add up in pairs within int16, which
is what processors without VNNI add them in."""
_SHORTEST_ROW = 4
"""Elements that share a scale: a scale for fewer takes more room than they save."""


@dataclass(frozen=True)
class Rounded:
    """A weight as int8 codes and scales: `codes * scales` is nearly the weight, to within half a scale.

    `scales` has the dimensions of the weight, of size 1 where elements share one.
    """

    codes: NDArray[np.int8]
    scales: Array

    @property
    def weight(self) -> Array:
        """What the codes stand for."""
        return self.codes.astype(np.float32) * self.scales

    @property
    def nbytes(self) -> int:
        """Of codes and scales together."""
        return self.codes.nbytes + self.scales.nbytes


def pays(shape: Sequence[int], channels: Sequence[int] = (0,)) -> bool:
    """Whether a weight of this shape takes less room as int8.

    Args:
        channels: the dimensions that count output channels.
    """
    if len(shape) < 2 or not all(shape):
        return False
    row = 1
    for dim, size in enumerate(shape):
        row *= 1 if dim in channels else size
    return row >= _SHORTEST_ROW


def rounded(weight: Array, channels: Sequence[int] = (0,), *, name: str, bits: int = 8) -> Rounded:
    """The int8 codes of a weight, one scale a channel: w ≈ q · s with s = max|w| / 127.

    Args:
        weight: of at least two dimensions.
        channels: the dimensions that count output channels; the others share a scale.
        name: of the weight, for errors.
        bits: 8, or 7 for products that are added up in int16.

    Raises:
        ModelFailed: a weight is not a finite number.
    """
    if not np.isfinite(weight).all():
        raise ModelFailed(f"The weights of {name} are not all finite numbers: they cannot be rounded to int8.")
    shared = tuple(dim for dim in range(weight.ndim) if dim not in channels)
    largest = np.abs(weight).max(axis=shared, keepdims=True)
    scales = np.where(largest > 0, largest / LARGEST[bits], 1).astype(np.float32)
    codes = np.clip(np.rint(weight / scales), -LARGEST[bits], LARGEST[bits]).astype(np.int8)
    return Rounded(codes, scales)
