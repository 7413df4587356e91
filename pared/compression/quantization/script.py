"""Puts int8 weights into a ScriptModule's code, which multiplies them by their scales where it reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pared.compression.coupling.interpreter import StorageKey, inlined_graph, nodes_of, storage_key
from pared.compression.coupling.python_values import Node
from pared.compression.coupling.reloading import reloaded
from pared.compression.graphs.plain import spell_out_lists
from pared.compression.graphs.rebuilding import without_unused
from pared.compression.quantization.int8 import Rounded, pays, rounded

SCALE = "_scale"
"""Behind the name of a weight: what its scales are called."""

_CHANNELS_SECOND = ("aten::conv_transpose1d", "aten::conv_transpose2d", "aten::conv_transpose3d")
_TRANSPOSED_FLAG = 6  # of aten::_convolution
_RIGHT_OPERAND = {"aten::matmul": 1, "aten::mm": 1, "aten::bmm": 1, "aten::addmm": 2}


def rounded_weights(script: torch.jit.ScriptModule) -> dict[str, Rounded]:
    """The weights that a ScriptModule can hold as int8, by the names of its parameters, rounded by output channel.

    Raises:
        ModelFailed: a weight is not a finite number.
    """
    plain = reloaded(script)
    graph = inlined_graph(plain)
    spell_out_lists(graph, plain)
    found: dict[str, Rounded] = {}
    channels = {key: _channels(node) for key, node in reads_of(graph, plain)}
    for name, parameter in plain.named_parameters():
        key = storage_key(parameter)
        if key not in channels or not parameter.is_floating_point():
            continue
        if pays(parameter.shape, dims := channels[key](parameter)):
            found[name] = rounded(parameter.detach().float().numpy(), dims, name=name)
    return found


def with_int8_weights(script: torch.jit.ScriptModule, weights: Mapping[str, Rounded]) -> torch.jit.ScriptModule:
    """A copy that holds these weights as int8 buffers of the same names, beside buffers of their scales.

    Calls are inlined, and what forward does not read is left out.

    Args:
        weights: by the names of the module's parameters, as `rounded_weights` gives them.

    Raises:
        RuntimeError: the module has attributes that no copy can hold.
    """
    plain = reloaded(script)
    graph = inlined_graph(plain)
    spell_out_lists(graph, plain)
    name_of = {storage_key(p): name for name, p in plain.named_parameters() if name in weights}
    owner = next(graph.inputs())
    for key, node in list(reads_of(graph, plain)):
        if key not in name_of:
            continue
        with graph.insert_point_guard(node):
            codes = read_of(graph, owner, plain._c, name_of[key])
            scales = read_of(graph, owner, plain._c, name_of[key] + SCALE)
            product = graph.insertNode(graph.create("aten::mul", [codes, scales], 1))
        product.output().setType(torch._C.TensorType.get())
        node.output().replaceAllUsesWith(product.output())
        node.destroy()
    buffers = {}
    for name, weight in weights.items():
        buffers[name] = torch.from_numpy(weight.codes)
        buffers[name + SCALE] = torch.from_numpy(weight.scales)
    return without_unused(plain, buffers=buffers).eval()


def reads_of(graph: Any, module: torch.jit.ScriptModule) -> Iterator[tuple[StorageKey, Node]]:
    """The nodes that read a tensor of the module, each with the key of that tensor."""
    modules = {next(graph.inputs()).debugName(): module._c}
    for node in list(nodes_of(graph)):
        if node.kind() != "prim::GetAttr":
            continue
        value = modules[node.input().debugName()].getattr(node.s("name"))
        if isinstance(value, torch._C.ScriptModule):
            modules[node.output().debugName()] = value
        elif isinstance(value, Tensor):
            yield storage_key(value), node


def read_of(graph: Any, owner: Any, module: Any, path: str) -> Any:
    """A new value of the graph: a tensor of that name, which may come to the module later."""
    value = owner
    *parts, leaf = path.split(".")
    for name in parts:
        get = graph.insertNode(graph.create("prim::GetAttr", [value], 1))
        get.s_("name", name)
        module, value = module.getattr(name), get.output()
        value.setType(module._type())
    get = graph.insertNode(graph.create("prim::GetAttr", [value], 1))
    get.s_("name", leaf)
    get.output().setType(torch._C.TensorType.get())
    return get.output()


def _channels(node: Node) -> Any:
    """Of the tensor that a node reads: from its shape, the dimensions that count output channels."""
    for use in node.output().uses():
        kind = use.user.kind()
        if kind in _CHANNELS_SECOND or (
            kind == "aten::_convolution" and use.user.inputsAt(_TRANSPOSED_FLAG).toIValue()
        ):
            return lambda tensor: (1,)
        if _RIGHT_OPERAND.get(kind) == use.offset:
            return lambda tensor: (tensor.dim() - 1,)
    return lambda tensor: (0,)
