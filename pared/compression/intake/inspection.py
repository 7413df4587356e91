"""What is in a model: its layers, their shapes, and which of them can lose channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling import Coupling, find_groups
from pared.compression.intake.loaded import LoadedModel
from pared.compression.intake.recognising import recognise
from pared.compression.intake.state_dicts import read_state_dict
from pared.compression.work import ModelFile
from pared.errors import ParedError
from pared.reports import LayerInspection, ModelInspection


def inspect_model(loaded: LoadedModel, example: tuple[Tensor, ...] | None) -> ModelInspection:
    """What is in the model, and which layers can lose channels.

    Args:
        loaded: the opened upload.
        example: inputs that it takes, or None where they are not known.
    """
    notes = list(loaded.warnings)
    layers: list[LayerInspection] | None = None
    if example is None:
        notes.append(
            "The shape of the input could not be guessed, so what can be pruned is not known yet: it will be read off "
            "the data set or `example_inputs` of a job."
        )
    elif loaded.flavour != "frozen":
        try:
            layers = _layers_in_use(find_groups(loaded.module, example))
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
        layers=layers if layers is not None else _layers_with_weights(loaded.module),
        warnings=notes,
    )


def inspect_weights(file: ModelFile) -> ModelInspection | None:
    """What is in a state dict whose architecture is still to come, with a job. None: TorchScript, which needs none.

    Raises:
        UnsupportedModel: not a model we open.
    """
    container = recognise(file.path)
    if container == "torchscript":
        return None
    notes = ["A job on these weights must give the `architecture` that they belong to."]
    state = read_state_dict(file.path, container, notes)
    layers: dict[str, dict[str, list[int]]] = {}
    for name, tensor in state.items():
        layers.setdefault(name.rpartition(".")[0] or name, {})[name] = list(tensor.shape)
    elements = sum(tensor.numel() for tensor in state.values())
    return ModelInspection(
        format="state_dict",
        flavour="state_dict",
        parameters=elements,
        trainable_parameters=elements,
        layers=[
            LayerInspection(
                name=name,
                kind="weights",
                weights=shapes,
                parameters=sum(math.prod(shape) for shape in shapes.values()),
                reason="not known without the architecture",
            )
            for name, shapes in layers.items()
        ],
        warnings=notes,
    )


def _layers_in_use(coupling: Coupling) -> list[LayerInspection]:
    """Layers in the order in which the model runs them."""
    prunable = {name for group in coupling.groups for name in group.layers}
    layers = []
    for use in coupling.layers:
        can = use.name in prunable
        layers.append(
            LayerInspection(
                name=use.name,
                kind=use.kind,
                weights=use.weights,
                parameters=sum(math.prod(shape) for shape in use.weights.values()),
                channels=use.channels,
                prunable_channels=can,
                reason=None if can else coupling.reasons.get(use.name),
            )
        )
    return layers


def _layers_with_weights(module: nn.Module) -> list[LayerInspection]:
    """Layers as the module lists them, where the graph could not be followed."""
    layers = []
    for name, layer in module.named_modules():
        weights = {f"{name}.{key}" if name else key: list(t.shape) for key, t in layer.named_parameters(recurse=False)}
        if not weights:
            continue
        kind = layer.original_name if isinstance(layer, torch.jit.ScriptModule) else type(layer).__name__
        parameters = sum(math.prod(shape) for shape in weights.values())
        layers.append(LayerInspection(name=name, kind=str(kind).lower(), weights=weights, parameters=parameters))
    return layers


def _described_input(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
