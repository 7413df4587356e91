"""Nodes, inputs, outputs and inner blocks of a graph are those that torch's own iterators give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.interpreter import blocks_of, inlined, inputs_of, nodes_of, outputs_of


class Controlled(nn.Module):
    """Branches and loops within each other, a recurrent layer, lists, tuples and numbers of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.memory = nn.BatchNorm1d(4), nn.GRU(4, 4)
        self.linears = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor, times: int) -> tuple[Tensor, Tensor]:
        parts = [self.norm(x)]
        for time in range(times):
            while bool(x.sum() > time):
                x = x - 1 if x.size(0) > int(x[0, 0]) else x - 2
            with torch.no_grad():
                parts.append(self.memory(x.unsqueeze(0))[0].squeeze(0))
        for linear in self.linears:
            x = linear(x)
        return torch.cat(parts), x


def test_a_graph_read_by_position_is_the_graph_that_torch_iterates_over() -> None:
    graph = inlined(torch.jit.script(Controlled()).graph.copy())
    iterated = list(iterated_over(graph))
    nodes = list(nodes_of(graph))
    assert [str(node) for node in nodes] == [str(node) for node in iterated]
    assert {"prim::If", "prim::Loop", "prim::TupleConstruct", "aten::gru", "prim::Enter"} <= {n.kind() for n in nodes}
    for node in nodes:
        assert len(blocks_of(node)) == len(list(node.blocks()))
        for ours, theirs in ((inputs_of(node), node.inputs()), (outputs_of(node), node.outputs())):
            assert [value.debugName() for value in ours] == [value.debugName() for value in theirs]


def iterated_over(block: Any) -> Any:
    """All nodes, by torch's iterators alone."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from iterated_over(inner)
