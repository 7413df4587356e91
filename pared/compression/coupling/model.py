"""Defines the types of the analysis: channel groups, removals, layers, and sizes written in the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from pared.compression.coupling.interpreter import Interpreter
from pared.compression.coupling.labels import Labels

Axis = tuple[str, int]
"""A tensor's name in the model, and a dimension of it."""

Removed = dict[str, dict[str, list[int]]]
"""Tensor name -> dimension (as text, for JSON) -> removed indices, sorted."""


def merge(into: Removed, more: Removed) -> None:
    """Add a removal to another of the same model."""
    for name, by_dim in more.items():
        for dim, indices in by_dim.items():
            known = into.setdefault(name, {}).setdefault(dim, [])
            known[:] = sorted({*known, *indices})


def compose_removed(first: Removed, second: Removed, shapes: dict[str, tuple[int, ...]]) -> Removed:
    """Two removals one after the other, as one in the first model's numbering.

    Args:
        shapes: tensor name -> shape in the first model.
    """
    composed: Removed = {name: {dim: list(indices) for dim, indices in dims.items()} for name, dims in first.items()}
    for name, dims in second.items():
        for dim, indices in dims.items():
            removed = set(first.get(name, {}).get(dim, []))
            left = [index for index in range(shapes[name][int(dim)]) if index not in removed]
            composed.setdefault(name, {})[dim] = sorted(removed | {left[index] for index in indices})
    return composed


# -- what rules note of a call --------------------------------------------------------------------


Edit = Literal["number", "picks", "shuffle", "places", "mean", "largest", "smallest"]
"""What is written anew where units go.

`number`: the node takes a number that counts them. `picks`: it takes a tensor of positions among them. `shuffle`: it
is the last of some that, together, pick positions among them. `places`: it
reads each of them at its place among the others, so it still gets as many, with zeros for those that went. `mean`,
`largest`, `smallest`: it is that of all of them, and those that went count as zeros.
"""

COUNTING_ZEROS: tuple[Edit, ...] = ("mean", "largest", "smallest")


@dataclass
class Patch:
    """A number or a tensor that a node takes, or makes, and that must follow when some units go.

    `node`: index of the node in `nodes_of`; `argument`: index of its input; `element`: index in that
    input's list, which has `length`, or None for a plain number; `labels`: the units counted, shape (n,);
    `fixed`: added to their number, for what no unit stands behind. `computed`: the number is computed from
    a number of channels, so it must be replaced as soon as any channel goes. `dtype`: it stands in a tensor of that
    type. `positions`: of `picks`, `shuffle` and `places`, which of the units each position of the result belongs to,
    −1 for none; `dim`: the dimension they run along.
    """

    node: int
    argument: int
    element: int | None
    labels: Labels
    fixed: float = 0
    computed: bool = False
    length: int = 0
    edit: Edit = "number"
    dtype: torch.dtype | None = None
    positions: Sequence[int] = ()
    dim: int = 0


@dataclass(frozen=True)
class Split:
    """A place where a reshape splits channels over several dimensions, whole slices of one of which are units.

    `node`: index of the node in `nodes_of`; `labels`: of that dimension; `others`: how many other dimensions it
    might have been.
    """

    node: int
    labels: Labels
    others: int


@dataclass(frozen=True)
class CountedPatch:
    """A patch in terms of axis indices: `members` gives (axis, index) of each unit, None for what cannot go."""

    patch: Patch
    members: list[tuple[Axis, int] | None]


# -- what is found of a model -----------------------------------------------------------------------


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are interchangeable: the outputs of one layer, or of several tied by additions.

    `members[axis]` has the length of that dimension and gives, for each index, the number of the unit
    it belongs to (0 to units−1), or −1.
    """

    layers: list[str]
    units: int
    members: dict[Axis, Labels]
    out_axes: list[Axis]
    """The axes that make the channels: their incoming weights are what a score looks at."""
    kind: Literal["channel", "head"] = "channel"
    """`head`: its units are whole heads of attention."""

    def removal(self, units: Sequence[int]) -> Removed:
        """The tensor indices that go when these units go."""
        removed: Removed = {}
        for (name, dim), unit_of in self.members.items():
            indices = np.flatnonzero(np.isin(unit_of, list(units)))
            if len(indices):
                removed.setdefault(name, {})[str(dim)] = indices.tolist()
        return removed


@dataclass(frozen=True)
class LayerUse:
    """A layer as the graph uses it. `out_axis`: the axis of its weight that makes its output channels.

    `channels`: how many of these it has; None for a layer that only passes channels on.
    """

    name: str
    kind: str
    weights: dict[str, list[int]]
    out_axis: Axis | None = None
    channels: int | None = None


@dataclass(frozen=True)
class Coupling:
    """What `find_groups` found.

    `script`: the model's TorchScript, whose nodes `patches` count; `original` runs it.
    `reasons`: layer name -> why none of its channels can go. `patches`: sizes written in the file that
    follow what is removed; they matter for TorchScript only. `output_dims`: weight name -> the dimension
    of it that makes output channels. `inlined`: the twin has its calls inlined, as fused operators had to be replaced.
    """

    script: torch.jit.ScriptModule
    original: Interpreter
    groups: list[ChannelGroup]
    reasons: dict[str, str]
    layers: list[LayerUse]
    patches: list[CountedPatch] = field(default_factory=list)
    output_dims: dict[str, int] = field(default_factory=dict)
    inlined: bool = False

    @property
    def over_all(self) -> set[int]:
        """Nodes that take the mean or the like of all channels, removed ones as zeros."""
        return over_all(self.patches)


def over_all(patches: Sequence[CountedPatch]) -> set[int]:
    """Indices of the nodes that take the mean or the like of all channels, removed ones as zeros."""
    return {each.patch.node for each in patches if each.patch.edit in COUNTING_ZEROS}
