"""The rules of operators that only move elements: the operator is run on the labels themselves."""

from __future__ import annotations

import math

import numpy as np
import torch

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import NO_UNITS, Labels, Tracked, along, compressed, spanned
from pared.compression.coupling.model import Split
from pared.compression.coupling.rules.core import LabelTracker, rule
from pared.compression.coupling.rules.shuffle import begins_shuffle, ends_shuffle, pick


@rule(
    "flatten squeeze unsqueeze permute transpose t numpy_T movedim swapaxes flip cat concat stack repeat "
    "view_as reshape_as pixel_unshuffle mT ravel unfold repeat_interleave",
    nature="layout",
)
def layout(tracker: LabelTracker, call: Call) -> None:
    """flatten, permute, cat...: moves all tensors that it takes."""
    _move(tracker, call, call.tensors)


def _move(tracker: LabelTracker, call: Call, operands: list[Tracked]) -> None:
    """Run the operator itself on the labels of these operands, element for element, and read where they went."""
    moved: list[list[torch.Tensor]] = []
    for dims in sorted({tuple(sorted(spanned(layer))) for t in operands for layer in t.layers}):
        full = {}
        for tracked in operands:
            fixed = np.zeros((1,) * tracked.tensor.dim(), dtype=np.int64)
            labels = next((layer for layer in tracked.layers if spanned(layer) == set(dims)), fixed)
            full[id(tracked)] = torch.from_numpy(np.broadcast_to(labels, tuple(tracked.tensor.shape)).copy())
        moved.append(call.run_again(full))
    for position, out in enumerate(call.results):
        out.layers = []
        for tensors in moved:
            layer = compressed(tracker.units, tensors[position].numpy())
            if layer is None:
                continue
            if not spanned(layer):
                tracker.fix([layer], call, "leaves a single channel")
                continue
            layer = _rectangular(tracker, call, layer)
            if out.spanning(spanned(layer)):
                tracker.fix([layer], call, "puts it in one dimension with others, whose slices go as a whole")
            if tracker.frozen or not out.spanning(spanned(layer)):
                out.layers.append(layer)


def _rectangular(tracker: LabelTracker, call: Call, layer: Labels) -> Labels:
    """Labels along one dimension alone: what is kept of a tensor must be a box.

    Where a reshape splits channels over several dimensions, whole slices of one of them go together.
    A split of the last dimension is read as (heads, width), so heads go whole, or, of features into an
    image, as (channels, height, width); one of a middle dimension as (groups, channels), so the same
    channel goes from every group. Where that leads nowhere, `find_groups` makes another choice.
    """
    dims = sorted(spanned(layer))
    if len(dims) <= 1:
        return layer
    stacked = call.arguments["dim"] % layer.ndim if call.kind == "aten::stack" else layer.ndim
    removable = [known for t in call.tensors for known in t.layers if tracker.units.roots(known).any()]
    before = {dim + (dim >= stacked) for known in removable for dim in spanned(known)}
    if call.kind in ("aten::cat", "aten::stack", "aten::index_put"):
        candidates = [next((dim for dim in dims if dim in before), dims[-1])]
    else:
        kept = dims[-1]
        if dims[-1] == layer.ndim - 1:
            kept = 1 if dims[0] == 1 and len(dims) > 2 else dims[-2]
        candidates = [kept, *(dim for dim in dims if dim != kept)]
    kept = candidates[tracker.choices.get(call.index, 0) % len(candidates)]
    first = layer
    for dim in dims:
        if dim != kept:
            first = np.take(first, [0], axis=dim)
    tracker.union(layer, first, call, "spreads the channels over several dimensions")
    tracker.splits.append(Split(call.index, first, len(candidates) - 1))
    return first if tracker.frozen else tracker.units.roots(first)


