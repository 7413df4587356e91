"""Holds the first states of LSTM layers to the sizes that the layer needs, where a file's code does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pared.compression.coupling.interpreter import inlined_graph, is_constant, nodes_of
from pared.compression.coupling.reloading import reloaded
from pared.compression.devices.placement import graphs_of

_MADE_FOR = ("aten::zeros", "aten::new_zeros", "aten::expand")
_ADVICE = (
    "The first state of an LSTM has other sizes than (layers, batch, hidden) of its inputs: torch would read past its "
    "end. Make the state for the batch that comes in, or give none."
)


def hold_states(script: torch.jit.ScriptModule) -> tuple[torch.jit.ScriptModule, bool]:
    """A ScriptModule that has not run yet, with a check before each LSTM that is given its first state.

    `torch.nn.LSTM` checks its states, and tracing and exporting leave that out. torch's own operator then reads and
    writes beyond the memory of a state of another batch; of GRU and RNN it says that the sizes differ.

    Returns:
        the module, and whether there is such a check.
    """
    if not any(_unchecked(node) for graph in graphs_of(script) for node in nodes_of(graph)):
        return script, False
    graph = inlined_graph(script)
    for node in [node for node in nodes_of(graph) if _unchecked(node)]:
        _check(graph, node)
    return reloaded(script), True


def _unchecked(node: Any) -> bool:
    """Whether this is an LSTM over a padded input whose states may be of another batch than that."""
    if node.kind() != "aten::lstm" or not node.schema().startswith("aten::lstm.input("):
        return False
    states, flags = node.inputsAt(1).node(), list(node.inputs())
    known = states.kind() == "prim::ListConstruct" and all(is_constant(flags[at]) for at in (3, 4, 7, 8))
    return known and not all(map(_follows, states.inputs()))


def _follows(state: Any) -> bool:
    """Whether a state is made for the batch, or comes from a layer that checks it or gave it."""
    node = state.node()
    if node.kind() in _MADE_FOR:
        at = 1 if node.kind() != "aten::zeros" else 0
        sizes = node.inputsAt(at).node()
        return sizes.kind() == "prim::ListConstruct" and not is_constant(list(sizes.inputs())[1])
    if node.kind() == "prim::TupleUnpack":
        node = node.inputsAt(0).node()
    return node.kind() in ("prim::If", "aten::lstm")


def _check(graph: Any, lstm: Any) -> None:
    """Insert what raises where a state is not (layers, batch, hidden)."""
    x, states, weights, _, layers, _, _, both, batch_first = lstm.inputs()
    over = list(weights.node().inputs())[1]  # (4 * hidden, width of the first state)
    with graph.insert_point_guard(lstm):
        count = graph.insertConstant(layers.toIValue() * (1 + both.toIValue()))
        batch = _size(graph, x, 0 if batch_first.toIValue() else 1)
        rows = _call(graph, "aten::floordiv", [_size(graph, over, 0), graph.insertConstant(4)], torch._C.IntType.get())
        widths = [_size(graph, over, 1), rows]
        for state, width in zip(states.node().inputs(), widths, strict=True):
            wanted = graph.insertNode(graph.create("prim::ListConstruct", [count, batch, width], 1)).output()
            wanted.setType(torch._C.ListType.ofInts())
            sizes = _call(graph, "aten::size", [state], torch._C.ListType.ofInts())
            differs = _call(graph, "aten::ne", [sizes, wanted], torch._C.BoolType.get())
            choice = graph.insertNode(graph.create("prim::If", [differs], 0))
            refusing = choice.addBlock()
            choice.addBlock()
            with graph.insert_point_guard(refusing):
                told = [graph.insertConstant(_ADVICE), graph.insertConstant("builtins.ValueError")]
                graph.insertNode(graph.create("prim::RaiseException", told, 0))


def _size(graph: Any, tensor: Any, dim: int) -> Any:
    return _call(graph, "aten::size", [tensor, graph.insertConstant(dim)], torch._C.IntType.get())


def _call(graph: Any, kind: str, inputs: Sequence[Any], made: Any) -> Any:
    value = graph.insertNode(graph.create(kind, list(inputs), 1)).output()
    value.setType(made)
    return value
