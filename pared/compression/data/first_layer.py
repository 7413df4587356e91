"""Reads off a layer's weights what input it takes, to explain why data do not fit a model."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.interpreter import nodes_of
from pared.compression.coupling.python_values import Node


def refusal(module: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """What the first layer that cannot read its input takes, and what to do about it; None if all layers can."""
    for layer in _first_layers(module):
        if layer.input < len(inputs):
            name = "x" if len(inputs) == 1 else f"x{layer.input}"
            requirement = _requirement(layer, inputs[layer.input], name)
            if requirement is not None:
                return f"The model reads {name} with its layer {layer.name}, which takes {requirement}"
    return None


def embedding_of(module: nn.Module) -> tuple[str, int] | None:
    """Name and number of rows of the embedding that reads the model's first input as it comes, where one does."""
    for layer in _first_layers(module):
        if layer.input == 0 and layer.kind == "embedding":
            return layer.name, layer.weight.shape[0]
    return None


@dataclass(frozen=True)
class _FirstLayer:
    """The layer that reads the `input`-th input of the model first; `direct`: as it comes, not reshaped."""

    node: Node
    name: str
    weight: Tensor
    input: int
    direct: bool

    @property
    def kind(self) -> str:
        return str(self.node.kind()).removeprefix("aten::")


# -- what it takes ------------------------------------------------------------------------------


def _requirement(layer: _FirstLayer, x: Tensor, name: str) -> str | None:
    if layer.kind == "embedding":
        return f"token ids. Save {name} as int64." if x.is_floating_point() else None
    takes, advice = _features(layer, x, name) if layer.kind == "linear" else _channels(layer, x, name)
    if not x.is_floating_point():
        advice = f"{advice or ''} Save {name} as float32: integers are taken for token ids.".lstrip()
    return None if advice is None else f"{takes}. {advice}".rstrip()


def _features(layer: _FirstLayer, x: Tensor, name: str) -> tuple[str, str | None]:
    """What a linear layer takes, and what to say of x, or None where it fits."""
    features = layer.weight.shape[1]
    if layer.direct:
        return f"{features} features: shape (N, {features})", None if x.shape[-1] == features else ""
    numbers = math.prod(x.shape[1:])
    fault = f"A sample of {name} has {numbers} numbers." if numbers % features else None
    return f"{features} features, to which each sample is reshaped", fault


def _channels(layer: _FirstLayer, x: Tensor, name: str) -> tuple[str, str | None]:
    """What a convolution takes, and what to say of x, or None where it fits."""
    weight, groups = layer.weight, layer.node.namedInput("groups").toIValue()
    if not layer.direct or groups is None:  # None: computed
        return "float32 numbers", None
    transposed = "transpose" in layer.kind or (
        layer.kind == "_convolution" and layer.node.namedInput("transposed").toIValue()
    )
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    sizes = {3: "L", 4: "H, W", 5: "D, H, W"}[weight.dim()]
    takes = f"{channels} input channel{'s' * (channels != 1)}: shape (N, {channels}, {sizes})"
    if x.dim() == weight.dim():
        last = x.shape[-1] == channels
        move = f"The channels seem to come last: save numpy.moveaxis({name}, -1, 1) as {name}." if last else ""
        return takes, None if x.shape[1] == channels else move
    if x.dim() == weight.dim() - 1 and channels in {1, 3}:
        add = f"{name}[:, None]" if channels == 1 else f"{name}[:, None].repeat(3, axis=1)"
        return takes, f"The channel dimension is missing: save {add} as {name}."
    return takes, f"Save {name} in that shape."


# -- where it is --------------------------------------------------------------------------------

# The name in its graph of what a layer reads.
_READS = {
    "aten::linear": "input",
    "aten::embedding": "indices",
    "aten::_convolution": "input",
    **{f"aten::conv{kind}{n}d": "input" for kind in ("", "_transpose") for n in (1, 2, 3)},
}
_LAYOUTS = {f"aten::{name}" for name in ("flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze")}


def _first_layers(module: nn.Module) -> Iterator[_FirstLayer]:
    """For each input of the model the first layer that reads it, where nothing but a new layout lies between."""
    graph = _graph(module)
    if graph is None:
        return
    parameters = dict(module.named_parameters(remove_duplicate=False))
    inputs = [value.debugName() for value in graph.inputs()][1:]
    for node in nodes_of(graph):
        if node.kind() not in _READS:
            continue
        value, direct = node.namedInput(_READS[node.kind()]), True
        while value.node().kind() in _LAYOUTS:
            value, direct = next(value.node().inputs()), False
        weight = _path(node.namedInput("weight"))
        if value.debugName() in inputs and weight in parameters:
            index = inputs.index(value.debugName())
            inputs[index] = ""  # only the first that reads it
            yield _FirstLayer(node, weight.removesuffix(".weight"), parameters[weight], index, direct)


def _graph(module: nn.Module) -> Any:
    """The graph of the model with all calls inlined; None for a module that cannot be scripted."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.inlined_graph
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        return torch.jit.script(module).inlined_graph
    return None


def _path(value: Any) -> str:
    """The name of a parameter within the model; empty for any other value."""
    names: list[str] = []
    while value.node().kind() == "prim::GetAttr":
        names.insert(0, value.node().s("name"))
        value = next(value.node().inputs())
    return ".".join(names)
