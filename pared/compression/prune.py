"""Pruning: amounts, masks for single weights, and the physical removal of channels; scores come from `criteria`.

Magnitude pruning is Han et al. 2015 (arXiv:1506.02626) for weights and Li et al. 2017 (arXiv:1608.08710)
for channels: score a unit by the sum of |w| of its incoming weights, sort, remove the lowest k %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pared.compression.architectures import build, resize
from pared.compression.coupling import ChannelGroup, Coupling, Removed, compose_removed, find_groups, unsound
from pared.compression.coupling.groups import merge
from pared.compression.coupling.shrink import StorageKey, changed_sizes, kept_part, remove, storage_key
from pared.compression.criteria import Evidence, channel_scores, weight_scores
from pared.compression.intake import LoadedModel
from pared.errors import NothingToPrune
from pared.specs import Criterion, PruneSpec

Scope = Literal["global", "layer"]

__all__ = [
    "ChannelRemoval",
    "Masks",
    "apply_removal",
    "compose_removed",
    "remove_channels",
    "step_amounts",
    "tensors",
    "tied_names",
    "unmatched_patterns",
    "weight_layers",
    "weight_masks",
]


def step_amounts(spec: PruneSpec) -> list[float]:
    """The share removed in all after each step: geometric, so that each step removes the same share of what is left."""
    if spec.schedule == "one_shot":
        return [spec.amount]
    return [1 - (1 - spec.amount) ** (step / spec.steps) for step in range(1, spec.steps)] + [spec.amount]


# -- weights ------------------------------------------------------------------------------------


class Masks:
    """Which weights live: tensor name -> bool tensor of its shape, True where kept."""

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        self.kept = dict(kept)

    def apply(self, module: nn.Module) -> None:
        """Set every pruned weight to exactly zero."""
        with torch.no_grad():
            for name, parameter in self._of(module):
                parameter.mul_(self.kept[name].to(parameter.device))
                # A product keeps the sign of zero and NaN; a pruned weight is +0.
                parameter.masked_fill_(~self.kept[name].to(parameter.device), 0.0)

    def mask_gradients(self, module: nn.Module) -> None:
        """Zero the gradients of pruned weights, so that momentum never learns of them."""
        for name, parameter in self._of(module):
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~self.kept[name].to(parameter.device), 0.0)

    def sparsity(self) -> float:
        """Share of pruned weights among those that the masks cover."""
        total = sum(mask.numel() for mask in self.kept.values())
        return 1 - sum(int(mask.sum()) for mask in self.kept.values()) / total if total else 0.0

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return dict(self.kept)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Masks:
        """Masks from a checkpoint."""
        return cls(state)

    def _of(self, module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in module.named_parameters() if name in self.kept)


def weight_masks(
    module: nn.Module,
    *,
    amount: float,
    criterion: Criterion = "magnitude",
    scope: Scope = "global",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    evidence: Evidence | None = None,
    generator: torch.Generator | None = None,
) -> Masks:
    """Masks that remove the `amount` lowest-scored single weights, exactly round(amount · n) of n.

    Biases and norms are never pruned: eligible are float tensors of two or more dimensions in layers
    that match under one of their names and are excluded under none. A pruned weight's score is 0, so a later, larger
    amount keeps what an earlier one removed.

    Raises:
        NothingToPrune: no layer matches, or the model has no weights.
    """
    names_of = tied_names(module)
    eligible = {
        name: parameter.detach()
        for name, parameter in module.named_parameters()
        if parameter.dim() >= 2
        and parameter.is_floating_point()
        and _matches([_layer(alias) for alias in names_of[name]], include, exclude)
    }
    if not eligible:
        names = sorted(set(weight_layers(module).values()))
        raise NothingToPrune(_no_match("weights", names, include, exclude))
    scores = weight_scores(eligible, criterion, evidence=evidence, generator=generator)
    pools = [list(eligible)] if scope == "global" else [[name] for name in eligible]
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in eligible.items()}
    for names in pools:
        pooled = torch.cat([scores[name].flatten() for name in names])
        lowest = torch.argsort(pooled, stable=True)[: round(amount * len(pooled))]
        mask = torch.ones(len(pooled), dtype=torch.bool)
        mask[lowest] = False
        parts = torch.split(mask, [scores[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            kept[name] = part.reshape(eligible[name].shape)
    return Masks(kept)


# -- channels -----------------------------------------------------------------------------------


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
    loaded: LoadedModel,
    example: Sequence[Tensor],
    *,
    amount: float,
    criterion: Criterion = "magnitude",
    scope: Scope = "layer",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    evidence: Evidence | None = None,
    generator: torch.Generator | None = None,
    upload_units: Mapping[str, int] | None = None,
    gone: int = 0,
) -> ChannelRemoval:
    """Remove the `amount` lowest-scored channels and neurons physically; the result is checked on the example.

    Every group of coupled layers keeps at least one channel, and the model's outputs are never touched.

    Args:
        example: the model's inputs, on CPU, in a batch of at least 2.
        evidence: for the criteria that look at data.
        upload_units: for a later step, the `units` of the first: `amount` counts from these, whatever is left of them.
        gone: how many of them earlier steps removed.

    Raises:
        NothingToPrune: no channel can go; the detail names layers, operators and what to do.
    """
    coupling = find_groups(loaded.module, example)
    groups, reasons = _eligible(coupling, tied_names(loaded.module), include, exclude)
    if not groups:
        raise NothingToPrune(_none_removable(coupling, reasons, include, exclude))
    now = {_key(group): group.units for group in groups}
    units = now if upload_units is None else upload_units
    scores = channel_scores(
        groups,
        criterion,
        tensors(loaded.module),
        scales=[next(iter(layer.weights)) for layer in coupling.layers if layer.kind == "batch_norm"],
        evidence=evidence,
        generator=generator,
    )
    if scope == "layer":
        wanted = [round(amount * units.get(key, left)) - (units.get(key, left) - left) for key, left in now.items()]
        chosen = [_lowest([score], count)[0] for score, count in zip(scores, wanted, strict=True)]
    else:
        chosen = _lowest(scores, round(amount * sum(units.values())) - gone)
    removals = [group.removal(units_of_group) for group, units_of_group in zip(groups, chosen, strict=True)]
    built = loaded

    def shrunk(removed: Removed) -> nn.Module:
        nonlocal built
        built = _without(loaded, coupling, removed)
        return built.module

    failed = unsound(coupling.original, example, removals, shrunk)
    for index, why in failed.items():
        reasons |= dict.fromkeys(groups[index].layers, why)
    removed: Removed = {}
    for index in set(range(len(groups))) - set(failed):
        merge(removed, removals[index])
    count = sum(len(units_of_group) for index, units_of_group in enumerate(chosen) if index not in failed)
    if failed and not count:
        raise NothingToPrune(_refused(reasons))
    if not count:
        raise NothingToPrune(
            f"An amount of {amount:g} is less than one channel here: {sum(now.values())} channels can be chosen from. "
            "Give a larger amount."
        )
    if failed:  # otherwise the last that was built has been checked, and is this one
        built = _without(loaded, coupling, removed)
    return ChannelRemoval(built, removed, reasons, coupling.output_dims, now, count)


def apply_removal(loaded: LoadedModel, example: Sequence[Tensor], removed: Removed) -> LoadedModel:
    """Replay a recorded removal on the same upload: how a resumed job gets its shrunk model back."""
    if not removed:
        return loaded
    return _without(loaded, find_groups(loaded.module, example), removed)


def _without(loaded: LoadedModel, coupling: Coupling, removed: Removed) -> LoadedModel:
    if loaded.format != "state_dict":
        shrunk = remove(coupling.script, removed, coupling.patches)
        return replace(loaded, module=shrunk, inlined=loaded.inlined or bool(changed_sizes(removed, coupling.patches)))
    state = dict(loaded.module.state_dict())
    by_storage = {storage_key(state[name]): by_dim for name, by_dim in removed.items()}
    state = {name: kept_part(tensor, by_storage.get(storage_key(tensor), {})) for name, tensor in state.items()}
    architecture = resize(loaded.architecture, state)
    module = build(architecture)
    module.load_state_dict(state)
    return replace(loaded, module=module.eval(), architecture=architecture)


def _eligible(
    coupling: Coupling, names_of: Mapping[str, list[str]], include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Groups all of whose layers may be touched; a layer that is tied to an excluded one stays."""
    reasons = dict(coupling.reasons)
    groups = []
    for group in coupling.groups:
        layers = {
            _layer(name): list(dict.fromkeys(_layer(alias) for alias in names_of[name])) for name, _ in group.out_axes
        }
        barred = [layer for layer, names in layers.items() if not _matches(names, include, exclude)]
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
    """Names a group of coupled layers, also after some of its channels went."""
    name, dim = group.out_axes[0]
    return f"{name}/{dim}"


