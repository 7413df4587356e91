"""The rules of convolutions, pooling, resizing, padding and patches."""

from __future__ import annotations

import math

import numpy as np

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import FIXED, along, spanned
from pared.compression.coupling.rules.core import LabelTracker, rule
from pared.compression.coupling.rules.sliding import MIXED, centres, slid_over


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
    tracker.fix(x.spanning(set(range(channel))), call, "takes them for samples")
    slid = slid_over(
        tracker,
        call,
        range(channel + 1, x.tensor.dim()),
        {} if transposed else centres(call, channel + 1, list(w.tensor.shape[2:])),
    )
    tracker.fix(w.spanning(set(range(2, w.tensor.dim()))), call, "they are places of its filters")
    x_units = x.axis(channel)
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    depthwise = 1 < groups == len(x_units)  # its filters are along dimension 0 either way
    tracker.use(call, {"weight": w, "bias": b}, ("weight", 0 if depthwise else out_dim))
    if groups == 1:
        tracker.union(x_units, w.axis(in_dim), call, "its input channels stay")
        units = w.axis(out_dim)
    elif depthwise:  # a channel and its filters go together, and `groups` counts them
        tracker.patch(call, "groups", None, x_units)
        tracker.must_be_literal(call, "groups", x_units)
        multiplier = out.tensor.shape[channel] // groups
        if transposed:
            tracker.union(x_units, w.axis(0), call, "its input channels stay")
            tracker.fix([w.axis(1)], call, "is depthwise and makes several channels of each")
            units = np.repeat(x_units, multiplier)
        else:
            tracker.union(np.repeat(x_units, multiplier), w.axis(0), call, "its input channels stay")
            units = w.axis(0)
    else:  # the number of groups stays: the same channel goes from every group
        per_group = x_units.reshape(groups, -1)
        tracker.union(per_group, per_group[:1], call, "its input channels stay")
        if transposed:
            tracker.union(x_units, w.axis(0), call, "its input channels stay")
            units = np.tile(w.axis(1), groups)
        else:
            tracker.union(per_group, w.axis(1)[None], call, "its input channels stay")
            units = w.axis(0)
            tracker.balance(units.reshape(groups, -1), call)
    if b is not None:
        tracker.union(units, b.axis(0), call)
    out.layers = [*slid, *([along(units, channel, out.tensor.dim())] if units.any() else [])]


@rule(
    "adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d upsample_bicubic2d "
    "upsample_trilinear3d lp_pool2d "
    "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"
)
def spatial(tracker: LabelTracker, call: Call) -> None:
    """Pooling and resizing over the last dimensions, which must not hold the channels."""
    x, out = call.tensors[0], call.results[0]
    count = next(int(c) for c in call.kind if c.isdigit())
    spatial = set(range(x.tensor.dim() - count, x.tensor.dim()))
    tracker.fix(x.spanning(spatial), call, MIXED)
    for result in call.results or [out]:
        result.layers = [layer for layer in x.layers if not spanned(layer) & spatial]


@rule(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool1d_with_indices"
)
def pool(tracker: LabelTracker, call: Call) -> None:
    """Pooling in windows over the last dimensions."""
    x = call.tensors[0]
    count = next(int(c) for c in call.kind if c.isdigit())
    first = x.tensor.dim() - count
    size = call.arguments["kernel_size"]
    kernel = size * count if len(size) == 1 else size
    spatial = set(range(first, x.tensor.dim()))
    slid = slid_over(tracker, call, spatial, centres(call, first, kernel))
    for result in call.results:
        result.layers = slid + [layer for layer in x.layers if not spanned(layer) & spatial]


@rule("im2col")
def unfold(tracker: LabelTracker, call: Call) -> None:
    """unfold: (N, C, H, W) -> (N, C * places of a window, windows), a channel's places one after the other."""
    x, out = call.tensors[0], call.results[0]
    channel = x.tensor.dim() - 3
    tracker.fix(x.spanning(set(range(x.tensor.dim())) - {channel}), call, MIXED)
    units = np.repeat(x.axis(channel), math.prod(call.arguments["kernel_size"]))
    out.layers = [along(units, channel, out.tensor.dim())] if units.any() else []


@rule("col2im")
def fold(tracker: LabelTracker, call: Call) -> None:
    """fold: (N, C * places of a window, windows) -> (N, C, H, W); a channel goes with all its places."""
    x, out = call.tensors[0], call.results[0]
    channel = x.tensor.dim() - 2
    tracker.fix(x.spanning(set(range(x.tensor.dim())) - {channel}), call, MIXED)
    units = x.axis(channel).reshape(-1, math.prod(call.arguments["kernel_size"]))
    tracker.union(units, units[:, :1], call)
    if len(units) == 1:
        tracker.fix([units], call, "leaves a single channel")
    elif units.any():
        out.layers = [along(units[:, 0], channel, out.tensor.dim())]


@rule("pad constant_pad_nd")
def pad(tracker: LabelTracker, call: Call) -> None:
    """pad: what it puts before and behind the channels stays."""
    x, out = call.tensors[0], call.results[0]
    rank, sizes = x.tensor.dim(), call.arguments["pad"]
    padded = {rank - 1 - index // 2 for index, size in enumerate(sizes) if size}
    out.layers = [layer for layer in x.layers if not spanned(layer) & padded]
    for layer in x.spanning(padded):
        (dim, *others), least = sorted(spanned(layer)), min(sizes)
        if others or least < 0 or call.arguments.get("mode", "constant") != "constant":
            tracker.fix([layer], call, "pads the channels with some of themselves, or cuts some off")
            continue
        before, after = sizes[2 * (rank - 1 - dim) :][:2]
        out.layers.append(along(np.pad(layer.reshape(-1), (before, after), constant_values=FIXED), dim, rank))
