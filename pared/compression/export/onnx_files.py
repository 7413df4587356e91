"""Gives a written ONNX file the names, types and texts of the ONNX file that the model came from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pared.compression.loading.onnx_form import OnnxForm
from pared.errors import ExportFailed

_SMALLEST = 2
"""Weights of fewer elements stay as they are: they save nothing."""


def like_the_upload(path: Path, form: OnnxForm) -> None:
    """Write an ONNX file again with the names and texts of the upload, and its weights in the half precision of it.

    Such weights are converted where the graph begins: it computes in float32.
    """
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
    if form.half is not None:
        _store_in(graph, form.half)
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


def _store_in(graph: Any, kind: int) -> None:
    """Keep weights in half precision, and convert each where it is read first."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < _SMALLEST:
            continue
        name, array = tensor.name, numpy_helper.to_array(tensor)
        stored = _halved(array, kind)
        tensor.CopyFrom(helper.make_tensor(f"{name}.stored", kind, array.shape, stored, raw=True))
        casts.append(helper.make_node("Cast", [f"{name}.stored"], [name], to=TensorProto.FLOAT))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *rest])


def _halved(array: np.ndarray[Any, Any], kind: int) -> bytes:
    dtype = _HALVES[kind]
    return torch.from_numpy(np.array(array)).to(dtype).view(torch.int16).numpy().tobytes()


_HALVES = {10: torch.float16, 16: torch.bfloat16}


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


@contextlib.contextmanager
def rounded(module: nn.Module, form: OnnxForm | None) -> Iterator[None]:
    """Meanwhile, the module has its weights as the file stores them: rounded to the half precision of the upload."""
    if form is None or form.half is None:
        yield
        return
    dtype = _HALVES[form.half]
    tensors = [each for each in (*module.parameters(), *module.buffers()) if each.dtype == torch.float32]
    had = [tensor.detach().clone() for tensor in tensors]
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(tensor.to(dtype).float())
        try:
            yield
        finally:
            for tensor, before in zip(tensors, had, strict=True):
                tensor.copy_(before)
