"""Finds the channel groups of a model: runs it with labels on its weights, and checks each group by removing half."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from pared.compression.coupling.fused import unfused
from pared.compression.coupling.interpreter import Interpreter, StorageKey, storage_key
from pared.compression.coupling.labels import FIXED, Labels, Tracked, Units, along
from pared.compression.coupling.model import (
    COUNTING_ZEROS,
    Axis,
    ChannelGroup,
    CountedPatch,
    Coupling,
    Removed,
    over_all,
)
from pared.compression.coupling.python_values import UnsupportedGraph
from pared.compression.coupling.reloading import reloaded
from pared.compression.coupling.rules import LabelTracker, apply_rule
from pared.compression.coupling.shrink import remove
from pared.compression.coupling.verify import not_zero, unsound
from pared.errors import ModelFailed, telling_line


class _Registry:
    """Gives every weight its units, the same ones however often and under whichever name it is met."""

    def __init__(self, units: Units, module: nn.Module) -> None:
        self.units = units
        self.tensors: dict[str, Tensor] = {}
        self.axes: dict[Axis, Labels] = {}
        self._by_storage: dict[StorageKey, str] = {}
        self._parameters = {storage_key(parameter) for parameter in module.parameters()}
        self._buffers = {storage_key(buffer) for buffer in module.buffers()}

    def wrap(self, name: str, tensor: Tensor) -> Tracked:
        """The `Tracked` of a parameter or buffer; any other attribute cannot be sliced, so it has no units."""
        key = storage_key(tensor)
        if key not in self._parameters and key not in self._buffers:
            return Tracked(tensor)
        first = self._by_storage.setdefault(key, name) if tensor.numel() else name
        if first not in self.tensors:
            self.tensors[first] = tensor
            for dim, size in enumerate(tensor.shape):
                # A single index can't be told from a broadcast dimension and could never go anyway.
                if size > 1 and tensor.is_floating_point():
                    self.axes[first, dim] = self.units.make(size)
        layers = [
            along(self.axes[first, dim], dim, tensor.dim()) for dim in range(tensor.dim()) if (first, dim) in self.axes
        ]
        return Tracked(tensor, layers, name=first if self.is_parameter(first) else None)

    def is_parameter(self, name: str) -> bool:
        """False for a buffer: it is sliced with its channels, but neither scores them nor names a layer."""
        return storage_key(self.tensors[name]) in self._parameters


def find_groups(module: nn.Module, example: Sequence[Tensor], *, check: bool = True) -> Coupling:
    """The channel groups of a model that can be removed.

    Args:
        module: a ScriptModule, or a module that `torch.jit.trace` can trace. In eval mode, on CPU. Not changed.
        example: its inputs, with a batch of at least 2 so that nothing hides in a dimension of size 1.
        check: whether to remove some channels of each group and compare. Whoever goes on to check the very removal
            that is wanted can do without.

    Raises:
        ModelFailed: the model does not run on the example.
    """
    uploaded = scripted(module, example)
    script = unfused(uploaded, example)
    original = Interpreter(script)
    with torch.enable_grad():  # without gradients torch may take other paths than in training
        try:
            units, registry, tracker = _labelled(original, example)
            if tracker.patches:
                copy = Interpreter(reloaded(script, own_parameters=False))
                if copy.kinds() != original.kinds():
                    original = copy  # patches count the nodes of a copy through TorchScript's format
                    units, registry, tracker = _labelled(original, example)
        except UnsupportedGraph as unsupported:
            _try_out(script, example)
            reason = f"{unsupported}: this operator of the graph cannot be followed"
            return Coupling(script, original, [], dict.fromkeys(_weight_layers(script), reason), [])

    roots = {axis: units.roots(labels) for axis, labels in registry.axes.items()}
    groups = _grouped(units, roots, registry, tracker)
    patches = _counted(units, roots, tracker)
    layers = list(tracker.uses.values())
    sound, failures = _sound(script, original, example, groups, patches) if check else (groups, {})
    reasons = _reasons(units, registry, tracker, sound, failures) | _not_reached(script, registry)
    # Of a tied weight, the axis that can lose channels tells more than the one that cannot.
    output_dims = dict([*tracker.out_axes, *(axis for group in sound for axis in group.out_axes)])
    return Coupling(script, original, sound, reasons, layers, patches, output_dims, inlined=script is not uploaded)


def _labelled(original: Interpreter, example: Sequence[Tensor]) -> tuple[Units, _Registry, LabelTracker]:
    """Run the model with labels on its weights; where a mean counts removed channels as zeros, see that they are."""
    uncounted: set[int] = set()
    while True:
        labelled = _best_reading(original, example, uncounted)
        more = _not_zero(labelled, original, example)
        if not more:
            return labelled
        uncounted |= more


def _not_zero(
    labelled: tuple[Units, _Registry, LabelTracker], original: Interpreter, example: Sequence[Tensor]
) -> set[int]:
    units, registry, tracker = labelled
    nodes = {patch.node for patch in tracker.patches.values() if patch.edit in COUNTING_ZEROS}
    if not nodes:
        return set()
    averaged = sorted(_roots(units, tracker.averaged))
    gone = [averaged[index] for index in _irregular_half(len(averaged))]
    removed: Removed = {}
    for (name, dim), labels in registry.axes.items():
        indices = np.flatnonzero(np.isin(units.roots(labels), gone))
        if len(indices):
            removed.setdefault(name, {})[str(dim)] = indices.tolist()
    with torch.no_grad():
        return not_zero(original, example, removed, nodes)


def _best_reading(
    original: Interpreter, example: Sequence[Tensor], uncounted: Collection[int]
) -> tuple[Units, _Registry, LabelTracker]:
    """Of all the ways to read reshapes, the best.

    Where a reshape splits channels in a way that leaves all of them fixed, as features into (heads, 3, width) of which
    the three are then picked, another of the split's dimensions is tried; so too where the slices are not heads but
    parts of each. What makes most channels removable, and then most heads, is kept.
    """
    choices: dict[int, int] = {}
    best = latest = _labelled_with(choices, original, example, uncounted)
    while True:
        units, _, tracker = latest
        widths = _roots(units, tracker.widths)
        stuck = [split for split in tracker.splits if widths.issuperset(_roots(units, [split.labels]))]
        later = {split.node: choices.get(split.node, 0) + 1 for split in stuck}
        later = {node: turn for node, turn in later.items() if turn <= max(s.others for s in stuck if s.node == node)}
        if not later:
            return _loosened(best, original, example, uncounted)
        choices = choices | later
        latest = _labelled_with(choices, original, example, uncounted)
        best = max(best, latest, key=_gain)


def _loosened(
    best: tuple[Units, _Registry, LabelTracker],
    original: Interpreter,
    example: Sequence[Tensor],
    uncounted: Collection[int],
) -> tuple[Units, _Registry, LabelTracker]:
    """Where a shuffle ties all channels of a grouped layer to each other, try others of each group than the same."""
    units, _, tracker = best
    loose = {
        call.index
        for groups, call in tracker.balanced
        if len(members := np.unique(units.roots(groups))) == 1 and members[0] != FIXED
    }
    if not loose:
        return best
    return max(best, _labelled_with(tracker.choices, original, example, uncounted, loose), key=_choosable)


def _choosable(labelled: tuple[Units, _Registry, LabelTracker]) -> tuple[tuple[int, int], int]:
    units, registry, _ = labelled
    return _gain(labelled), len(_roots(units, registry.axes.values()))


def _labelled_with(
    choices: Mapping[int, int],
    original: Interpreter,
    example: Sequence[Tensor],
    uncounted: Collection[int],
    loose: Collection[int] = (),
) -> tuple[Units, _Registry, LabelTracker]:
    units = Units()
    registry = _Registry(units, original.module)
    tracker = LabelTracker(units, choices=choices, loose=loose, not_zero=uncounted)
    output = original.run(example, registry.wrap, partial(apply_rule, tracker))
    for tracked in _outputs(output):
        for layer in tracked.layers:
            units.fix(layer, "the model's output")
        tracker.count_removed_as_zeros(tracked.statistic, "the model's output")
    tracker.settle()
    return units, registry, tracker


def _gain(labelled: tuple[Units, _Registry, LabelTracker]) -> tuple[int, int]:
    units, registry, tracker = labelled
    removable = sum(int(units.roots(labels).astype(bool).sum()) for labels in registry.axes.values())
    return removable, len(_roots(units, tracker.heads))


def _roots(units: Units, labels: Iterable[Labels]) -> set[int]:
    """The removable units among these."""
    return {root for some in labels for root in np.unique(units.roots(some)).tolist()} - {FIXED}


def scripted(module: nn.Module, example: Sequence[Tensor]) -> torch.jit.ScriptModule:
    """The module, or a TorchScript twin of it with its tensors under the same names."""
    if isinstance(module, torch.jit.ScriptModule):
        return module
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # tracing warns of literals; those are looked at here
        try:
            traced: torch.jit.ScriptModule = torch.jit.trace(module, tuple(example), check_trace=False)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise _failed(error) from error
    return traced


def _try_out(module: nn.Module, example: Sequence[Tensor]) -> None:
    """Run the model itself: if it does not fail, what failed is our analysis."""
    try:
        with optimized_execution(False):  # no time for fusing what runs once
            module(*example)
    except Exception as error:
        raise _failed(error) from error


def _failed(error: Exception) -> ModelFailed:
    return ModelFailed(f"The model failed on an example of its inputs: {telling_line(error)}")


def _grouped(
    units: Units, roots: Mapping[Axis, Labels], registry: _Registry, tracker: LabelTracker
) -> list[ChannelGroup]:
    """Units that live on exactly the same axes make one group."""
    group_of = np.zeros(len(units), dtype=np.int64)
    axes_of: list[list[Axis]] = [[]]
    for axis, labels in roots.items():
        on = np.unique(labels[labels != FIXED])
        known, position = np.unique(group_of[on], return_inverse=True)  # each splits into those on the axis and others
        group_of[on] = len(axes_of) + position
        axes_of += [[*axes_of[group], axis] for group in known.tolist()]
    heads = _roots(units, tracker.heads)
    order = {axis: index for index, axis in enumerate(roots)}
    by_group = {group: np.flatnonzero(group_of == group) for group in np.unique(group_of[group_of > 0]).tolist()}
    groups = []
    for group, members in sorted(by_group.items(), key=lambda item: (order[axes_of[item[0]][0]], item[1][0])):
        axes = axes_of[group]
        noted = [axis for axis in axes if axis in tracker.out_axes]
        outs = noted or [axis for axis in axes if _makes(registry, axis)]
        # A group is the outputs of some layer and is read by another, or by the same; anything else is not a channel,
        # such as the vectors for positions that the example does not reach.
        if not outs or len(members) < 2 or not (noted or len({name for name, _ in axes}) > 1):
            continue
        number = np.full(len(units), -1, dtype=np.int64)
        number[members] = np.arange(len(members))
        layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name, _ in outs))
        unit_of = {axis: number[roots[axis]] for axis in axes}
        kind: Literal["channel", "head"] = "head" if heads.issuperset(members.tolist()) else "channel"
        groups.append(ChannelGroup(layers, len(members), unit_of, outs, kind))
    return groups


def _makes(registry: _Registry, axis: Axis) -> bool:
    """Whether an axis of which no operator said so makes channels: torch's layers keep (out, in)."""
    name, dim = axis
    return dim == 0 and registry.tensors[name].dim() >= 2 and registry.is_parameter(name)


