"""The physical removal of channels and neurons, and how much goes in each step; scores come from `criteria`.

Magnitude pruning is Han et al. 2015 (arXiv:1506.02626) for weights and Li et al. 2017 (arXiv:1608.08710)
for channels: score a unit by the sum of |w| of its incoming weights, sort, remove the lowest k %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from pared.compression.architectures import build, resize
from pared.compression.coupling import ChannelGroup, Coupling, Removed, compose_removed, find_groups, unsound
from pared.compression.coupling.groups import merge
from pared.compression.coupling.interpreter import storage_key
from pared.compression.coupling.shrink import changed_sizes, kept_part, remove
from pared.compression.criteria import Evidence, channel_scores
from pared.compression.intake import LoadedModel
from pared.compression.names import Amounts, layer_of, matches, no_match, tensors, tied_names
from pared.errors import NothingToPrune
from pared.specs import Criterion, PruneSpec, Scope

__all__ = ["ChannelRemoval", "apply_removal", "compose_removed", "remove_channels", "step_amounts"]


def step_amounts(spec: PruneSpec) -> list[Amounts]:
    """The shares removed in all after each step, the last of which are those that the spec asks for.

    `iterative` removes the same share of what is left each time. `cubic` takes its steps for channels only; for single
    weights each is a ramp that training climbs.
    """
    asked = Amounts(spec.amount, spec.amounts)
    if spec.schedule == "iterative":
        early = [asked.each(_geometric(step / spec.steps)) for step in range(1, spec.steps)]
        return [*early, asked]
    reached = [*map(Amounts, spec.stages), asked]
    if spec.schedule == "one_shot" or spec.ramps:
        return reached
    steps: list[Amounts] = []
    for begin, end in zip([0.0, *spec.stages], reached, strict=True):
        steps += [end.each(_cubic(begin, step / spec.steps)) for step in range(1, spec.steps)]
        steps.append(end)
    return steps


def _geometric(progress: float) -> Callable[[float], float]:
    return lambda share: 1 - (1 - share) ** progress


def _cubic(begin: float, progress: float) -> Callable[[float], float]:
    return lambda end: cubic(begin, end, progress)


def cubic(begin: float, end: float, progress: float) -> float:
    """s = s_e + (s_b − s_e)(1 − t)³, of a progress t from 0 to 1. Zhu and Gupta 2017, arXiv:1710.01878."""
    return end + (begin - end) * (1 - progress) ** 3


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
    amount: Amounts | float,
    criterion: Criterion = "magnitude",
    scope: Scope = "layer",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    evidence: Evidence | None = None,
    generator: torch.Generator | None = None,
    heads_alone: bool = False,
    upload_units: Mapping[str, int] | None = None,
    gone: int = 0,
) -> ChannelRemoval:
    """Remove the `amount` lowest-scored channels and neurons physically; the result is checked on the example.

    Every group of coupled layers keeps at least one channel, and the model's outputs are never touched.

    Args:
        example: the model's inputs, on CPU, in a batch of at least 2.
        evidence: for the criteria that look at data.
        heads_alone: take whole heads of attention, and nothing else.
        upload_units: for a later step, the `units` of the first: `amount` counts from these, whatever is left of them.
        gone: how many of them earlier steps removed.

    Raises:
        NothingToPrune: no channel can go; the detail names layers, operators and what to do.
    """
    amounts = amount if isinstance(amount, Amounts) else Amounts(amount)
    coupling = find_groups(loaded.module, example)
    names_of = tied_names(loaded.module)
    if heads_alone:
        coupling = _with_heads_alone(coupling)
    groups, reasons = _eligible(coupling, names_of, include, exclude)
    if upload_units is not None:  # of what could be chosen from at first: a last head is no group of heads any more
        groups = [group for group in groups if _key(group) in upload_units]
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
        wanted = []
        for group, (key, left) in zip(groups, now.items(), strict=True):
            of_upload = units[key]
            names = [layer_of(alias) for name, _ in group.out_axes for alias in names_of[name]]
            wanted.append(round(amounts.of(names) * of_upload) - (of_upload - left))
        chosen = [_lowest([score], count)[0] for score, count in zip(scores, wanted, strict=True)]
    else:
        chosen = _lowest(scores, round(amounts.default * sum(units.values())) - gone)
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
        unit = "head" if heads_alone else "channel"
        raise NothingToPrune(
            f"An amount of {amounts.default:g} is less than one {unit} here: {sum(now.values())} {unit}s can be "
            "chosen from. Give a larger amount."
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
        told = "; ".join(f"{layer}: {reason}" for layer, reason in list(coupling.reasons.items())[:10])
        raise NothingToPrune(
            f"No attention of this model can lose heads ({told or 'its layers have channels alone'}). "
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
    told = "; ".join(f"{layer}: {reason}" for layer, reason in list(reasons.items())[:10])
    return f"No channel of this model can be removed ({told}). Granularity `weight` works on any model."
