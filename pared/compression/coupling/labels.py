"""Keeps which elements of which tensors belong together: unit labels, and the union-find that merges them.

Every index of every dimension of every weight starts as a unit of its own. Operators merge units that
can only be removed together (`Units.union`) or fix units that cannot be removed at all (`Units.fix`).
A tensor carries *layers* of labels: integer arrays of the tensor's own rank, of size 1 in each dimension
along which the label does not change. A weight has a layer for each dimension; an activation usually
has one, along its channels. An element goes when any layer's unit at its position goes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

Labels = npt.NDArray[np.int64]

NO_UNITS: Labels = np.zeros(0, dtype=np.int64)

FIXED = 0
"""The unit of all that can never be removed."""


class Units:
    """Union-find over unit numbers; unit 0 is what can never be removed."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int64)
        self._fixed = np.ones(1, dtype=np.bool_)  # says something of representatives only
        self._reason: dict[int, str] = {FIXED: ""}  # of each fixed representative
        self._tied: dict[int, str] = {}  # what each representative was last merged by

    def __len__(self) -> int:
        return len(self._parent)

    def make(self, count: int) -> Labels:
        """`count` new units of one element each."""
        start = len(self._parent)
        new = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, new])
        self._fixed = np.concatenate([self._fixed, np.zeros(count, dtype=np.bool_)])
        return new

    def roots(self, labels: Labels) -> Labels:
        """The representative of each label, FIXED where its unit cannot be removed; same shape."""
        roots = self._find(labels)
        return np.where(self._fixed[roots], FIXED, roots)

    def union(self, a: Labels, b: Labels, reason: str) -> None:
        """Merge a[i] with b[i] for all i (shapes broadcast). Merging with a fixed unit fixes, for `reason`."""
        while True:  # each round merges representatives; one that met several others needs another round
            left, right = self._find(a), self._find(b)
            low, high = np.minimum(left, right), np.maximum(left, right)
            apart = low != high
            self._fix(high[apart & (low == FIXED)], reason)
            apart &= low != FIXED
            if not apart.any():
                return
            low, high = low[apart], high[apart]
            self._parent[high] = low
            by = reason.partition(": ")[0]  # the rest tells why something is fixed
            self._tied |= dict.fromkeys(low.tolist(), by)
            for root in set(high[self._fixed[high]].tolist()):
                self._fix(self._find(np.array([root])), self._reason.pop(root))

    def fix(self, labels: Labels, reason: str) -> None:
        """These units can never be removed, because of `reason`."""
        self._fix(self._find(labels), reason)

    def fixed_reason(self, label: int) -> str | None:
        """Why this unit cannot be removed, or None if it can."""
        return self._reason.get(int(self._find(np.array([label], dtype=np.int64))[0]))

    def tied_reason(self, label: int) -> str:
        """What this unit was last merged by, empty if it is alone."""
        return self._tied.get(int(self._find(np.array([label], dtype=np.int64))[0]), "")

    def _fix(self, roots: Labels, reason: str) -> None:
        free = roots[~self._fixed[roots]]
        self._reason |= dict.fromkeys(free.tolist(), reason)
        self._fixed[free] = True

    def _find(self, labels: Labels) -> Labels:
        parent = self._parent
        if labels.size > len(parent):  # as of images, element by element: then all units are fewer
            while not np.array_equal(upper := parent[parent], parent):
                parent[:] = upper
            return parent[labels]
        roots = parent[labels]
        while not np.array_equal(upper := parent[roots], roots):
            roots = upper
        parent[labels] = roots
        return roots


@dataclass
class Tracked:
    """A tensor met while a graph runs, with its label layers."""

    tensor: torch.Tensor
    layers: list[Labels] = field(default_factory=list)
    name: str | None = None
    """The tensor's name in the model, for a parameter itself."""
    statistic: list[Labels] = field(default_factory=list)
    """Units over which this is a mean, a variance or the like: it may only normalise what has them."""

    def axis(self, dim: int) -> Labels:
        """Labels along one dimension, shape (size of dim,): fixed where no layer runs along it alone."""
        dim %= self.tensor.dim()
        for layer in self.layers:
            if spanned(layer) == {dim}:
                return layer.reshape(-1)
        return np.zeros(self.tensor.shape[dim], dtype=np.int64)

    def spanning(self, dims: set[int]) -> list[Labels]:
        """The layers that change along any of these dimensions."""
        return [layer for layer in self.layers if spanned(layer) & dims]


def spanned(layer: Labels) -> set[int]:
    """The dimensions along which a layer changes."""
    return {dim for dim, size in enumerate(layer.shape) if size > 1}


def along(labels: Labels, dim: int, rank: int) -> Labels:
    """1-D labels as a layer of a tensor of this rank, along `dim`."""
    shape = [1] * rank
    shape[dim % rank] = len(labels)
    return labels.reshape(shape)


def compressed(units: Units, full: Labels) -> Labels | None:
    """A layer with every dimension along which its units do not change cut to size 1; None if all is fixed."""
    roots = units.roots(_cut(full))  # cut before, for there may be millions of them
    return _cut(roots) if roots.any() else None


def _cut(labels: Labels) -> Labels:
    """Labels with every dimension along which they do not change cut to size 1."""
    for dim, size in enumerate(labels.shape):
        if size > 1:
            first = np.take(labels, [0], axis=dim)
            if (labels == first).all():
                labels = first
    return labels