def _counted(units: Units, roots: Mapping[Axis, Labels], tracker: LabelTracker) -> list[CountedPatch]:
    """Patches in terms of weight indices, which stay meaningful when units are numbered anew."""
    counts = [(patch, units.roots(patch.labels)) for patch in tracker.patches.values()]
    wanted = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(of_patch for _, of_patch in counts)]))
    owner: dict[int, tuple[Axis, int]] = {}
    for axis, labels in roots.items():
        for index in np.flatnonzero(np.isin(labels, wanted[wanted != FIXED])).tolist():
            owner.setdefault(int(labels[index]), (axis, index))
    counted = [CountedPatch(patch, [owner.get(root) for root in of_patch.tolist()]) for patch, of_patch in counts]
    return [each for each in counted if any(each.members) or each.patch.computed]


def _sound(
    script: torch.jit.ScriptModule,
    original: Interpreter,
    example: Sequence[Tensor],
    groups: list[ChannelGroup],
    patches: list[CountedPatch],
) -> tuple[list[ChannelGroup], dict[Axis, str]]:
    """The groups that survive the check, and for the axes of each other one why not."""
    removals = [group.removal(_irregular_half(group.units)) for group in groups]
    failed = unsound(original, example, removals, lambda removed: remove(script, removed, patches), over_all(patches))
    sound = [group for index, group in enumerate(groups) if index not in failed]
    return sound, {axis: why for index, why in failed.items() for axis in groups[index].members}