@rule(
    "view reshape expand unflatten _unsafe_view _reshape_alias",
    nature="layout",
    also_without_labels=True,  # the sizes that they take may still count channels
)
def sized_layout(tracker: LabelTracker, call: Call) -> None:
    """view, reshape, expand...: a layout whose sizes may be written in the file."""
    if ends_shuffle(tracker, call) or begins_shuffle(tracker, call):
        return
    layout(tracker, call)
    if call.kind == "aten::expand" and not tracker.frozen:
        _spread(tracker, call)
    _follow_sizes(tracker, call)


def _spread(tracker: LabelTracker, call: Call) -> None:
    """What is the same along a dimension of written size can lose any part of it: it follows what it meets."""
    x, out = call.tensors[0], call.results[0]
    new = out.tensor.dim() - x.tensor.dim()
    for dim, size in enumerate(out.tensor.shape):
        if size > 1 and (dim < new or x.tensor.shape[dim - new] == 1) and tracker.is_written(call, "size", dim):
            out.layers.append(along(tracker.units.make(size), dim, out.tensor.dim()))


def _follow_sizes(tracker: LabelTracker, call: Call) -> None:
    """Each size counts the channels of its dimension, or stays as it is though it was computed from channels."""
    name = next(n for n in ("size", "shape", "sizes") if n in call.arguments)
    offset = call.arguments["dim"] % call.tensors[0].tensor.dim() if "dim" in call.arguments else 0
    channels = {dim: layer.reshape(-1) for layer in call.results[0].layers for dim in spanned(layer)}
    for position, size in enumerate(call.arguments[name]):
        dim = position + offset
        if size == -1:
            continue
        if dim in channels:
            tracker.follow(call, name, position, channels[dim])
        else:
            tracker.follow(call, name, position, NO_UNITS, fixed=size)


@rule("expand_as")
def expand_as(tracker: LabelTracker, call: Call) -> None:
    """What is the same everywhere along a dimension has the channels of the other tensor there."""
    x, other = call.tensors[:2]
    rank = other.tensor.dim()
    own = [layer.reshape((1,) * (rank - layer.ndim) + layer.shape) for layer in x.layers]
    wide = {dim for dim in range(rank) if dim < rank - x.tensor.dim() or x.tensor.shape[dim - rank] == 1}
    call.results[0].layers = own + [layer for layer in other.layers if spanned(layer) <= wide]


@rule("slice", nature="layout")
def slice_(tracker: LabelTracker, call: Call) -> None:
    """slice(x, dim, start, end, step): along the channels, literal bounds count the kept before them."""
    x = call.tensors[0]
    dim = call.arguments["dim"] % x.tensor.dim()
    crossed = x.spanning({dim})
    if call.arguments["step"] != 1:
        tracker.fix(crossed, call, "takes every so many channels")
    size = x.tensor.shape[dim]
    for layer in crossed:
        units = layer.reshape(-1)
        for name in ("start", "end"):
            bound = call.arguments[name]
            if bound is None or bound == 0 or bound >= size:
                continue
            if bound < 0:
                tracker.fix([layer], call, "cuts the channels at a place that is counted from the end")
                continue
            tracker.follow(call, name, None, units[:bound])
    layout(tracker, call)


@rule("split split_with_sizes chunk unsafe_chunk unsafe_split unsafe_split_with_sizes", nature="layout")
def split(tracker: LabelTracker, call: Call) -> None:
    """split, chunk: parts of equal size lose equally many; listed sizes follow what each part keeps."""
    x = call.tensors[0]
    dim = call.arguments["dim"] % x.tensor.dim()
    for layer in x.spanning({dim}):
        if spanned(layer) != {dim}:
            tracker.fix([layer], call, "cuts channels that are spread over several dimensions")
            continue
        units = layer.reshape(-1)
        sizes = call.arguments.get("split_sizes", call.arguments.get("split_size"))
        if isinstance(sizes, list):
            name = "split_sizes" if "split_sizes" in call.arguments else "split_size"
            for position, part in enumerate(np.split(units, np.cumsum(sizes)[:-1])):
                tracker.follow(call, name, position, part)
            continue
        count = int(call.arguments["chunks"]) if sizes is None else math.ceil(len(units) / int(sizes))
        if len(units) % count:
            tracker.fix([layer], call, "cuts the channels into parts of unequal size")
            continue
        parts = units.reshape(count, -1)
        tracker.union(parts, parts[:1], call)
        if sizes is not None:
            name = "split_size" if "split_size" in call.arguments else "split_size_or_sections"
            tracker.follow(call, name, None, parts[0])
    layout(tracker, call)