def _lowest(scores: list[Tensor], count: int) -> list[list[int]]:
    """For each group its units among the `count` lowest of all; the best unit of a group always stays."""
    owner = np.concatenate([np.full(len(group), index) for index, group in enumerate(scores)])
    unit = np.concatenate([np.arange(len(group)) for group in scores])
    best = np.concatenate([np.arange(len(group)) == int(group.argmax()) for group in scores])
    pooled = np.where(best, math.inf, torch.cat(scores).numpy())
    lowest = np.argsort(pooled, kind="stable")[: max(0, min(count, int((~best).sum())))]
    return [sorted(unit[lowest[owner[lowest] == index]].tolist()) for index in range(len(scores))]


# -- names --------------------------------------------------------------------------------------


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters under all their names."""
    return dict(module.named_parameters(remove_duplicate=False))


def weight_layers(module: nn.Module) -> dict[str, str]:
    """Name of each weight tensor (of two or more dimensions) -> name of its layer."""
    return {name: _layer(name) for name, tensor in tensors(module).items() if tensor.dim() >= 2}


def tied_names(module: nn.Module) -> dict[str, list[str]]:
    """Name of each parameter -> all names of that tensor, its own among them."""
    together: dict[StorageKey, list[str]] = {}
    for name, tensor in tensors(module).items():
        together.setdefault(storage_key(tensor), []).append(name)
    return {name: names for names in together.values() for name in names}


def unmatched_patterns(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Those of the patterns that no layer with weights matches."""
    layers = set(weight_layers(module).values())
    return [pattern for pattern in patterns if not any(fnmatchcase(layer, pattern) for layer in layers)]


