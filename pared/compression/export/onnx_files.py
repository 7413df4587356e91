"""Gives a written ONNX file the names, types and texts of the ONNX file that the model came from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pared.compression.onnx_form import OnnxForm
from pared.errors import ExportFailed

_SMALLEST = 2
"""Weights of fewer elements stay as they are: they save nothing."""


def like_the_upload(path: Path, form: OnnxForm) -> None:
    """Write an ONNX file again with the names and texts of the upload."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    if len(form.inputs) != len(graph.input) or len(form.outputs) != len(graph.output):
        raise ExportFailed(
            f"the written file has {len(graph.input)} inputs and {len(graph.output)} outputs, where the upload has "
            f"{len(form.inputs)} and {len(form.outputs)}."
        )
    names = _names(graph, form)
    _rename(graph, names)
    for value, name in zip(graph.input, form.inputs, strict=True):
        for dim, label in form.dims.get(name, {}).items():
            if dim < len(value.type.tensor_type.shape.dim) and value.type.tensor_type.shape.dim[dim].dim_param:
                value.type.tensor_type.shape.dim[dim].dim_param = label
    if form.metadata:
        kept = {entry.key: entry.value for entry in model.metadata_props} | dict(form.metadata)
        onnx.helper.set_model_props(model, kept)
    onnx.save(model, path)


def _names(graph: Any, form: OnnxForm) -> dict[str, str]:
    """New names of inputs and outputs, and of what had these names inside."""
    own = [value.name for value in [*graph.input, *graph.output]]
    wanted = [*form.inputs, *form.outputs]
    names = dict(zip(own, wanted, strict=True))
    inside = {name for node in graph.node for name in (*node.input, *node.output)}
    inside |= {tensor.name for tensor in graph.initializer}
    for name in (inside & set(wanted)) - set(own):
        names[name] = f"inner_{name}"
    return names


def _rename(graph: Any, names: dict[str, str]) -> None:
    for value in [*graph.input, *graph.output, *graph.initializer, *graph.value_info]:
        value.name = names.get(value.name, value.name)
    for inner in _graphs(graph):
        for node in inner.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def store_in(path: Path, dtype: torch.dtype) -> None:
    """Keep the weights of an ONNX file that computes in float32 in half precision, all that lose nothing by it.

    Each is converted where the graph begins.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind = {torch.float16: TensorProto.FLOAT16, torch.bfloat16: TensorProto.BFLOAT16}[dtype]
    model = onnx.load(path)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < _SMALLEST:
            continue
        name, values = tensor.name, torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        stored = values.to(dtype)
        if torch.equal(stored.float(), values):
            bits = stored.view(torch.int16).numpy().tobytes()
            tensor.CopyFrom(helper.make_tensor(f"{name}.stored", kind, values.shape, bits, raw=True))
            casts.append(helper.make_node("Cast", [f"{name}.stored"], [name], to=TensorProto.FLOAT))
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *rest])
    onnx.save(model, path)


def with_types(path: Path, form: OnnxForm) -> bool:
    """Let inputs and outputs of an ONNX file have the types of the upload, where these are float16 or float64.

    Returns:
        Whether any had another type.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    graph = model.graph
    first: list[Any] = []
    last: list[Any] = []
    for values, casts, given_first in ((graph.input, first, True), (graph.output, last, False)):
        for value in values:
            kind = form.types.get(value.name, 0)
            if value.type.tensor_type.elem_type != TensorProto.FLOAT or kind not in _ENDS:
                continue
            value.type.tensor_type.elem_type = kind
            inside = f"{value.name}.float32"
            for part in _graphs(graph):
                for node in part.node:
                    node.input[:] = [inside if name == value.name else name for name in node.input]
                    node.output[:] = [inside if name == value.name else name for name in node.output]
            ends = ([value.name], [inside]) if given_first else ([inside], [value.name])
            casts.append(helper.make_node("Cast", *ends, to=TensorProto.FLOAT if given_first else kind))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*first, *rest, *last])
    if first or last:
        onnx.save(model, path)
    return bool(first or last)


_ENDS = {10, 11}  # float16 and float64; onnxruntime takes no bfloat16 from Python
