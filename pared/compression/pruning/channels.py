"""Removes channels and neurons physically: which can go, which go first, and the smaller model.

Magnitude pruning is Han et al. 2015 (arXiv:1506.02626) for weights and Li et al. 2017 (arXiv:1608.08710)
for channels: score a unit by the sum of |w| of its incoming weights, sort, remove the lowest k %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pared.compression.architectures import build, resize
from pared.compression.coupling import ChannelGroup, Coupling, Removed, find_groups, unsound
from pared.compression.coupling.interpreter import storage_key
from pared.compression.coupling.model import merge
from pared.compression.coupling.shrink import changed_sizes, kept_part, remove
from pared.compression.loading import LoadedModel
from pared.compression.loading.folders.folder import ModelFolder
from pared.compression.names import layer_of, matches, no_match, tensors, tied_names
from pared.compression.pruning.importance import CalibrationStatistics, channel_scores
from pared.compression.pruning.other_code import with_code_that_holds
from pared.compression.pruning.schedules import Amounts
from pared.compression.pruning.uniform import NOT_SAID, SameWidth, same_widths
from pared.errors import NothingToPrune
from pared.specs import Criterion, Scope
from pared.wording import shortened


@dataclass(frozen=True)
class ChannelRemoval:
    """A model without the removed channels.

    `removed` is in the numbering of the model that was given. `reasons`: layer name -> why none of its
    channels could go. `output_dims`: weight name -> the dimension that counts its output channels. `units`: how many
    channels could be chosen from in each group of coupled layers; `removed_units`: how many went in all.
    """

    loaded: LoadedModel
    removed: Removed
    reasons: dict[str, str]
    output_dims: dict[str, int]
    units: dict[str, int]
    removed_units: int


def remove_channels(
    loaded: LoadedModel, example: Sequence[Tensor], *, amount: Amounts | float, round_to: int = 1, **choice: Any
) -> ChannelRemoval:
    """Remove the `amount` lowest-scored channels and neurons physically; the result is checked on the example.

    Every group of coupled layers keeps at least one channel, and the model's outputs are never touched.

    Args:
        example, choice: as `RemovableChannels` takes them.
        round_to: as in `RemovableChannels.chosen`.

    Raises:
        NothingToPrune: no channel can go; the detail names layers, operators and what to do.
    """
    return RemovableChannels(loaded, example, **choice).removal(amount, round_to)


class RemovableChannels:
    """The channels of a model that can go, found and scored once, for the removal of any amount of them.

    `units`: how many channels can be chosen from in each group of coupled layers.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        example: Sequence[Tensor],
        *,
        criterion: Criterion = "magnitude",
        scope: Scope = "layer",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        statistics: CalibrationStatistics | None = None,
        generator: torch.Generator | None = None,
        heads_alone: bool = False,
        upload_units: Mapping[str, int] | None = None,
        removed_units: int = 0,
        uniform: bool = False,
    ) -> None:
        """Find and score the channels.

        Args:
            example: the model's inputs, on CPU, in a batch of at least 2.
            statistics: for criteria that need data.
            heads_alone: take whole heads of attention, and nothing else.
            upload_units: for a later step, the `units` of the first: amounts count from these, whatever is left.
            removed_units: how many of them earlier steps removed.
            uniform: of a model folder, keep to widths that its config can say: those that one number of it counts lose
                the same share.

        Raises:
            NothingToPrune: no channel can go; the detail names layers, operators and what to do.
        """
        self._folder = loaded.folder if uniform else None
        self._loaded, self._example, self._scope, self._removed_units = loaded, example, scope, removed_units
        self._unit = "head" if heads_alone else "channel"
        self._names_of = tied_names(loaded.module)
        self._patterns, self._upload_units = (include, exclude), upload_units
        self._score = partial(channel_scores, criterion=criterion, statistics=statistics, generator=generator)
        self._made: tuple[list[list[int]], ChannelRemoval] | None = None
        self._widths: list[SameWidth] = []
        self._look(check=False)  # `removal` checks what is wanted, and looks again where that does not hold

    def _look(self, *, check: bool) -> None:
        self._checked = check
        self._coupling = find_groups(self._loaded.module, self._example, check=check)
        if self._unit == "head":
            self._coupling = _with_heads_alone(self._coupling)
        self._groups, self._reasons = _eligible(self._coupling, self._names_of, *self._patterns)
        if self._upload_units is not None:  # what could be chosen from at first: a last head is no group any more
            self._groups = [group for group in self._groups if _key(group) in self._upload_units]
        if self._groups and self._folder is not None:
            self._keep_to_widths(self._folder)
        if not self._groups:
            raise NothingToPrune(_none_removable(self._coupling, self._reasons, *self._patterns))
        self.units = {_key(group): group.units for group in self._groups}
        self._of_upload = self.units if self._upload_units is None else self._upload_units
        scales = [next(iter(layer.weights)) for layer in self._coupling.layers if layer.kind == "batch_norm"]
        self._scores = self._score(self._groups, weights=tensors(self._loaded.module), scales=scales)
        self._unsound: set[int] = set()  # groups whose removal did not hold

    def _keep_to_widths(self, folder: ModelFolder) -> None:
        """Leave out the groups whose width the config does not say; `_widths` are the others, by what it says."""
        of_upload = self._upload_units or {}
        units = [of_upload.get(_key(group), group.units) for group in self._groups]
        found = same_widths(self._groups, units, self._names_of, folder)
        kept = sorted(index for width in found for index in width.groups)
        left_out = [group for index, group in enumerate(self._groups) if index not in kept]
        if not kept:
            raise NothingToPrune(_refused({layer: NOT_SAID for group in left_out for layer in group.layers}))
        self._reasons |= {layer: NOT_SAID for group in left_out for layer in group.layers}
        place = {index: position for position, index in enumerate(kept)}
        self._widths = [SameWidth([place[index] for index in width.groups], width.steps) for width in found]
        self._groups = [self._groups[index] for index in kept]

    def chosen(self, amount: Amounts | float, round_to: int = 1) -> list[list[int]]:
        """Which channels of each group go.

        Args:
            round_to: each group keeps a multiple of so many channels of its layers, or all; never fewer than `amount`
                leaves.
        """
        amounts = amount if isinstance(amount, Amounts) else Amounts(amount)
        if self._folder is not None:
            counts = self._of_widths(amounts, round_to)
            chosen = [_lowest([score], count)[0] for score, count in zip(self._scores, counts, strict=True)]
            return [[] if index in self._unsound else units for index, units in enumerate(chosen)]
        if self._scope == "layer":
            wanted = []
            for group, (key, left) in zip(self._groups, self.units.items(), strict=True):
                of_upload = self._of_upload[key]
                wanted.append(round(amounts.of(self._layers_of(group)) * of_upload) - (of_upload - left))
            chosen = [_lowest([score], count)[0] for score, count in zip(self._scores, wanted, strict=True)]
        else:
            count = round(amounts.default * sum(self._of_upload.values())) - self._removed_units
            chosen = _lowest(self._scores, count)
        return [
            [] if index in self._unsound else _rounded(group, units, score, round_to)
            for index, (group, units, score) in enumerate(zip(self._groups, chosen, self._scores, strict=True))
        ]

    def _of_widths(self, amounts: Amounts, round_to: int) -> list[int]:
        """How many units of each group go, where those of one width lose the same share."""
        counts = [0] * len(self._groups)
        keys = list(self.units)
        for width in self._widths:
            of_upload = [self._of_upload[keys[index]] for index in width.groups]
            left = width.steps * self.units[keys[width.groups[0]]] // of_upload[0]
            share = min(amounts.of(self._layers_of(self._groups[index])) for index in width.groups)
            kept = min(left, max(1, width.steps - round(share * width.steps)))
            while kept < left and not all(
                _is_multiple(self._groups[index], kept * whole // width.steps, round_to)
                for index, whole in zip(width.groups, of_upload, strict=True)
            ):
                kept += 1
            for index, whole in zip(width.groups, of_upload, strict=True):
                counts[index] = (left - kept) * whole // width.steps
        return counts

    def _layers_of(self, group: ChannelGroup) -> list[str]:
        return [layer_of(alias) for name, _ in group.out_axes for alias in self._names_of[name]]

    def without(self, chosen: Sequence[Sequence[int]], *, to_count: bool = False) -> LoadedModel:
        """The model without these channels of each group, unchecked. `to_count`: as `remove` takes it."""
        removed: Removed = {}
        for group, units in zip(self._groups, chosen, strict=True):
            merge(removed, group.removal(units))
        return _without(self._loaded, self._coupling, removed, to_count=to_count)

    def hold(self, amount: Amounts | float, round_to: int = 1) -> bool:
        """Whether all of the chosen can go together. If not, the answers of `chosen` are others from now on.

        What is built for this is not built again where `removal` is asked for the same next.

        Raises:
            NothingToPrune: as `removal`.
        """
        chosen = self.chosen(amount, round_to)
        removal = self.removal(amount, round_to)
        if self.chosen(amount, round_to) != chosen:
            return False
        self._made = chosen, removal
        return True

    def removal(self, amount: Amounts | float, round_to: int = 1) -> ChannelRemoval:
        """The model without the `amount` lowest-scored, checked on the example; groups that do not hold stay whole.

        Raises:
            NothingToPrune: no channel goes; the detail names layers, operators and what to do.
        """
        chosen = self.chosen(amount, round_to)
        if not any(chosen):
            raise NothingToPrune(_refused(self._reasons) if self._unsound else self._less_than_one(amount, round_to))
        made, self._made = self._made, None  # given once: what is given may be trained
        if made is not None and made[0] == chosen:
            return made[1]
        removals = [group.removal(units) for group, units in zip(self._groups, chosen, strict=True)]
        built = self._loaded

        def shrunk(removed: Removed) -> nn.Module:
            nonlocal built
            built = _without(self._loaded, self._coupling, removed)
            return built.module

        failed = unsound(self._coupling.original, self._example, removals, shrunk, self._coupling.over_all)
        if failed and not self._checked:
            self._look(check=True)  # what cannot go at all has no part in the amount
            return self.removal(amount, round_to)
        for width in self._widths:  # what is not sound for one of a width cannot go from the others
            if why := next((failed[index] for index in width.groups if index in failed), None):
                failed |= {index: why for index in width.groups if index not in failed}
        for index, why in failed.items():
            self._reasons |= dict.fromkeys(self._groups[index].layers, why)
        self._unsound |= set(failed)
        removed: Removed = {}
        for index in set(range(len(self._groups))) - set(failed):
            merge(removed, removals[index])
        count = sum(len(units) for index, units in enumerate(chosen) if index not in failed)
        if not count:
            raise NothingToPrune(_refused(self._reasons))
        if failed:  # otherwise the last that was built has been checked, and is this one
            built = _without(self._loaded, self._coupling, removed)
        built = with_code_that_holds(self._loaded, built, self._example, removed)
        return ChannelRemoval(built, removed, dict(self._reasons), self._coupling.output_dims, self.units, count)

    def _less_than_one(self, amount: Amounts | float, round_to: int) -> str:
        share = amount.default if isinstance(amount, Amounts) else amount
        rounded = "" if round_to == 1 else f", and each group of layers keeps a multiple of {round_to}"
        return (
            f"An amount of {share:g} is less than one {self._unit} here: {sum(self.units.values())} {self._unit}s "
            f"can be chosen from{rounded}. Give a larger amount."
        )


def apply_removal(loaded: LoadedModel, example: Sequence[Tensor], removed: Removed) -> LoadedModel:
    """Replay a recorded removal on the same upload: how a resumed job gets its shrunk model back."""
    if not removed:
        return loaded
    smaller = _without(loaded, find_groups(loaded.module, example, check=False), removed)
    return with_code_that_holds(loaded, smaller, example, removed)


def _without(loaded: LoadedModel, coupling: Coupling, removed: Removed, *, to_count: bool = False) -> LoadedModel:
    if loaded.format != "state_dict":
        shrunk = remove(coupling.script, removed, coupling.patches, to_count=to_count)
        inlined = loaded.inlined or coupling.inlined or bool(changed_sizes(removed, coupling.patches))
        return replace(loaded, module=shrunk, inlined=inlined)
    state = dict(loaded.module.state_dict())
    by_storage = {storage_key(state[name]): by_dim for name, by_dim in removed.items()}
    state = {name: kept_part(tensor, by_storage.get(storage_key(tensor), {})) for name, tensor in state.items()}
    architecture = resize(loaded.architecture, state)
    module = build(architecture)
    module.load_state_dict(state)
    return replace(loaded, module=module.eval(), architecture=architecture)


def _with_heads_alone(coupling: Coupling) -> Coupling:
    """Raises NothingToPrune where no attention can lose heads."""
    heads = [group for group in coupling.groups if group.kind == "head"]
    if not heads:
        details = shortened([f"{layer}: {reason}" for layer, reason in coupling.reasons.items()], between="; ")
        raise NothingToPrune(
            f"No attention of this model can lose heads ({details or 'its layers have channels alone'}). "
            "Granularity `channel` removes what channels there are."
        )
    others = {layer: _NO_HEADS for group in coupling.groups if group.kind != "head" for layer in group.layers}
    return replace(coupling, groups=heads, reasons=coupling.reasons | others)


_NO_HEADS = "has no heads, which are all that the granularity `head` removes"


def _eligible(
    coupling: Coupling, names_of: Mapping[str, list[str]], include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Groups all of whose layers may be touched; a layer that is tied to an excluded one stays."""
    reasons = dict(coupling.reasons)
    groups = []
    for group in coupling.groups:
        layers = {
            layer_of(name): list(dict.fromkeys(layer_of(alias) for alias in names_of[name]))
            for name, _ in group.out_axes
        }
        barred = [layer for layer, names in layers.items() if not matches(names, include, exclude)]
        if not barred:
            groups.append(group)
            continue
        for layer in layers:
            reasons[layer] = (
                "left out by include/exclude"
                if layer in barred
                else f"its channels are tied to {', '.join(barred)}, which include/exclude leaves out"
            )
    return groups, reasons


def _key(group: ChannelGroup) -> str:
    """Names a group of coupled layers, also after some of its units went."""
    return f"{group.kind}s of {', '.join(sorted(f'{name}/{dim}' for name, dim in group.members))}"


def _lowest(scores: list[Tensor], count: int) -> list[list[int]]:
    """For each group its units among the `count` lowest of all; the best unit of a group always stays."""
    owner = np.concatenate([np.full(len(group), index) for index, group in enumerate(scores)])
    unit = np.concatenate([np.arange(len(group)) for group in scores])
    best = np.concatenate([np.arange(len(group)) == int(group.argmax()) for group in scores])
    pooled = np.where(best, math.inf, torch.cat(scores).numpy())
    lowest = np.argsort(pooled, kind="stable")[: max(0, min(count, int((~best).sum())))]
    return [sorted(unit[lowest[owner[lowest] == index]].tolist()) for index in range(len(scores))]


def _rounded(group: ChannelGroup, units: list[int], scores: Tensor, round_to: int) -> list[int]:
    """The lowest-scored of these units of a group, as many as leave a multiple of so many channels of its layers."""
    labels = group.members[group.out_axes[0]]
    step = round_to // math.gcd(round_to, int((labels >= 0).sum()) // group.units)
    kept = -(-(group.units - len(units)) // step) * step
    return sorted(sorted(units, key=lambda unit: float(scores[unit]))[: max(0, group.units - kept)])


def _is_multiple(group: ChannelGroup, kept: int, round_to: int) -> bool:
    """Whether so many units of a group are a multiple of so many channels of its layers."""
    labels = group.members[group.out_axes[0]]
    return kept * (int((labels >= 0).sum()) // group.units) % round_to == 0


def _none_removable(
    coupling: Coupling, reasons: Mapping[str, str], include: Sequence[str], exclude: Sequence[str]
) -> str:
    if coupling.groups:
        names = sorted({layer for group in coupling.groups for layer in group.layers})
        return no_match("removable channels", names, include, exclude)
    if not reasons:
        return no_match("channels", [], include, exclude)
    return _refused(reasons)


def _refused(reasons: Mapping[str, str]) -> str:
    details = shortened([f"{layer}: {reason}" for layer, reason in reasons.items()], between="; ")
    return f"No channel of this model can be removed ({details}). Granularity `weight` works on any model."
