"""Finds the torchvision architecture that a state dict belongs to, by the names and shapes of its tensors."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from pared.compression.architectures.building import layer_list
from pared.compression.architectures.layers import MODULES, PARAMETERS, Layer, leaves_of, make_module, read_layers
from pared.compression.architectures.torchvision import FAMILIES

Shape = tuple[int, ...]


def tensor_shapes(architecture: Any) -> dict[str, Shape]:
    """The names and shapes of an architecture's state dict, without building it.

    Raises:
        InvalidArchitecture: as `build`.
    """
    shapes: dict[str, Shape] = {}
    for leaf in leaves_of(read_layers(layer_list(architecture))):
        for name, shape in _own_shapes(leaf).items():
            shapes[f"{leaf.name}.{name}" if name else leaf.name] = shape
    return shapes


def candidates(shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[dict[str, Any], dict[str, Shape]]]:
    """Architectures that have a distinctive tensor of this state dict, with their options as its shapes say.

    Args:
        shapes: of the state dict, by name; a prefix may stand before the names.

    Yields:
        `{"name": …, "kwargs": …}`, and what `tensor_shapes` says of it.
    """
    names = {current_name(name): shape for name, shape in shapes.items()}
    for marks, members in FAMILIES:
        for prefix in dict.fromkeys(name.removesuffix(mark) for mark in marks for name in _ending(names, mark)):
            under = {name.removeprefix(prefix): shape for name, shape in names.items() if name.startswith(prefix)}
            for name, write in members.items():
                expected = tensor_shapes({"name": name})
                if not all(each in under for each in expected if not each.endswith(".num_batches_tracked")):
                    continue  # options change shapes, and no names
                usual = {key: each.default for key, each in inspect.signature(write).parameters.items()}
                chosen = _options(expected, under)
                kwargs = {key: value for key, value in chosen.items() if key in usual and value != usual[key]}
                architecture = {"name": name} | ({"kwargs": kwargs} if kwargs else {})
                yield architecture, tensor_shapes(architecture) if kwargs else expected


def current_name(name: str) -> str:
    """A tensor's name as torchvision has it today, where files that it publishes have an older one."""
    name = re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name)
    return re.sub(r"(encoder_layer_\d+\.mlp)\.linear_([12])\.", lambda m: f"{m[1]}.{3 * int(m[2]) - 3}.", name)


def _ending(names: Mapping[str, Any], mark: str) -> list[str]:
    return [name for name in names if name == mark or name.endswith(f".{mark}")]


def _options(usual: Mapping[str, Shape], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What the first and the last layer, and the table of positions, say of the options."""
    weights = [name for name, shape in usual.items() if len(shape) > 1]
    first = next(name for name in weights if len(usual[name]) == 4)
    last = weights[-1]
    options = {}
    if first in shapes and len(shapes[first]) == 4:
        options["in_channels"] = shapes[first][1]
    if shapes.get(last):
        options["num_classes"] = shapes[last][0]
    positions = shapes.get("encoder.pos_embedding", ())
    if len(positions) == 3:
        options["image_size"] = usual[first][2] * math.isqrt(max(0, positions[1] - 1))
    return {key: value for key, value in options.items() if value > 0}


def _own_shapes(leaf: Layer) -> dict[str, Shape]:
    if leaf.kind not in MODULES and leaf.kind not in PARAMETERS:
        return {}
    return _shapes_of(leaf.kind, json.dumps(leaf.kwargs))


@lru_cache(4096)
def _shapes_of(kind: str, kwargs: str) -> dict[str, Shape]:
    with torch.device("meta"):
        made = make_module(Layer(kind, json.loads(kwargs), "", None, kind))
    if isinstance(made, nn.Parameter):
        return {"": tuple(made.shape)}
    return {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
