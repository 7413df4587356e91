"""Lets `nn.TransformerEncoderLayer` take its plain path for good, where TorchScript holds a fused one beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pared.compression.coupling.interpreter import Node, inlined_graph, nodes_of, reloaded

_FUSED = "aten::_transformer_encoder_layer_fwd"


def without_fast_paths(script: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """The module itself, or where a whole layer is one fused operator, a copy that computes the same in plain steps.

    The fused operator is taken in evaluation alone, beside the plain steps, which training takes.
    """
    if not any(node.kind() == _FUSED for node in nodes_of(inlined_graph(script))):
        return script
    plain = reloaded(script)
    graph = inlined_graph(plain)
    for node in [node for node in nodes_of(graph) if node.kind() == "prim::If"]:
        fused = [any(inner.kind() == _FUSED for inner in block.nodes()) for block in node.blocks()]
        if any(fused):  # the condition says elsewhere too whether the layer has answered
            _settle(graph, node.input(), fused[1])
    while (found := next(_decided(graph), None)) is not None:
        _take(*found)
        for node in list(nodes_of(graph)):
            _join(graph, node)
    return reloaded(plain)  # TorchScript runs what it has loaded


def _settle(graph: Any, value: Any, constant: bool) -> None:
    """Let a value be a constant wherever it is used."""
    with graph.insert_point_guard(value.node()):
        value.replaceAllUsesWith(graph.insertConstant(constant))


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


def _join(graph: Any, node: Node) -> None:
    """Write constants for what both branches agree upon."""
    if node.kind() != "prim::If":
        return
    for output, *results in zip(node.outputs(), *(block.outputs() for block in node.blocks()), strict=True):
        values = [result.toIValue() for result in results if isinstance(result.type(), torch._C.BoolType)]
        if output.uses() and values in ([True, True], [False, False]):
            _settle(graph, output, values[0])