def _irregular_half(units: int) -> list[int]:
    """Half of the units, in no pattern that a wrong rule could happen to keep; at least one goes and one stays."""
    return sorted(np.random.default_rng(0).permutation(units)[: units // 2].tolist())


def _reasons(
    units: Units, registry: _Registry, tracker: LabelTracker, sound: list[ChannelGroup], failed_on: dict[Axis, str]
) -> dict[str, str]:
    """For each layer none of whose output channels can go: why."""
    prunable = {axis for group in sound for axis in group.members}
    reasons: dict[str, str] = {}
    averaged = _roots(units, tracker.averaged)
    for layer, use in tracker.uses.items():
        axis = use.out_axis
        if axis is None or axis in prunable:
            continue
        if axis not in registry.axes:
            reasons[layer] = "it has a single output channel"
            continue
        fixed = [units.fixed_reason(int(label)) for label in registry.axes[axis]]
        tied = units.tied_reason(int(registry.axes[axis][0]))
        alone = f"{tied} ties all its channels to each other" if tied else "each of its channels is read by itself"
        failed = failed_on.get(axis, alone)
        if axis in failed_on and averaged & _roots(units, [registry.axes[axis]]):
            failed = f"a mean, a maximum or the like is taken over its channels, and without some of them {failed}"
        reasons[layer] = next((reason for reason in fixed if reason), failed)
    return reasons


NOT_REACHED = "not reached by the given inputs"


def _not_reached(script: torch.jit.ScriptModule, registry: _Registry) -> dict[str, str]:
    """The layers that the example does not run, as it takes another branch or nothing calls them."""
    reached = {storage_key(tensor) for tensor in registry.tensors.values()}
    weights = [(name, tensor) for name, tensor in script.named_parameters() if tensor.dim() >= 2]
    ran = {_layer(name) for name, tensor in weights if storage_key(tensor) in reached}
    return {layer: NOT_REACHED for name, _ in weights if (layer := _layer(name)) not in ran}


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def _weight_layers(script: torch.jit.ScriptModule) -> list[str]:
    return list(dict.fromkeys(_layer(name) for name, tensor in script.named_parameters() if tensor.dim() >= 2))


def _outputs(value: object) -> list[Tracked]:
    if isinstance(value, Tracked):
        return [value]
    if isinstance(value, dict):
        return [tracked for item in value.values() for tracked in _outputs(item)]
    if isinstance(value, (list, tuple)):
        return [tracked for item in value for tracked in _outputs(item)]
    return []
