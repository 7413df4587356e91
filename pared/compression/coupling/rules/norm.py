"""The rules of norms: their parameters and statistics go with the channels that they scale."""

from __future__ import annotations

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import spanned
from pared.compression.coupling.rules.core import LabelTracker, rule
from pared.compression.coupling.rules.elementwise import broadcast


@rule("batch_norm instance_norm")
def batch_norm(tracker: LabelTracker, call: Call) -> None:
    """batch_norm, instance_norm: statistics and affine parameters a channel (dimension 1)."""
    x = call.arguments["input"]
    parts = {name: call.arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")}
    tracker.use(call, parts, None)
    tracker.fix(x.spanning(set(range(x.tensor.dim())) - {1}), call, "normalises along them as if they were places")
    for part in parts.values():
        if part is not None:
            tracker.union(x.axis(1), part.axis(0), call, "its input channels stay")
    call.results[0].layers = list(x.layers)


@rule("group_norm")
def group_norm(tracker: LabelTracker, call: Call) -> None:
    """group_norm: the number of groups stays and every group gives the same channels; or one channel a group."""
    x, groups = call.arguments["input"], int(call.arguments["num_groups"])
    parts = {name: call.arguments.get(name) for name in ("weight", "bias")}
    tracker.use(call, parts, None)
    tracker.fix(x.spanning(set(range(x.tensor.dim())) - {1}), call, "normalises along them as if they were places")
    units = x.axis(1)
    if groups == len(units):
        tracker.patch(call, "num_groups", None, units)
        tracker.must_be_literal(call, "num_groups", units)
    else:
        tracker.union(units.reshape(groups, -1), units.reshape(groups, -1)[:1], call)
    for part in parts.values():
        if part is not None:
            tracker.union(units, part.axis(0), call, "its input channels stay")
    call.results[0].layers = list(x.layers)


@rule("layer_norm rms_norm")
def layer_norm(tracker: LabelTracker, call: Call) -> None:
    """layer_norm, rms_norm over the last dimensions: affine parameters are tied to what they scale."""
    x, shape = call.arguments["input"], call.arguments["normalized_shape"]
    parts = [call.arguments.get(name) for name in ("weight", "bias")]
    tracker.use(call, {"weight": parts[0], "bias": parts[1]}, None)
    rank = x.tensor.dim()
    layers = broadcast(tracker, call, [x, *(part for part in parts if part is not None)], rank)
    for position in range(len(shape)):
        dim = rank - len(shape) + position
        for layer in x.spanning({dim}):
            if spanned(layer) == {dim}:
                tracker.follow(call, "normalized_shape", position, layer.reshape(-1))
    call.results[0].layers = layers
