"""Writes into a graph what must follow when units go: sizes, positions, and operators that look at all channels."""

from __future__ import annotations

from typing import Any

import torch

from pared.compression.coupling.model import CountedPatch, Patch

Indices = dict[tuple[str, int], set[int]]
"""Axis -> its removed indices."""


def kept_count(counted: CountedPatch, removed: Indices) -> float:
    """The number that a patch comes to."""
    return sum(_are_kept(counted, removed)) + counted.patch.fixed


def write(graph: Any, node: Any, counted: CountedPatch, removed: Indices) -> None:
    """Change what a node takes, or what is made of its result, for this use alone."""
    patch, kept = counted.patch, _are_kept(counted, removed)
    with graph.insert_point_guard(node):
        match patch.edit:
            case "number":
                count = sum(kept) + patch.fixed
                literal = count if patch.dtype is None else torch.tensor(count, dtype=patch.dtype)
                _replace_argument(graph, node, patch, graph.insertConstant(literal))
            case "picks":
                picks = _positions(graph, _renumbered(patch, kept), node.inputsAt(0))
                _replace_argument(graph, node, patch, picks)
            case "shuffle":
                _pick_instead(graph, node, patch, kept)
            case "places":
                _keep_places(graph, node, patch, kept)
            case "mean":
                _follow_up(graph, node, "aten::mul", graph.insertConstant(sum(kept) / len(kept)))
            case "largest":
                _follow_up(graph, node, "aten::clamp_min", graph.insertConstant(0))
            case "smallest":
                _follow_up(graph, node, "aten::clamp_max", graph.insertConstant(0))


def _are_kept(counted: CountedPatch, removed: Indices) -> list[bool]:
    return [member is None or member[1] not in removed.get(member[0], ()) for member in counted.members]


def _replace_argument(graph: Any, node: Any, patch: Patch, new: Any) -> None:
    """Set one input of a node, or one element of a list input, for this use alone."""
    value = node.inputsAt(patch.argument)
    if patch.element is None:
        node.replaceInput(patch.argument, new)
        return
    maker = value.node()
    if maker.kind() == "prim::Constant":
        values = list(maker.output().toIValue())
        values[patch.element] = new.toIValue()
        node.replaceInput(patch.argument, graph.insertConstant(values))
        return
    # The list may serve other nodes too: this use gets a list of its own.
    fresh = graph.create("prim::ListConstruct", 1)
    items = list(maker.inputs())
    if maker.kind() != "prim::ListConstruct":  # it is put together from other lists
        unpacked = graph.insertNode(graph.create("prim::ListUnpack", [value], patch.length))
        items = [item.setType(torch._C.IntType.get()) for item in unpacked.outputs()]
    for index, item in enumerate(items):
        fresh.addInput(new if index == patch.element else item)
    fresh.output().setType(value.type())
    graph.insertNode(fresh)
    node.replaceInput(patch.argument, fresh.output())


def _renumbered(patch: Patch, kept: list[bool]) -> list[int]:
    """Its positions among what is kept, without those of what went."""
    return [sum(kept[:position]) for position in patch.positions if kept[position]]


def _pick_instead(graph: Any, node: Any, patch: Patch, kept: list[bool]) -> None:
    """Put a pick of positions in the place of the nodes that shuffle, which end with this one."""
    shuffle = [node]
    if node.kind() != "aten::channel_shuffle":  # from its last view back to its first
        while len(shuffle) == 1 or shuffle[-1].kind() not in (node.kind(), "aten::view", "aten::reshape"):
            shuffle.append(shuffle[-1].inputsAt(0).node())
    x = shuffle[-1].inputsAt(0)
    positions = _positions(graph, _renumbered(patch, kept), x)
    picked = _inserted(graph, "aten::index_select", x, graph.insertConstant(patch.dim), positions)
    node.output().replaceAllUsesWith(picked)
    for each in shuffle:
        each.destroy()


def _keep_places(graph: Any, node: Any, patch: Patch, kept: list[bool]) -> None:
    """Give a node zeros at the places of what went, and drop what it makes of those places."""
    x, dim = node.inputsAt(patch.argument), graph.insertConstant(patch.dim)
    one_more = graph.insertConstant([0] * (2 * (patch.length - 1 - patch.dim)) + [0, 1])
    padded = _inserted(graph, "aten::constant_pad_nd", x, one_more, graph.insertConstant(0))
    places = [sum(kept[:place]) if there else sum(kept) for place, there in enumerate(kept)]
    node.replaceInput(patch.argument, _inserted(graph, "aten::index_select", padded, dim, _positions(graph, places, x)))
    left = [place for place, position in enumerate(patch.positions) if position < 0 or kept[position]]
    _follow_up(graph, node, "aten::index_select", dim, _positions(graph, left, x))


def _positions(graph: Any, positions: list[int], beside: Any) -> Any:
    """A tensor of positions, on the device of another tensor: no device is written in the file."""
    device = graph.insertNode(graph.create("prim::device", [beside], 1)).output()
    device.setType(torch._C.DeviceObjType.get())
    long = graph.insertConstant(4)  # int64, as the format numbers types
    return _inserted(graph, "aten::tensor", graph.insertConstant(positions), long, device, graph.insertConstant(False))


def _inserted(graph: Any, kind: str, *inputs: Any) -> Any:
    return graph.insertNode(graph.create(kind, list(inputs), 1)).output()


def _follow_up(graph: Any, node: Any, kind: str, *others: Any) -> None:
    """Let an operator work on the first result of a node, and whoever read that read what it makes."""
    result = node.outputsAt(0)
    after = graph.create(kind, [result, *others], 1)
    after.insertAfter(node)
    result.replaceAllUsesWith(after.output())
    after.replaceInput(0, result)
