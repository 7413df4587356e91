"""Moves the few large channels of what a transformer's linear layers take into their weights, before static int8.

Behind a layer norm one channel can be ten times as large as all others; a scale for all of them then leaves the others
few steps. Xiao et al. 2023, arXiv:2211.10438, divide each channel of the input by a factor that its weights are
multiplied with, so that the product stays. There the factor weighs the two by an exponent; here a channel is divided
only as far as no output's largest weight grows beyond a limit, for that costs the steps of its other weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

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
    peaks = _peaks(model, list(linear), batches)
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
    reads = Counter(name for node in _all_nodes(graph) for name in node.input)
    reads.update(value.name for value in graph.output)
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] in weights or _attribute(node, "transA"):
            continue
        weight = weights.get(node.input[1])
        if weight is not None and reads[weight.name] == 1 and len(weight.dims) == 2 and weight.data_type == 1:
            found.setdefault(node.input[0], []).append(node)
    return found


def _all_nodes(graph: Any) -> Iterator[Any]:
    todo = [graph]
    while todo:
        inner = todo.pop()
        yield from inner.node
        attributes = [attribute for node in inner.node for attribute in node.attribute]
        todo += [g for each in attributes for g in ([each.g] if each.HasField("g") else each.graphs)]


def _attribute(node: Any, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _from_inputs(node: Any, matrix: Array) -> Array:
    """A row for each input; and back."""
    return matrix.T if node.op_type == "Gemm" and _attribute(node, "transB") else matrix


def _peaks(model: Any, names: Sequence[str], batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Array]:
    """The largest absolute value of each channel."""
    import onnx
    import onnxruntime

    graph, count = model.graph, len(model.graph.output)
    inputs = [value.name for value in graph.input]
    known = {*inputs, *(value.name for value in graph.output)}
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    del graph.output[count:]
    computed = [name for name in names if name not in inputs]
    found: dict[str, Array] = {}
    for batch in batches:
        values: dict[str, Any] = dict(zip(inputs, (x.numpy() for x in batch), strict=True))
        if computed:  # none would mean all outputs
            values |= dict(zip(computed, session.run(computed, values), strict=True))
        for name in names:
            peak = np.abs(values[name]).reshape(-1, values[name].shape[-1]).max(0)
            found[name] = np.maximum(found[name], peak) if name in found else peak
    return found


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
