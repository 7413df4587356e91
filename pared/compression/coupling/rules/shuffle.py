"""Channel shuffles read as what they are, positions: a view into groups, a transposition and a view back.

Read as views, a shuffle lets the same channels of all groups go alone. With layers in groups before and behind it that
may tie all channels to each other. Only then (`LabelTracker.loose`) is it read, and written, as a pick of positions.
"""

from __future__ import annotations

from typing import Any

import torch

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import Labels, Tracked, along, spanned
from pared.compression.coupling.rules.core import LabelTracker

_VIEWS = ("aten::view", "aten::reshape")
_BETWEEN = (("aten::transpose", "aten::permute", "aten::swapaxes"), ("aten::contiguous", "aten::clone"))


def begins_shuffle(tracker: LabelTracker, call: Call) -> bool:
    """Whether this view is the first of a shuffle's, of which nothing but its last is looked at."""
    x, node = call.tensors[0], call.node
    if not tracker.loose or tracker.frozen or call.kind not in _VIEWS or call.results[0].tensor.dim() < x.tensor.dim():
        return False
    for kinds in _BETWEEN:
        node = reader if (reader := _reader(node)) is not None and reader.kind() in kinds else node
    last = _reader(node)
    if node.kind() in _VIEWS or last is None or last.kind() not in _VIEWS:
        return False
    tracker.shuffled[last.output().debugName()] = x, tuple(call.results[0].tensor.shape)
    return True


def ends_shuffle(tracker: LabelTracker, call: Call) -> bool:
    """Whether this view is the last of a shuffle's; then its result has the channels where the shuffle puts them."""
    name = call.node.output().debugName() if tracker.shuffled else ""
    if name not in tracker.shuffled:
        return False
    (x, split), out = tracker.shuffled[name], call.results[0].tensor
    shape = tuple(x.tensor.shape)
    dim = next((dim for dim, (a, b) in enumerate(zip(shape, split, strict=False)) if a != b), 0)
    if out.shape == x.tensor.shape and split == (*shape[:dim], *split[dim : dim + 2], *shape[dim + 1 :]):
        positions = torch.arange(shape[dim]).view(split[dim : dim + 2]).t().flatten()
        if torch.equal(out, x.tensor.index_select(dim, positions)):
            pick(tracker, call, x, dim, positions)
            return True
    tracker.fix(x.layers, call, "reshapes them in a way that is not followed")
    return True


def pick(tracker: LabelTracker, call: Call, x: Tracked, dim: int, positions: torch.Tensor) -> None:
    """Let the call's result have the channels of `x` at these positions, and be written so where some go."""
    out = call.results[0]
    for layer in x.layers:
        if spanned(layer) != {dim}:
            if dim in spanned(layer):
                tracker.fix([layer], call, "shuffles them")
            else:
                out.layers.append(layer)
            continue
        units: Labels = layer.reshape(-1)
        first = next(iter(call.arguments))
        tracker.patch(call, first, None, units, edit="shuffle", positions=positions.tolist(), dim=dim)
        out.layers.append(along(units[positions.numpy()], dim, x.tensor.dim()))


def _reader(node: Any) -> Any:
    """The only node that reads the result of this one."""
    uses = node.output().uses()
    return uses[0].user if len(uses) == 1 and uses[0].offset == 0 else None