def _layer(tensor_name: str) -> str:
    return tensor_name.rpartition(".")[0] or tensor_name


def _matches(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a layer may be touched that goes by these names."""
    included, excluded = (any(fnmatchcase(n, p) for n in names for p in patterns) for patterns in (include, exclude))
    return included and not excluded


def _no_match(what: str, names: list[str], include: Sequence[str], exclude: Sequence[str]) -> str:
    if not names:
        return f"The model has no {what} that could be pruned. A frozen TorchScript file has none: upload it unfrozen."
    return (
        f"No layer with {what} matches include {list(include)} and exclude {list(exclude)}. "
        f"The layers are: {', '.join(names[:20])}."
    )


def _none_removable(
    coupling: Coupling, reasons: Mapping[str, str], include: Sequence[str], exclude: Sequence[str]
) -> str:
    if coupling.groups:
        names = sorted({layer for group in coupling.groups for layer in group.layers})
        return _no_match("removable channels", names, include, exclude)
    if not reasons:
        return _no_match("channels", [], include, exclude)
    return _refused(reasons)


def _refused(reasons: Mapping[str, str]) -> str:
    told = "; ".join(f"{layer}: {reason}" for layer, reason in list(reasons.items())[:10])
    return f"No channel of this model can be removed ({told}). Granularity `weight` works on any model."
