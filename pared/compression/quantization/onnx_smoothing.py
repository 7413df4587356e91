"""Moves the few large channels of what a transformer's linear layers take into their weights, before static int8.

Behind a layer norm one channel can be ten times as large as all others; a scale for all of them then leaves the others
few steps. Xiao et al. 2023, arXiv:2211.10438, divide each channel of the input by a factor that its weights are
multiplied with, so that the product stays. There the factor weighs the two by an exponent; here a channel is divided
only as far as no output's largest weight grows beyond a limit, for that costs the steps of its other weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pared.compression.loading.onnx.reading import graphs_of

Array = NDArray[np.float32]

WEIGHTS_GROW = 3.0
"""How much larger an output's largest weight may become. Chosen with MiniLM, by the cosine on 200 sentences, among 1.15
(0.9927), 1.3, 1.6, 2, 3 (0.9972), 4, 6, 10 (0.9952) and no limit (0.9938).
"""


def smooth(model: Any, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Put a division by factors before linear layers, and multiply their weights with them.

    Layers that take the same share one division. It is there whatever the factors are, so that a file's size does not
    hang on the samples.

    Args:
        model: an ONNX ModelProto, which is changed.
        batches: inputs of the model.
    """
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    linear = _linear_layers(graph, weights)
    if not linear:
        return
    channels = {
        taken: weights[nodes[0].input[1]].dims[1 if _is_transposed(nodes[0]) else 0] for taken, nodes in linear.items()
    }
    peaks = _peaks(model, channels, batches)
    place = {name: index for index, node in enumerate(graph.node) for name in node.output}
    added: dict[int, list[Any]] = {}
    for taken, nodes in linear.items():
        matrices = [_from_inputs(node, numpy_helper.to_array(weights[node.input[1]])) for node in nodes]
        factors = _factors(peaks.get(taken), matrices)
        divided, by = f"{taken}_smoothed", f"{taken}_smoothing"
        for node, matrix in zip(nodes, matrices, strict=True):
            scaled = _from_inputs(node, matrix * factors[:, None])
            weights[node.input[1]].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(scaled), node.input[1]))
            node.input[0] = divided
        graph.initializer.append(numpy_helper.from_array(1 / factors, by))
        step = onnx.helper.make_node("Mul", [taken, by], [divided], name=f"{taken}_smoothing")
        added.setdefault(place.get(taken, -1), []).append(step)
    steps = added.pop(-1, [])
    for index, node in enumerate(graph.node):
        steps += [node, *added.get(index, [])]
    del graph.node[:]
    graph.node.extend(steps)


def _linear_layers(graph: Any, weights: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What flows -> the layers that multiply it with weights of their own, from the right."""
    from onnx import TensorProto

    graphs = list(graphs_of(graph))
    reads = Counter(name for each in graphs for node in each.node for name in node.input)
    reads.update(value.name for each in graphs for value in each.output)
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] in weights or _attribute(node, "transA"):
            continue
        weight = weights.get(node.input[1])
        if weight is None or weight.data_type != TensorProto.FLOAT or len(weight.dims) != 2:
            continue
        if reads[weight.name] == 1:
            found.setdefault(node.input[0], []).append(node)
    return found


def _attribute(node: Any, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _from_inputs(node: Any, matrix: Array) -> Array:
    """A row for each input; and back."""
    return matrix.T if _is_transposed(node) else matrix


def _is_transposed(node: Any) -> bool:
    return bool(_attribute(node, "transB"))  # which a Gemm alone has


def _peaks(model: Any, channels: Mapping[str, int], batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Array]:
    """The largest absolute value of each channel of what flows, found in the runtime: all that flows is too much."""
    import onnxruntime

    graph = model.graph
    inputs, before = [value.name for value in graph.input], (len(graph.node), len(graph.initializer), len(graph.output))
    outputs = [_look_at_peak(model, name, count) for name, count in channels.items()]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for parts, count in zip((graph.node, graph.initializer, graph.output), before, strict=True):
        del parts[count:]
    found: dict[str, Array] = {}
    for batch in batches:
        peaks = session.run(outputs, dict(zip(inputs, (x.numpy() for x in batch), strict=True)))
        for name, peak in zip(channels, peaks, strict=True):
            found[name] = np.maximum(found[name], peak) if name in found else peak
    return found


def _look_at_peak(model: Any, name: str, channels: int) -> str:
    """Give a model an output more, and its name."""
    from onnx import helper, numpy_helper

    graph = model.graph
    flat, size, peak = (f"{name}_{what}" for what in ("as_rows", "size", "peak"))
    rows = numpy_helper.from_array(np.array([-1, channels]), f"{flat}_shape")
    axis = numpy_helper.from_array(np.array([0]), f"{peak}_axis")
    graph.initializer.extend([rows, axis])
    graph.node.append(helper.make_node("Reshape", [name, rows.name], [flat]))
    graph.node.append(helper.make_node("Abs", [flat], [size]))
    if next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx")) >= 18:
        graph.node.append(helper.make_node("ReduceMax", [size, axis.name], [peak], keepdims=0))
    else:
        graph.node.append(helper.make_node("ReduceMax", [size], [peak], axes=[0], keepdims=0))
    graph.output.append(helper.make_empty_tensor_value_info(peak))
    return peak


def _factors(peak: Array | None, matrices: Sequence[Array]) -> Array:
    """What each channel is divided by, 1 or more: all ones where it has values that are not finite."""
    channels = len(matrices[0])
    if peak is None or not np.isfinite(peak).all() or not all(np.isfinite(each).all() for each in matrices):
        return np.ones(channels, np.float32)
    sizes = [np.abs(each).astype(np.float64) for each in matrices]
    least = float(np.finfo(np.float32).tiny)
    room = [(WEIGHTS_GROW * each.max(0) / np.maximum(each, least)).min(1) for each in sizes]
    largest = float((peak / np.maximum(np.min(room, axis=0), 1)).max())
    factors: Array = np.maximum(peak / np.float32(max(largest, least)), np.float32(1)).astype(np.float32)
    return factors
