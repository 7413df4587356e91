"""The rules of convolutions, pooling, resizing and padding."""

from __future__ import annotations

import numpy as np

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import along, spanned
from pared.compression.coupling.rules.core import LabelTracker, rule


@rule(
    "_convolution _convolution_mode convolution conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d conv_transpose3d",
    nature="layer",
)
def convolution(tracker: LabelTracker, call: Call) -> None:
    """conv1d/2d/3d, conv_transpose1d/2d/3d and the traced `_convolution`: x (N, C, ...), w (O, C/groups, ...)."""
    x, w, b = call.arguments["input"], call.arguments["weight"], call.arguments.get("bias")
    transposed = bool(call.arguments.get("transposed", "transpose" in call.kind))
    groups = int(call.arguments["groups"])
    out = call.results[0]
    batched = x.tensor.dim() == w.tensor.dim()
    channel = 1 if batched else 0
    tracker.fix(x.spanning(set(range(x.tensor.dim())) - {channel}), call, "channels in a spatial dimension")
    tracker.fix(w.spanning(set(range(2, w.tensor.dim()))), call)
    x_units = x.axis(channel)
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    depthwise = 1 < groups == len(x_units)  # its filters are along dimension 0 either way
    tracker.use(call, {"weight": w, "bias": b}, ("weight", 0 if depthwise else out_dim))
    if groups == 1:
        tracker.union(x_units, w.axis(in_dim), call, "its input channels are fixed")
        units = w.axis(out_dim)
    elif depthwise:  # a channel and its filters go together, and `groups` counts them
        tracker.patch(call, "groups", None, x_units)
        tracker.must_be_literal(call, "groups", x_units)
        multiplier = out.tensor.shape[channel] // groups
        if transposed:
            tracker.union(x_units, w.axis(0), call, "its input channels are fixed")
            tracker.fix([w.axis(1)], call, "depthwise with a multiplier")
            units = np.repeat(x_units, multiplier)
        else:
            tracker.union(np.repeat(x_units, multiplier), w.axis(0), call, "its input channels are fixed")
            units = w.axis(0)
    else:  # the number of groups stays: the same channel goes from every group
        per_group = x_units.reshape(groups, -1)
        tracker.union(per_group, per_group[:1], call, "its input channels are fixed")
        if transposed:
            tracker.union(x_units, w.axis(0), call, "its input channels are fixed")
            units = np.tile(w.axis(1), groups)
        else:
            tracker.union(per_group, w.axis(1)[None], call, "its input channels are fixed")
            units = w.axis(0)
            tracker.union(units.reshape(groups, -1), units.reshape(groups, -1)[:1], call)
    if b is not None:
        tracker.union(units, b.axis(0), call)
    if units.any():
        out.layers = [along(units, channel, out.tensor.dim())]


@rule(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d upsample_bicubic2d "
    "upsample_trilinear3d max_pool2d_with_indices max_pool1d_with_indices lp_pool2d "
    "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"
)
def spatial(tracker: LabelTracker, call: Call) -> None:
    """Pooling and resizing over the last dimensions, which must not hold the channels."""
    x, out = call.tensors[0], call.results[0]
    count = next(int(c) for c in call.kind if c.isdigit())
    spatial = set(range(x.tensor.dim() - count, x.tensor.dim()))
    tracker.fix(x.spanning(spatial), call, "channels in a spatial dimension")
    for result in call.results or [out]:
        result.layers = [layer for layer in x.layers if not spanned(layer) & spatial]


@rule("pad constant_pad_nd")
def pad(tracker: LabelTracker, call: Call) -> None:
    """pad: other dimensions than the channels."""
    x, out = call.tensors[0], call.results[0]
    padded = {d for d in range(x.tensor.dim()) if x.tensor.shape[d] != out.tensor.shape[d]}
    tracker.fix(x.spanning(padded), call, "pads the channels")
    out.layers = [layer for layer in x.layers if not spanned(layer) & padded]