@rule("index index_select")
def index(tracker: LabelTracker, call: Call) -> None:
    """index, index_select: picks along some dimensions, and moves all others."""
    x = call.tensors[0]
    if "dim" in call.arguments:
        picked = {call.arguments["dim"] % x.tensor.dim()}
    else:
        picked = {dim for dim, index in enumerate(call.arguments["indices"]) if index is not None}
    if any(tracked.tensor.dtype == torch.bool for tracked in call.tensors[1:]):  # a mask spans several
        picked = set(range(x.tensor.dim()))
    if len(picked) != 1 or not _follow_picks(tracker, call, x, *picked):
        tracker.fix(x.spanning(picked), call, "picks single channels")
    _move(tracker, call, [x])


def _follow_picks(tracker: LabelTracker, call: Call, x: Tracked, dim: int) -> bool:
    """Positions that stand in the file, as those of a shuffle, follow the channels. Whether they do."""
    crossed, rank = x.spanning({dim}), x.tensor.dim()
    argument, element = ("index", None) if "index" in call.arguments else ("indices", dim)
    positions = call.arguments[argument] if element is None else call.arguments[argument][element]
    written = call.input_value(argument) if element is None else tracker.written(call, argument, element)
    if (
        not all(spanned(layer) == {dim} for layer in crossed)
        or positions.tensor.dim() != 1
        or positions.tensor.dtype not in (torch.int64, torch.int32)
        or not tracker.is_constant(written)
    ):
        return False
    size = x.tensor.shape[dim]
    picks = [position % size for position in positions.tensor.tolist()]
    for layer in crossed:
        tracker.patch(call, argument, element, layer.reshape(-1), edit="picks", positions=picks, dim=dim % rank)
    return True


@rule("select unbind", nature="layout")
def select(tracker: LabelTracker, call: Call) -> None:
    """select, unbind: picking single channels fixes them."""
    x = call.tensors[0]
    dim = call.arguments["dim"] % x.tensor.dim()
    tracker.fix(x.spanning({dim}), call, "picks single channels")
    layout(tracker, call)


@rule("channel_shuffle", nature="layout")
def channel_shuffle(tracker: LabelTracker, call: Call) -> None:
    """The number of groups stays, so the same channel goes from every group."""
    x, groups = call.tensors[0], call.arguments["groups"]
    if tracker.loose and not tracker.frozen:
        pick(tracker, call, x, 1, torch.arange(x.tensor.shape[1]).view(groups, -1).t().flatten())
        return
    units = x.axis(1).reshape(groups, -1)
    tracker.union(units, units[:1], call)
    layout(tracker, call)


@rule("pixel_shuffle", nature="layout")
def pixel_shuffle(tracker: LabelTracker, call: Call) -> None:
    """Of r² neighbouring channels one is made."""
    x, r = call.tensors[0], call.arguments["upscale_factor"]
    units = x.axis(x.tensor.dim() - 3).reshape(-1, r * r)
    tracker.union(units, units[:, :1], call)
    layout(tracker, call)


@rule("roll", nature="layout")
def roll(tracker: LabelTracker, call: Call) -> None:
    """roll: along the channels a shift would no longer end at the same ones."""
    x, dims = call.tensors[0], call.arguments["dims"]
    rolled = set(range(x.tensor.dim())) if dims == [] else {dim % x.tensor.dim() for dim in dims}
    tracker.fix(x.spanning(rolled), call, "shifts the channels")
    layout(tracker, call)
