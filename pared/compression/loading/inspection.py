"""Describes a model: its layers, their shapes, and which of them can lose channels."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling import Coupling, find_groups
from pared.compression.coupling.interpreter import storage_key
from pared.compression.loading.arguments import missing_values, needs_values
from pared.compression.loading.checkpoints import TOP, undecided
from pared.compression.loading.file_format import recognise
from pared.compression.loading.loaded import LoadedModel
from pared.compression.loading.state_dicts import read_outlines, told_apart
from pared.compression.work import ModelFile
from pared.errors import ParedError
from pared.reports import LayerInspection, ModelInspection
from pared.specs.running import EXPORT_IT, GIVE_ARCHITECTURE, WITHOUT_RUNNING
from pared.wording import shortened

LITTLE = 0.2
"""Channels that hold a smaller share of the parameters are worth a warning: removing them makes no small model."""

PASSED_OVER = "pared found no channels in this layer; granularity `weight` can zero its weights"
"""Why no units go from a layer that the coupling does not know."""


_NEEDS_ARCHITECTURE = f"This file holds weights alone. {GIVE_ARCHITECTURE} {EXPORT_IT} {WITHOUT_RUNNING}"


def inspect_model(loaded: LoadedModel, example: tuple[Tensor, ...] | None) -> ModelInspection:
    """Describe the model, and which layers can lose channels.

    Args:
        loaded: the opened upload.
        example: inputs that it takes, or None where they are not known.
    """
    notes = list(loaded.warnings)
    coupling: Coupling | None = None
    if example is None:
        notes.append(
            "The shape of the input could not be guessed, so what can be pruned is not known yet: it will be read off "
            "the data set or `example_inputs` of a job."
        )
        if isinstance(loaded.module, torch.jit.ScriptModule) and needs_values(loaded.module):
            notes.append(missing_values(loaded.module).detail)
    elif loaded.flavour != "frozen":
        try:
            coupling = find_groups(loaded.module, example)
            notes += _little_to_remove(loaded.module, coupling)
        except ParedError as error:
            notes.append(f"What can be pruned could not be found out: {error.detail}")
    parameters = dict(loaded.module.named_parameters())
    return ModelInspection(
        format=loaded.format,
        flavour=loaded.flavour,
        parameters=sum(tensor.numel() for tensor in parameters.values()),
        trainable_parameters=sum(t.numel() for name, t in parameters.items() if name not in loaded.frozen_names),
        inputs=None if example is None else [_described_input(tensor) for tensor in example],
        architecture=loaded.architecture,
        layers=_layers(loaded.module, coupling),
        warnings=notes,
    )


def inspect_weights(file: ModelFile) -> ModelInspection:
    """Describe a state dict whose architecture comes later, with a job; or several, of which it will tell the one.

    Raises:
        UnsupportedModel: not a model we open, or several state dicts that no architecture tells apart.
    """
    outlines = read_outlines(file, recognise(file.path))
    notes = outlines[0].notes
    if len(outlines) > 1:
        several = undecided([each.described for each in outlines], outlines[-1].name)
        if not told_apart(outlines):
            raise several
        notes = [f"{several.detail} Or give a job the `architecture` that one of them fits."]
    layers: dict[str, dict[str, list[int]]] = {}
    for outline in outlines:
        before = f"{outline.name}." if len(outlines) > 1 and outline.name != TOP else ""
        for name, shape in outline.shapes.items():
            layers.setdefault(_layer(before + name), {})[before + name] = list(shape)
    elements = sum(math.prod(shape) for outline in outlines for shape in outline.shapes.values())
    return ModelInspection(
        format="state_dict",
        flavour="state_dict",
        parameters=elements,
        trainable_parameters=elements,
        layers=[
            LayerInspection(
                name=name,
                kind="weights",
                weights=weights,
                parameters=sum(map(math.prod, weights.values())),
                reason="channels are not known without the architecture; granularity `weight` can zero its weights",
            )
            for name, weights in layers.items()
        ],
        warnings=[_NEEDS_ARCHITECTURE, *notes],
    )


def _layers(module: nn.Module, coupling: Coupling | None) -> list[LayerInspection]:
    """The layers in the order in which the model runs them, then those that the coupling does not know.

    Args:
        coupling: None where it could not be found out.
    """
    layers = {} if coupling is None else _layers_in_use(coupling)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    listed = {storage_key(parameters[name]) for layer in layers.values() for name in layer.weights}
    groups = [] if coupling is None else coupling.groups
    followed = {name: group.layers for group in groups for name, _ in group.members}
    for name, tensor in parameters.items():
        if storage_key(tensor) in listed:
            continue
        listed.add(storage_key(tensor))  # a tied tensor counts once
        where = _layer(name)
        if where not in layers:
            layers[where] = LayerInspection(name=where, kind=_kind(module, where), weights={}, parameters=0)
        layer = layers[where]
        layer.weights[name] = list(tensor.shape)
        layer.parameters += tensor.numel()
        if coupling is not None and tensor.dim() >= 2 and not layer.prunable_channels and layer.reason is None:
            with_others = followed.get(name)
            layer.reason = coupling.reasons.get(
                where, f"loses channels with {shortened(with_others)}" if with_others else PASSED_OVER
            )
    return list(layers.values())


def _layers_in_use(coupling: Coupling) -> dict[str, LayerInspection]:
    prunable = {name for group in coupling.groups for name in group.layers}
    return {
        use.name: LayerInspection(
            name=use.name,
            kind=use.kind,
            weights=use.weights,
            parameters=sum(math.prod(shape) for shape in use.weights.values()),
            channels=use.channels,
            prunable_channels=use.name in prunable,
            reason=None if use.name in prunable else coupling.reasons.get(use.name),
        )
        for use in coupling.layers
    }


def _little_to_remove(module: nn.Module, coupling: Coupling) -> list[str]:
    """Says so where most parameters belong to no channel that can be removed."""
    if not coupling.groups:
        return [
            "No channel of this model can be removed; each layer says why. Granularity `weight` works on any model."
        ]
    parameters = dict(module.named_parameters(remove_duplicate=False))
    keys = {name: storage_key(tensor) for name, tensor in parameters.items()}
    removable: Counter[Any] = Counter()  # indices of each dimension of each tensor
    for group in coupling.groups:
        for (name, dim), unit_of in group.members.items():
            if name in keys:  # not a buffer
                removable[keys[name], dim] += int((unit_of >= 0).sum())
    # An element stays if none of its indices can go. Tied tensors are counted once.
    fixed: Counter[str] = Counter()
    for name, tensor in module.named_parameters():
        fixed[_layer(name)] += math.prod(size - removable[keys[name], dim] for dim, size in enumerate(tensor.shape))
    total = sum(tensor.numel() for tensor in module.parameters())
    share = 1 - fixed.total() / total
    if share >= LITTLE:
        return []
    most = ", ".join(f"{layer} ({count:,})" for layer, count in fixed.most_common(3) if count)
    note = (
        f"The channels that can be removed hold only {100 * share:.1f} % of the parameters, so the model cannot shrink "
        f"by more than that. Most of the rest is in {most}; each layer says why."
    )
    return [note]


def _layer(tensor_name: str) -> str:
    return tensor_name.rpartition(".")[0] or tensor_name


def _kind(module: nn.Module, layer: str) -> str:
    """The class of a layer in lower case; a tensor that belongs to no layer is a parameter."""
    owner = dict(module.named_modules(remove_duplicate=False)).get(layer)
    if owner is None:
        return "parameter"
    return str(owner.original_name if isinstance(owner, torch.jit.ScriptModule) else type(owner).__name__).lower()


def _described_input(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
