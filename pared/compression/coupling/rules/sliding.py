"""Channels along a dimension that windows slide over: each place of the result looks at neighbouring channels.

So do a 1-D convolution over channels (ECA) and local response normalisation. What slides keeps seeing every channel at
its place, zeros where one went, and what it makes of those places is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import FIXED, Labels, along, spanned
from pared.compression.coupling.rules.core import LabelTracker

MIXED = "mixes each channel with its neighbours, as it slides over the channels"


def slid_over(tracker: LabelTracker, call: Call, dims: Iterable[int], centres: Mapping[int, int]) -> list[Labels]:
    """The layers of the result along these dimensions of the call's first tensor, over which it slides.

    Args:
        centres: dimension -> which index of it the first place of the result belongs to, for those with a place for
            every index. Channels along others stay.
    """
    x, out = call.tensors[0], call.results[0]
    crossed = x.spanning(set(dims))
    if not crossed:
        return []
    dim = min(spanned(crossed[0]))
    if len(crossed) > 1 or spanned(crossed[0]) != {dim} or dim not in centres or len(call.results) > 1:
        tracker.fix(crossed, call, MIXED)
        return []
    units, size = crossed[0].reshape(-1), out.tensor.shape[dim]
    free = np.flatnonzero(units != FIXED)
    padded = len(free) > 0 and free[-1] - free[0] + 1 == size  # before it, so that there is a place for each again
    places = np.arange(size) + (free[0] if padded else centres[dim])
    inside = (places >= 0) & (places < len(units))
    labels = np.where(inside, units[places.clip(0, len(units) - 1)], FIXED)
    positions = np.where(inside, places, -1).tolist()
    tracker.patch(call, next(iter(call.arguments)), None, units, edit="places", positions=positions, dim=dim)
    return [along(labels, dim, out.tensor.dim())] if labels.any() else []


def centres(call: Call, first: int, kernel: list[int]) -> dict[int, int]:
    """Of a convolution or a pooling, as `slid_over` takes them.

    Args:
        first: the first dimension that it slides over.
        kernel: its sizes.
    """
    count = len(kernel)
    strides = _each(call.arguments.get("stride") or kernel, count)
    dilations = _each(call.arguments.get("dilation") or 1, count)
    padding = call.arguments["padding"]
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    if isinstance(padding, str):
        before = [each // 2 if padding == "same" else 0 for each in reach]
    else:
        before = _each(padding, count)
    return {
        first + index: dilations[index] * (kernel[index] // 2) - before[index]
        for index in range(count)
        if strides[index] == 1
    }


def _each(value: int | list[int], count: int) -> list[int]:
    values = [value] if isinstance(value, int) else value
    return list(values) * count if len(values) == 1 else list(values)
