"""Stores the weights of an ONNX file as int8, for operators that compute in float32.

A weight becomes `Cast(codes) · scales`, which ONNX Runtime computes once, when it loads the file: it then runs as the
float32 file does. Of a table of embeddings only the rows that are looked up are computed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pared.compression.quantization.int8 import Rounded, pays, rounded

RECURRENT = ("LSTM", "GRU", "RNN")
WEIGHTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Gather": (0,)} | dict.fromkeys(
    RECURRENT, (1, 2)
)
"""Operator -> which of its inputs may be weights."""


def weights_of(node: Any, initializers: Collection[str]) -> list[str]:
    """The weights that an operator reads."""
    places = (place for place in WEIGHTS.get(node.op_type, ()) if place < len(node.input))
    return [node.input[place] for place in places if node.input[place] in initializers]


def int8_weights(path: Path) -> list[str]:
    """The names of an ONNX file's matrices of int8 codes."""
    import onnx

    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    held = onnx.load(path, load_external_data=False).graph.initializer
    return [tensor.name for tensor in held if tensor.data_type in kinds and len(tensor.dims) > 1]


def store_as_int8(model: Any, kept: Collection[str]) -> None:
    """Store weights as int8 that an operator reads, save those of the kept ones.

    Args:
        model: an ONNX ModelProto, which is changed.
        kept: names of operators whose weights stay float32.

    Raises:
        ModelFailed: a weight is not a finite number.
    """
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    floats = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in _read(node, floats):
            readers.setdefault(name, []).append(node)
    steps = []
    for name, nodes in readers.items():
        weight = numpy_helper.to_array(floats[name])
        channels = _channels(name, nodes, weight.ndim)
        if any(node.name in kept for node in nodes) or not pays(weight.shape, channels):
            continue
        graph.initializer.remove(floats[name])
        steps += _in_place_of(graph, name, rounded(weight, channels, name=name), nodes)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*steps, *rest])


def _read(node: Any, floats: Collection[str]) -> Iterator[str]:
    if node.op_type == "Transpose" and node.input[0] in floats:  # of a weight that two layers share
        yield node.input[0]
    yield from weights_of(node, floats)


def _channels(name: str, nodes: Sequence[Any], dims: int) -> tuple[int, ...]:
    """The dimensions of a weight that count output channels, by the operators that read it."""
    for node in nodes:
        if node.op_type in RECURRENT:
            return (0, 1)
        if node.op_type == "ConvTranspose":
            return (1,)
        if node.op_type == "MatMul":
            return (dims - 1,) if node.input[1] == name else (max(dims - 2, 0),)
        if node.op_type == "Gemm":
            transposed = {each.name: each.i for each in node.attribute}
            right = node.input[1] == name
            return (1 - transposed.get("transB", 0),) if right else (transposed.get("transA", 0),)
    return (0,)


def _in_place_of(graph: Any, name: str, weight: Rounded, nodes: Sequence[Any]) -> list[Any]:
    """Put codes and scales into the graph. Returns the steps that make the whole weight of them, if any needs it."""
    from onnx import TensorProto, helper, numpy_helper

    codes, scales, cast = f"{name}.int8", f"{name}.scales", f"{name}.codes"
    graph.initializer.extend(
        [numpy_helper.from_array(weight.codes, codes), numpy_helper.from_array(weight.scales, scales)]
    )
    lookups = [node for node in nodes if _looks_rows_up(node, name)]
    for node in lookups:
        _look_up(graph, node, codes, scales)
    if len(lookups) == len(nodes) and not any(name in node.input for node in graph.node):
        return []
    return [
        helper.make_node("Cast", [codes], [cast], name=cast, to=TensorProto.FLOAT),
        helper.make_node("Mul", [cast, scales], [name], name=f"{name}.product"),
    ]


def _looks_rows_up(node: Any, name: str) -> bool:
    return node.op_type == "Gather" and node.input[0] == name and not any(each.i for each in node.attribute)


def _look_up(graph: Any, node: Any, codes: str, scales: str) -> None:
    """Let a Gather read rows of codes and scales, and multiply what it found."""
    from onnx import TensorProto, helper

    found, place = node.output[0], list(graph.node).index(node)
    parts = [f"{found}.codes", f"{found}.scales", f"{found}.cast"]
    steps = [
        helper.make_node("Gather", [codes, node.input[1]], [parts[0]], name=parts[0], axis=0),
        helper.make_node("Gather", [scales, node.input[1]], [parts[1]], name=parts[1], axis=0),
        helper.make_node("Cast", [parts[0]], [parts[2]], name=parts[2], to=TensorProto.FLOAT),
        helper.make_node("Mul", [parts[2], parts[1]], [found], name=node.name),
    ]
    graph.node.remove(node)
    for step in reversed(steps):
        graph.node.insert(place, step)
