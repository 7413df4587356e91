"""Lets a ScriptModule compute with rounded weights and inputs while it trains; gradients go straight through.

Bengio, Léonard and Courville 2013, arXiv:1308.3432: what is added to a tensor to round it counts as a constant, so that
the gradient by the rounded tensor is that by the tensor itself. Jacob et al. 2018, arXiv:1712.05877, train int8 so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pared.compression.coupling.interpreter import inlined_graph, storage_key
from pared.compression.coupling.reloading import reloaded
from pared.compression.graphs.plain import spell_out_lists
from pared.compression.quantization.int8 import LARGEST, Rounded
from pared.compression.quantization.script import read_of, reads_of
from pared.specs.quantization import Method

_LEAST = 1e-12  # of a scale
_INPUTS = 255  # steps between the least and the greatest uint8
_LINEAR = {"aten::linear": (0, 1), "aten::matmul": (0, 1), "aten::mm": (0, 1), "aten::addmm": (1, 2)}
_CONVOLUTIONS = {"aten::_convolution": (0, 1), "aten::convolution": (0, 1)} | {
    f"aten::conv{kind}{dims}d": (0, 1) for kind in ("", "_transpose") for dims in (1, 2, 3)
}
"""Operator -> which of its inputs are the data and the weight."""
_MULTIPLIED: Mapping[Method, Mapping[str, tuple[int, int]]] = {
    "weight_only": {},
    "dynamic": _LINEAR,
    "static": {**_LINEAR, **_CONVOLUTIONS},
}


def with_rounding(
    script: torch.jit.ScriptModule, weights: Mapping[str, Rounded], method: Method
) -> torch.jit.ScriptModule:
    """A copy that computes with these weights rounded to int8, and with what they are multiplied with, where both are.

    Its tensors have the names and values that they had. The scale of an input is that of its batch.

    Args:
        weights: by the names of the module's parameters; the sizes of their scales say which elements share one.
    """
    plain = reloaded(script)
    graph = inlined_graph(plain)
    spell_out_lists(graph, plain)
    name_of = {storage_key(p): name for name, p in plain.named_parameters() if name in weights}
    products, owner = _MULTIPLIED[method], next(graph.inputs())
    for key, node in list(reads_of(graph, plain)):
        if key not in name_of:
            continue
        scales = weights[name_of[key]].scales
        multiplied = [
            use.user for use in node.output().uses() if products.get(use.user.kind(), (0, -1))[1] == use.offset
        ]
        with graph.insert_point_guard(node):
            weight = read_of(graph, owner, plain._c, name_of[key])
            shared = [dim for dim, size in enumerate(scales.shape) if size == 1]
            scale = _scale(graph, weight, shared, LARGEST[7 if multiplied else 8])
            node.output().replaceAllUsesWith(_rounded(graph, weight, scale))
        node.destroy()
        for user in multiplied:
            position = products[user.kind()][0]
            with graph.insert_point_guard(user):
                given = user.inputsAt(position)
                user.replaceInput(position, _rounded(graph, given, _input_scale(graph, given)))
    return reloaded(plain)


def _scale(graph: Any, weight: Any, shared: list[int], largest: int) -> Any:
    size = _insert(
        graph, "aten::amax", _insert(graph, "aten::abs", _insert(graph, "aten::detach", weight)), shared, True
    )
    return _insert(graph, "aten::clamp_min", _insert(graph, "aten::div", size, float(largest)), _LEAST)


def _input_scale(graph: Any, value: Any) -> Any:
    value = _insert(graph, "aten::detach", value)
    low = _insert(graph, "aten::clamp_max", _insert(graph, "aten::min", value), 0.0)
    high = _insert(graph, "aten::clamp_min", _insert(graph, "aten::max", value), 0.0)
    width = _insert(graph, "aten::sub", high, low, 1)
    return _insert(graph, "aten::clamp_min", _insert(graph, "aten::div", width, float(_INPUTS)), _LEAST)


def _rounded(graph: Any, value: Any, scale: Any) -> Any:
    """value + constant(round(value / scale) · scale − value)."""
    codes = _insert(graph, "aten::round", _insert(graph, "aten::div", value, scale))
    change = _insert(graph, "aten::sub", _insert(graph, "aten::mul", codes, scale), value, 1)
    return _insert(graph, "aten::add", value, _insert(graph, "aten::detach", change), 1)


def _insert(graph: Any, kind: str, *inputs: Any) -> Any:
    values = [each if isinstance(each, torch._C.Value) else graph.insertConstant(each) for each in inputs]
    node = graph.insertNode(graph.create(kind, values, 1))
    node.output().setType(torch._C.TensorType.get())
    return node.output()
