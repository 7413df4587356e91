"""Rewrites the steps of a TorchScript graph that hide which weights they use: fused layers and lists of weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pared.compression.coupling.interpreter import inlined_graph, nodes_of, storage_key
from pared.compression.coupling.python_values import Node
from pared.compression.coupling.reloading import reloaded

_FUSED = "aten::_transformer_encoder_layer_fwd"


def in_plain_steps(script: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A copy of a ScriptModule that computes the same, its calls inlined.

    `nn.TransformerEncoderLayer` takes the steps that it takes in training, and never the one fused operator that stands
    for the whole layer in evaluation. A recurrent layer's list of its weights is made of these weights.
    """
    plain = reloaded(script)
    graph = inlined_graph(plain)
    spell_out_lists(graph, plain)
    fused = False
    for node in [node for node in nodes_of(graph) if node.kind() == "prim::If"]:
        branches = [any(inner.kind() == _FUSED for inner in block.nodes()) for block in node.blocks()]
        if any(branches):  # the condition says elsewhere too whether the layer has answered
            _settle(graph, node.input(), branches[1])
            fused = True
    if fused:
        _follow_constants(graph)
    return reloaded(plain)  # TorchScript runs what it has loaded


def spell_out_lists(graph: Any, script: torch.jit.ScriptModule) -> None:
    """Let lists of weights be made of the module's own tensors, where they are attributes."""
    named = [*script.named_parameters(remove_duplicate=False), *script.named_buffers(remove_duplicate=False)]
    name_of = {storage_key(tensor): name for name, tensor in named}
    owner = next(graph.inputs())
    modules = {owner.debugName(): script._c}
    for node in list(nodes_of(graph)):
        if node.kind() != "prim::GetAttr":
            continue
        value = modules[node.input().debugName()].getattr(node.s("name"))
        if isinstance(value, torch._C.ScriptModule):
            modules[node.output().debugName()] = value
        elif isinstance(value, list) and value and all(isinstance(each, Tensor) for each in value):
            names = [name_of.get(storage_key(each)) for each in value]
            with graph.insert_point_guard(node):
                items = [_read(graph, owner, script._c, name) for name in names if name is not None]
                if len(items) == len(value):
                    made = graph.insertNode(graph.create("prim::ListConstruct", items, 1))
                    made.output().setType(node.output().type())
                    node.output().replaceAllUsesWith(made.output())
                    node.destroy()


def _read(graph: Any, owner: Any, module: Any, path: str) -> Any:
    """A new value of the graph: the tensor of that name."""
    value = owner
    for name in path.split("."):
        get = graph.insertNode(graph.create("prim::GetAttr", [value], 1))
        get.s_("name", name)
        module, value = module.getattr(name), get.output()
        value.setType(module._type() if isinstance(module, torch._C.ScriptModule) else torch._C.TensorType.get())
    return value


def _settle(graph: Any, value: Any, constant: bool) -> None:
    """Let a value be a constant wherever it is used."""
    with graph.insert_point_guard(value.node()):
        value.replaceAllUsesWith(graph.insertConstant(constant))


def _follow_constants(graph: Any) -> None:
    """Leave the branches out that constants rule out."""
    joined = True
    while joined:
        while (decided := next(_decided(graph), None)) is not None:
            _take(*decided)
        joined = sum(_join(graph, node) for node in list(nodes_of(graph)) if node.kind() == "prim::If") > 0


def _decided(graph: Any) -> Iterator[tuple[Node, int]]:
    """Each `prim::If` whose condition is a constant, and the branch that it takes."""
    for node in nodes_of(graph):
        if node.kind() == "prim::If" and node.input().node().kind() == "prim::Constant":
            yield node, 0 if node.input().toIValue() else 1


def _take(node: Node, branch: int) -> None:
    """Put one branch in the place of a `prim::If`."""
    block = list(node.blocks())[branch]
    for inner in list(block.nodes()):
        inner.moveBefore(node)
    for output, result in zip(node.outputs(), block.outputs(), strict=True):
        output.replaceAllUsesWith(result)
    node.destroy()


def _join(graph: Any, node: Node) -> bool:
    """Write constants for what both branches agree upon; whether there was any."""
    joined = False
    for output, *results in zip(node.outputs(), *(block.outputs() for block in node.blocks()), strict=True):
        values = [result.toIValue() for result in results if isinstance(result.type(), torch._C.BoolType)]
        if output.uses() and values in ([True, True], [False, False]):
            _settle(graph, output, values[0])
            joined = True
    return joined
