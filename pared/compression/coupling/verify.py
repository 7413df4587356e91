"""Verifies removals: the shrunk model must answer as the original does with the same channels zeroed."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from pared.compression.coupling.interpreter import Call, Interpreter, StorageKey, storage_key
from pared.compression.coupling.labels import Tracked, Units, along
from pared.compression.coupling.model import Removed, merge
from pared.compression.coupling.python_values import UnsupportedGraph
from pared.compression.coupling.rules import (
    MAY_COUNT_ZEROS,
    REDUCTIONS,
    SOFTMAX,
    LabelTracker,
    apply_rule,
    reduced_dims,
)
from pared.compression.coupling.shrink import kept_part, tensors_of
from pared.errors import telling_line

TOLERANCE = 1e-5
"""Largest difference allowed, relative to the largest reference output (and to 1)."""


class Mismatch(Exception):
    """The shrunk model fails, or does not answer as the original with those channels zeroed."""


def unsound(
    original: Interpreter,
    example: Sequence[Tensor],
    removals: Sequence[Removed],
    shrunk: Callable[[Removed], nn.Module],
    over_all: Container[int] = (),
) -> dict[int, str]:
    """Which of these removals must be left out, so that all others hold together: its position -> why.

    Args:
        removals: of the original, one for each group of channels.
        shrunk: makes the shrunk model of a removal; where it raises, that removal does not hold.
        over_all: nodes for which removed channels count as zeros; see `zeroed_outputs`.
    """

    def attempt(indices: list[int]) -> None:
        removed: Removed = {}
        for index in indices:
            merge(removed, removals[index])
        check(original, example, removed, _built(shrunk, removed), over_all)

    return failing(len(removals), attempt)


def failing(count: int, attempt: Callable[[list[int]], None]) -> dict[int, str]:
    """Which of `count` removals must be left out, so that all others hold together: its position -> why.

    Args:
        attempt: raises `Mismatch` where these do not hold together.
    """
    failed: dict[int, str] = {}
    if count:
        _held(attempt, failed, [], list(range(count)))
    return failed


def _held(attempt: Callable[[list[int]], None], failed: dict[int, str], kept: list[int], some: list[int]) -> list[int]:
    """Those of `some` that hold together with `kept`, which do: halving on failure; the others go into `failed`."""
    try:
        attempt([*kept, *some])
    except Mismatch as mismatch:
        if len(some) == 1:
            failed[some[0]] = str(mismatch)
            return []
        half = len(some) // 2
        left = _held(attempt, failed, kept, some[:half])
        return left + _held(attempt, failed, kept + left, some[half:])
    return some


def _built(shrunk: Callable[[Removed], nn.Module], removed: Removed) -> nn.Module:
    try:
        return shrunk(removed)
    except Exception as error:
        raise Mismatch(f"the shrunk model cannot be built: {telling_line(error)}") from error


def check(
    original: Interpreter,
    example: Sequence[Tensor],
    removed: Removed,
    shrunk: nn.Module,
    over_all: Container[int] = (),
) -> None:
    """Raise `Mismatch` unless `shrunk` answers the example as `original` does with the removed channels zeroed."""
    try:
        expected = zeroed_outputs(original, example, removed, over_all)
    except UnsupportedGraph as unsupported:  # an assertion of the model's own, say
        raise Mismatch(f"the original does not run with those channels zeroed: {unsupported}") from unsupported
    compare(expected, example, shrunk, "those channels")


def compare(expected: Sequence[Tensor], example: Sequence[Tensor], shrunk: nn.Module, zeroed: str) -> None:
    """Raise `Mismatch` unless `shrunk` answers the example as expected. `zeroed`: for the message, what it lacks."""
    try:
        actual = answers(shrunk, example)
    except Exception as error:
        raise Mismatch(f"the shrunk model does not run: {telling_line(error)}") from error
    for want, got in zip(expected, actual, strict=True):
        if want.shape != got.shape:
            raise Mismatch(f"the output's shape would change from {tuple(want.shape)} to {tuple(got.shape)}")
        if not want.is_floating_point():
            continue
        difference = relative_difference(got, want)
        if not difference <= TOLERANCE:
            raise Mismatch(f"the output would differ by {difference:.2g} from the original with {zeroed} zeroed")


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest finite number that is expected (and to 1); NaN is above any limit.

    NaN where NaN is expected, and an infinity where it is expected, are no difference.
    """
    if not expected.numel():
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    finite = expected[expected.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return float((actual - expected).abs().masked_fill(same, 0.0).max()) / max(1.0, size)


def answers(module: nn.Module, example: Sequence[Tensor]) -> list[Tensor]:
    """All tensors that a model gives, in order."""
    with torch.no_grad(), optimized_execution(False):  # no time for fusing what runs once
        return flat_tensors(module(*example))


def not_zero(original: Interpreter, example: Sequence[Tensor], removed: Removed, nodes: Container[int]) -> set[int]:
    """Which of these nodes are given something else than zeros for what is removed, as a softmax of zeros is."""
    found: set[int] = set()

    def look(call: Call, removed_unit: int) -> None:
        x = call.tensors[0]
        for layer in x.layers:
            gone = torch.from_numpy(np.broadcast_to(layer == removed_unit, tuple(x.tensor.shape)).copy())
            if bool((x.tensor[gone].abs() > TOLERANCE).any()):
                found.add(call.index)

    zeroed_outputs(original, example, removed, nodes, look)
    return found


def zeroed_outputs(
    original: Interpreter,
    example: Sequence[Tensor],
    removed: Removed,
    over_all: Container[int] = (),
    look: Callable[[Call, int], None] = lambda call, removed_unit: None,
) -> list[Tensor]:
    """The original's outputs with the removed slices zeroed; norms take their statistics over what is kept.

    Args:
        over_all: indices of nodes whose mean, or the like, is of all channels instead, as it is no part of a norm.
        look: is shown these, with the unit that marks what is removed.
    """
    units = Units()
    removed_unit, kept_unit = units.make(2)
    tensors = tensors_of(original.module)
    by_storage = {storage_key(tensors[name]): by_dim for name, by_dim in removed.items()}
    # Buffers alone, which a file may write into. Of parameters there is one more at a time, and not all at once.
    buffers = {storage_key(buffer) for buffer in original.module.buffers()}
    zeroed: dict[StorageKey, Tensor] = {}

    def wrap(name: str, tensor: Tensor) -> Tracked:
        key = storage_key(tensor)
        by_dim = by_storage.get(key, {})
        part = zeroed.get(key, tensor)
        if by_dim and part is tensor:
            part = tensor.detach().clone()
            for dim, indices in by_dim.items():
                part.index_fill_(int(dim), torch.tensor(indices), 0)
            if key in buffers:
                zeroed[key] = part
        layers = []
        for dim, indices in by_dim.items():
            labels = np.full(tensor.shape[int(dim)], kept_unit, dtype=np.int64)
            labels[indices] = removed_unit
            layers.append(along(labels, int(dim), tensor.dim()))
        return Tracked(part, layers, name=name)

    tracker = LabelTracker(units, frozen=True)

    def visit(call: Call) -> None:
        apply_rule(tracker, call)
        if call.kind in MAY_COUNT_ZEROS and call.index in over_all:  # what calls the file's own forward has no index
            look(call, int(removed_unit))
        else:
            _over_kept(call, int(removed_unit))

    # Which elements are removed matters to norms and reductions alone; without one, following them is idle.
    follow = original.holds(kind + in_place for kind in [*_NORMS, *REDUCTIONS] for in_place in ("", "_"))
    with torch.no_grad():
        return flat_tensors(original.run(example, wrap, visit if follow else lambda call: None))


def _over_kept(call: Call, removed_unit: int) -> None:
    """Let norms, softmax and reductions over removed elements see the kept ones alone; a norm's others are zero."""
    kind = call.kind.removesuffix("_")
    if kind in REDUCTIONS:
        _reduce_kept(call, removed_unit)
        return
    norm = _NORMS.get(kind)
    if norm is None:
        return
    x: Tracked = call.tensors[0]
    layers = [layer for layer in call.results[0].layers if (layer == removed_unit).any()]
    if not layers:
        return
    (layer,) = layers  # rules keep channels along one dimension
    dim = int(np.argmax(layer.shape))
    if kind in SOFTMAX and call.arguments["dim"] % x.tensor.dim() != dim:
        return  # of what is zero, it is not
    removed = np.flatnonzero(layer.reshape(-1) == removed_unit).tolist()
    kept = [index for index in range(layer.shape[dim]) if index not in set(removed)]
    part = norm(call, kept_part(x.tensor, {str(dim): removed}), dim, len(kept), removed)
    result = torch.zeros_like(x.tensor)
    result.index_copy_(dim, torch.tensor(kept), part)
    call.outputs[0].tensor = result


def _reduce_kept(call: Call, removed_unit: int) -> None:
    x: Tracked = call.tensors[0]
    removed = {
        str(int(np.argmax(layer.shape))): np.flatnonzero(layer.reshape(-1) == removed_unit).tolist()
        for layer in x.layers
        if (layer == removed_unit).any()
    }
    if "other" in call.arguments or not removed.keys() & set(map(str, reduced_dims(call))):
        return
    kept = kept_part(x.tensor, {dim: removed[dim] for dim in removed if int(dim) in reduced_dims(call)})
    for out, result in zip(call.results, call.run_again({id(x): kept}), strict=True):
        out.tensor = result


def _softmax(call: Call, x: Tensor, dim: int, kept: int, removed: list[int]) -> Tensor:
    return call.run_again({id(call.tensors[0]): x})[0]


def _layer_norm(call: Call, x: Tensor, dim: int, kept: int, removed: list[int]) -> Tensor:
    shape = list(x.shape[x.dim() - len(call.arguments["normalized_shape"]) :])
    parts = []
    for name in ("weight", "bias"):
        part = call.arguments.get(name)
        offset = dim - (x.dim() - len(shape))
        parts.append(None if part is None else kept_part(part.tensor, {str(offset): removed} if offset >= 0 else {}))
    if call.kind == "aten::rms_norm":
        return torch.nn.functional.rms_norm(x, shape, parts[0], call.arguments["eps"])
    return torch.nn.functional.layer_norm(x, shape, parts[0], parts[1], call.arguments["eps"])


def _group_norm(call: Call, x: Tensor, dim: int, kept: int, removed: list[int]) -> Tensor:
    groups = int(call.arguments["num_groups"])
    channels = kept + len(removed)
    parts = [call.arguments.get(name) for name in ("weight", "bias")]
    weight, bias = (None if part is None else kept_part(part.tensor, {"0": removed}) for part in parts)
    groups = kept if groups == channels else groups
    return torch.nn.functional.group_norm(x, groups, weight, bias, call.arguments["eps"])


_NORMS: dict[str, Any] = {
    "aten::layer_norm": _layer_norm,
    "aten::rms_norm": _layer_norm,
    "aten::group_norm": _group_norm,
    **dict.fromkeys(SOFTMAX, _softmax),
}


def flat_tensors(value: Any) -> list[Tensor]:
    """All tensors of a module's output, in order."""
    if isinstance(value, Tracked):
        return [value.tensor]
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in flat_tensors(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in flat_tensors(item)]
    return []
