"""Puts a projection behind an output, so that the width that reaches it can shrink and the output's own stays.

Models of embeddings answer with their hidden width itself. The projection begins as the identity: where channels go in
front of it, it loses their columns, and answers what the model answers with these channels zero. It is trained with the
rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling import find_groups
from pared.compression.coupling.interpreter import inlined_graph
from pared.compression.coupling.reloading import reloaded
from pared.compression.coupling.verify import answers
from pared.compression.graphs.rebuilding import without_unused
from pared.compression.loading import LoadedModel

MOST_WIDTH = 8192
"""Of an output: a projection begins with the square of this many weights."""

_NAME = "output_projection"


def with_output_projections(loaded: LoadedModel, example: Sequence[Tensor]) -> LoadedModel | None:
    """The model with a projection behind each output whose width several layers share.

    Args:
        loaded: not changed.
        example: its inputs, in a batch of at least 2.

    Returns:
        None where it has no such output, or no code to put a projection into.
    """
    script = loaded.module
    if not isinstance(script, torch.jit.ScriptModule):
        return None
    outputs = answers(script, example)
    if len(outputs) != len(_places(inlined_graph(reloaded(script)))):  # nested deeper than is followed
        return None
    widths = {
        index: output.shape[-1]
        for index, output in enumerate(outputs)
        if output.dim() >= 2 and output.is_floating_point() and 1 < output.shape[-1] <= MOST_WIDTH
    }
    if not widths:
        return None
    projected, names = _projected(script, widths)
    coupling = find_groups(projected, example, check=False)
    shared = {name for group in coupling.groups if len(group.out_axes) > 1 for name, dim in group.members if dim == 1}
    kept = {index: widths[index] for index, name in names.items() if name in shared}
    if not kept:
        return None
    if kept != widths:
        projected, _ = _projected(script, kept)
    return replace(loaded, module=projected.eval(), inlined=True)


def projections_of(module: nn.Module) -> dict[str, Tensor]:
    """The projections that a model was given, by name."""
    return {name: weight for name, weight in module.named_parameters() if name.startswith(_NAME)}


def _projected(script: torch.jit.ScriptModule, widths: dict[int, int]) -> tuple[torch.jit.ScriptModule, dict[int, str]]:
    """Args: widths: number of the output -> its width."""
    script = reloaded(script)
    graph = inlined_graph(script)
    parameters = [name for name, _ in script.named_parameters(remove_duplicate=False)]
    places = _places(graph)
    added: dict[str, tuple[str, nn.Parameter]] = {}
    names = {}
    for index, width in widths.items():
        names[index] = name = f"{_NAME}_{index}" if len(places) > 1 else _NAME
        reader, position = places[index]
        with graph.insert_point_guard(reader):
            weight = graph.insertNode(graph.create("prim::GetAttr", [next(graph.inputs())], 1))
            weight.s_("name", name)
            inputs = [reader.inputsAt(position), weight.output(), graph.insertConstant(None)]
            reader.replaceInput(position, graph.insertNode(graph.create("aten::linear", inputs, 1)).output())
        added[name] = parameters[-1], nn.Parameter(torch.eye(width))
    return without_unused(script, added), names


def _places(graph: Any) -> list[tuple[Any, int]]:
    """Where the graph gives its outputs: the node that takes each of them, and as which of its inputs."""
    returned = graph.return_node()
    maker = returned.inputsAt(0).node()
    if maker.kind() in ("prim::TupleConstruct", "prim::ListConstruct"):
        return [(maker, index) for index in range(maker.inputsSize())]
    if maker.kind() == "prim::DictConstruct":
        return [(maker, index) for index in range(1, maker.inputsSize(), 2)]
    return [(returned, 0)]
