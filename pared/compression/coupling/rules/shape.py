"""The rules of operators that look at no values: they read shapes and types, or make constants of a size."""

from __future__ import annotations

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import along
from pared.compression.coupling.rules.core import LabelTracker, rule


@rule("size")
def size(tracker: LabelTracker, call: Call) -> None:
    """size: nothing is tied, but what it counts may be channels."""
    if not tracker.frozen:
        tracker.note_size(call)


@rule("dim numel len is_floating_point is_complex __is__ __isnot__ sym_size")
@rule("prim::device prim::dtype prim::layout prim::is_nested prim::requires_grad prim::type")
@rule("rand_like is_nonzero Bool Int Float item any all isfinite")
def shape_only(tracker: LabelTracker, call: Call) -> None:
    """Reads only shape, type or device: nothing is tied."""


@rule("zeros ones full empty new_zeros new_ones new_full new_empty", also_without_labels=True)
def constant(tracker: LabelTracker, call: Call) -> None:
    """zeros, ones, full: the same everywhere, so a size that is written in the file follows what the tensor meets."""
    if tracker.frozen:
        return
    out = call.results[0]
    for position, size in enumerate(call.arguments["size"]):
        if size > 1 and tracker.is_written(call, "size", position):
            units = tracker.units.make(size)
            tracker.follow(call, "size", position, units)
            out.layers.append(along(units, position, out.tensor.dim()))
