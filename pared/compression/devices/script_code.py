"""Finds where the code of a ScriptModule names a device, and changes it. The graph API used here is private to torch.

`tests.integration.compression.test_device_literals.py` pins what is relied on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pared.compression.devices.values import _C, CPU, Graph, Moved, Node, Value, device_named, is_away, leaves

FACTORIES = tuple(
    f"aten::{name}"
    for name in (
        *("arange", "as_tensor", "bartlett_window", "blackman_window", "empty", "empty_permuted", "empty_strided"),
        *("eye", "fft_fftfreq", "fft_rfftfreq", "full", "hamming_window", "hann_window", "kaiser_window", "linspace"),
        *("logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor"),
        *("tril_indices", "triu_indices", "zeros"),
    )
)
"""Operators that make a dense tensor of numbers: on the CPU, where no device is named."""
COPIES = tuple(
    f"aten::{name}"
    for name in (
        *("_to_copy", "empty_like", "full_like", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros"),
        *("ones_like", "rand_like", "randint_like", "randn_like", "to", "zeros_like"),
    )
)
"""Operators that make a dense tensor on the device of another, where none is named."""
_COMPARISONS = {"aten::eq", "aten::ne"}
_TO_NUMBERS = {
    f"aten::{name}" for name in ("Bool", "Float", "FloatImplicit", "Int", "IntImplicit", "ScalarImplicit", "item")
}
_ON_NUMBERS = {
    f"aten::{name}"
    for name in (
        *("add", "ceil", "clone", "detach", "div", "floor", "floor_divide", "mul", "neg", "pow", "remainder"),
        *("round", "sub", "to", "trunc"),
    )
}
COMPUTED = "computed"
"""Stands for a device whose name the code puts together as it runs."""


@dataclass(frozen=True)
class Place:
    """A place in the code that names another device than the target, and how to change it.

    `device`: the one that is written, `COMPUTED`, or the empty text.
    """

    device: str
    change: Callable[[], None]


def module_kinds(cpp_module: Any) -> set[str]:
    """The names of the classes of a C++ module and those inside of it."""
    inside = [module_kinds(child) for _, child in _C.ModuleDict(cpp_module).items()]
    return {cpp_module._type().qualified_name()}.union(*inside)


def places_in(graph: Graph, target: torch.device, root: Any) -> Iterator[Place]:
    """The places where a graph names another device than the target, or pins memory.

    Changing one place may remove nodes, but none that another place needs.

    Args:
        root: the C++ module that the code is of. Devices in attributes of modules are set there; those in attributes of
            other objects, which Python cannot set, are not read any more.
    """
    for node in graph.findAllNodes("prim::Constant", recurse=True):
        value = constant_of(node)
        if is_away(value, target) and not _only_compared(node.output()) and not _is_count(node.output(), value):
            yield Place(_named(value), functools.partial(_replace, graph, node, target, value))
    for node in graph.findAllNodes("aten::device", recurse=True):
        named = [constant_of(operand.node()) for operand in node.inputs()]
        device = None if None in named else device_named(*named)
        if device != target and not _only_compared(node.output()):
            yield Place(str(device or COMPUTED), functools.partial(_replace, graph, node, target, target))
    for node in graph.findAllNodes("prim::GetAttr", recurse=True):
        if not isinstance(node.output().type(), _C.DeviceObjType) or _only_compared(node.output()):
            continue
        if next(node.inputs()).type().qualified_name() not in module_kinds(root):
            yield Place("", functools.partial(_replace, graph, node, target, target))
    for name in {"cuda", "cpu"} - {target.type}:
        for node in graph.findAllNodes(f"aten::{name}", recurse=True):
            yield Place(name, functools.partial(_replace_move, graph, node, target))
    for name in ("aten::pin_memory", "aten::_pin_memory"):
        for node in graph.findAllNodes(name, recurse=True):
            yield Place("", functools.partial(_drop, node))
    yield from _in_arguments(graph, target)


def _in_arguments(graph: Graph, target: torch.device) -> Iterator[Place]:
    """Where an operator that makes a tensor may name no device, and so the CPU, or may ask for pinned memory."""
    for kind in (*FACTORIES, *COPIES):
        for node in graph.findAllNodes(kind, recurse=True):
            inputs = list(node.inputs())
            device, pinned = _positions(node.schema())
            if pinned is not None and not _is_off(inputs[pinned]):
                yield Place("", functools.partial(_set_argument, graph, node, pinned, False))
            if device is None or target == CPU or isinstance(inputs[device].type(), _C.DeviceObjType):
                continue
            if not _is_number(node.output()):
                yield Place("", functools.partial(_set_argument, graph, node, device, target))


def _is_off(value: Value) -> bool:
    """Whether a flag is surely not set."""
    return value.node().kind() == "prim::Constant" and not constant_of(value.node())


@functools.cache
def _positions(schema: str) -> tuple[int | None, int | None]:
    """Which arguments are the device, of an operator that takes no tensor, and whether memory is pinned."""
    arguments = _C.parse_schema(schema).arguments
    names = [argument.name for argument in arguments]
    takes_tensor = any("Tensor" in str(argument.type) for argument in arguments)
    device = names.index("device") if "device" in names and not takes_tensor else None
    return device, names.index("pin_memory") if "pin_memory" in names else None


def constant_of(node: Node) -> Any:
    """The value of a constant; None, if it is none or another node."""
    return node.output().toIValue() if node.kind() == "prim::Constant" and node.hasAttribute("value") else None


def _named(value: Any) -> str:
    """The device in a value, if there is one."""
    return next((str(leaf) for leaf in leaves(value) if isinstance(leaf, torch.device)), "")


def _only_compared(value: Value) -> bool:
    return all(use.user.kind() in _COMPARISONS for use in value.uses())


def _is_count(value: Value, constant: Any) -> bool:
    return isinstance(constant, Tensor) and not constant.dim() and _is_number(value)


def _is_number(value: Value) -> bool:
    """Whether a tensor is only computed with until it becomes a number, as tracing does with shapes.

    On a card each such number would have to be waited for.
    """
    seen, waiting = set(), [value]
    while waiting:
        for use in waiting.pop().uses():
            if use.user.kind() in _TO_NUMBERS:
                continue
            if use.user.kind() not in _ON_NUMBERS:
                return False
            output = use.user.output()
            if output.debugName() not in seen:
                seen.add(output.debugName())
                waiting.append(output)
    return True


def _replace(graph: Graph, node: Node, target: torch.device, value: Any) -> None:
    """Put a constant in the place of a node's output, except where that is only compared with."""
    with graph.insert_point_guard(node):
        constant = graph.insertConstant(Moved(target).of(value))
    for use in node.output().uses():
        if use.user.kind() not in _COMPARISONS:
            use.user.replaceInput(use.offset, constant)
    if not node.output().uses():
        node.destroy()


def _replace_move(graph: Graph, node: Node, target: torch.device) -> None:
    """Write `x.to(target)` for `x.cuda()` or `x.cpu()`."""
    with graph.insert_point_guard(node):
        constants = [graph.insertConstant(value) for value in (target, None, False, False)]
        move = graph.insertNode(graph.create("aten::to", [next(node.inputs()), *constants], 1))
    move.output().setType(node.output().type())
    node.output().replaceAllUsesWith(move.output())
    node.destroy()


def _drop(node: Node) -> None:
    """Let those who take a node's output take its first input."""
    node.output().replaceAllUsesWith(next(node.inputs()))
    node.destroy()


def _set_argument(graph: Graph, node: Node, position: int, value: Any) -> None:
    with graph.insert_point_guard(node):
        node.replaceInput(position, graph.insertConstant(value))
