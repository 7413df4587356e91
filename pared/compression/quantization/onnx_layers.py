"""Finds the layers of a model among the operators of its ONNX file, whose exporter folds, transposes and renames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pared.compression.names import layer_of, tensors
from pared.compression.quantization.onnx_weights import RECURRENT, weights_of

Array = NDArray[Any]


@dataclass(frozen=True)
class OnnxLayer:
    """A layer with weights: the operators of the file that read these, and the weights' names in the model."""

    name: str
    operators: tuple[str, ...]
    parameters: tuple[str, ...]


def layers_of(model: Any, module: nn.Module) -> list[OnnxLayer]:
    """The layers of a file in its order. Every operator gets a name.

    Args:
        model: an ONNX ModelProto; what has no name in it is given one.
        module: that it was made of, which the layers have their names from. One that is not found there goes by the
            name of its operator.
    """
    from onnx import TensorProto, numpy_helper

    floats = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    known = {n: p.detach().numpy() for n, p in tensors(module).items() if p.dim() >= 2 and p.is_floating_point()}
    found: dict[str, tuple[list[str], list[str]]] = {}
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = next(
                name for name in (f"{node.op_type}_{index}", f"{node.op_type}_{index}_") if name not in taken
            )
        weights = weights_of(node, floats)
        if not weights or not any(floats[name].ndim >= 2 for name in weights):
            continue
        names = [name for weight in weights for name in _names(weight, floats[weight], node.op_type, known)]
        operators, parameters = found.setdefault(layer_of(names[0]) if names else node.name, ([], []))
        operators.append(node.name)
        parameters += [name for name in names if name not in parameters]
    return [OnnxLayer(name, tuple(nodes), tuple(weights)) for name, (nodes, weights) in found.items()]


def _names(name: str, weight: Array, operator: str, known: Mapping[str, Array]) -> list[str]:
    """The parameters that a weight of the file is made of."""
    if name in known and known[name].shape == weight.shape:
        return [name]
    parts = list(weight) if operator in RECURRENT else [weight]  # one for each direction
    return [found for part in parts for found in [_name(part, operator, known)] if found is not None]


def _name(weight: Array, operator: str, known: Mapping[str, Array]) -> str | None:
    alike = ((name, each) for name, each in known.items() if each.size == weight.size)
    return next((name for name, parameter in alike if _same(weight, parameter, operator)), None)


def _same(weight: Array, parameter: Array, operator: str) -> bool:
    """Whether the one is the other: transposed, its gates in another order, or its channels scaled by a folded norm."""
    if operator in RECURRENT:
        return weight.shape == parameter.shape and np.array_equal(np.sort(weight, None), np.sort(parameter, None))
    if any(weight.shape == each.shape and np.array_equal(weight, each) for each in (parameter, parameter.T)):
        return True
    if weight.shape != parameter.shape or not operator.startswith("Conv"):
        return False
    dim = 1 if operator == "ConvTranspose" else 0
    one, other = (np.moveaxis(each, dim, 0).reshape(each.shape[dim], -1) for each in (weight, parameter))
    along = (one * other).sum(1, keepdims=True) / np.maximum((other * other).sum(1, keepdims=True), 1e-30)
    return bool(np.abs(one - along * other).max() <= 1e-4 * max(float(np.abs(one).max()), 1e-30))
