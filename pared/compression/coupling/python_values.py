"""What the interpreter does on Python's own values: numbers, lists, tuples and dicts, with labelled tensors in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from pared.compression.coupling.labels import Tracked

Node = Any  # torch._C.Node


class UnsupportedGraph(Exception):
    """The graph holds a construct that this interpreter does not run; the message names it."""


def spoken(kind: str) -> str:
    """What people call an operator: torch.conv2d."""
    namespace, _, name = kind.rpartition("::")
    name = name.strip("_")
    return f"TorchScript's {name}" if namespace == "prim" else f"{namespace.replace('aten', 'torch')}.{name}"


def wrapped(value: Any) -> Any:
    """The value with labels for each tensor in it."""
    if isinstance(value, torch.Tensor):
        return Tracked(value)
    if isinstance(value, list):
        return [wrapped(item) for item in value]
    if isinstance(value, tuple):
        return tuple(wrapped(item) for item in value)
    return value


def unwrapped(value: Any) -> Any:
    """The value with plain tensors."""
    if isinstance(value, Tracked):
        return value.tensor
    if isinstance(value, list):
        return [unwrapped(item) for item in value]
    if isinstance(value, tuple):
        return tuple(unwrapped(item) for item in value)
    return value


def truth(value: Any) -> bool:
    """Whether a condition holds."""
    return bool(unwrapped(value))


def _isinstance(node: Node, args: list[Any]) -> list[Any]:
    inferred = torch._C._jit_try_infer_type(unwrapped(args[0]))
    if not inferred.success():
        raise UnsupportedGraph(spoken(node.kind()))
    return [any(inferred.type().isSubtypeOf(kind) for kind in node.tys("types"))]


def _mutated(mutate: Callable[[list[Any]], Any]) -> Callable[[Node, list[Any]], list[Any]]:
    def run(node: Node, args: list[Any]) -> list[Any]:
        mutate(args)
        return [args[0]] if node.outputsSize() else []

    return run


# What is done on Python's own values: containers keep the `Tracked` in them, with their labels.
ON_VALUES: dict[str, Callable[[Node, list[Any]], list[Any]]] = {
    "prim::ListConstruct": lambda node, args: [list(args)],
    "prim::TupleConstruct": lambda node, args: [tuple(args)],
    "prim::DictConstruct": lambda node, args: [dict(zip(args[::2], args[1::2], strict=True))],
    "prim::ListUnpack": lambda node, args: list(args[0]),
    "prim::TupleUnpack": lambda node, args: list(args[0]),
    "prim::TupleIndex": lambda node, args: [args[0][args[1]]],
    "prim::TupleSlice": lambda node, args: [args[0][node.i("beg") : node.i("end")]],
    "prim::unchecked_cast": lambda node, args: [args[0]],
    "prim::unchecked_unwrap_optional": lambda node, args: [args[0]],
    "aten::_unwrap_optional": lambda node, args: [args[0]],
    "prim::data": lambda node, args: [args[0]],
    "prim::Uninitialized": lambda node, args: [None],
    "prim::Print": lambda node, args: [],
    "prim::isinstance": _isinstance,
    "aten::warn": lambda node, args: [],
    "aten::format": lambda node, args: [str(args[0]).format(*(unwrapped(arg) for arg in args[1:]))],
    # Generic builtins: their schemas take any type, which Python's way of calling them does not.
    "aten::__is__": lambda node, args: [args[0] is args[1]],
    "aten::__isnot__": lambda node, args: [args[0] is not args[1]],
    "aten::__contains__": lambda node, args: [unwrapped(args[1]) in unwrapped(args[0])],
    "aten::len": lambda node, args: [len(unwrapped(args[0]))],
    "aten::append": _mutated(lambda args: args[0].append(args[1])),
    "aten::extend": _mutated(lambda args: args[0].extend(args[1])),
    "aten::insert": _mutated(lambda args: args[0].insert(args[1], args[2])),
    "aten::_set_item": _mutated(lambda args: args[0].__setitem__(args[1], args[2])),
    "aten::clear": _mutated(lambda args: args[0].clear()),
    "aten::reverse": _mutated(lambda args: args[0].reverse()),
    "aten::__getitem__": lambda node, args: [args[0][args[1]]],
    "aten::pop": lambda node, args: [args[0].pop(args[1])],
    "aten::list": lambda node, args: [list(args[0])],
    "aten::copy": lambda node, args: [copy.copy(args[0])],
    "aten::keys": lambda node, args: [list(args[0].keys())],
    "aten::values": lambda node, args: [list(args[0].values())],
    "aten::items": lambda node, args: [list(args[0].items())],
    "aten::get": lambda node, args: [args[0].get(*args[1:])],
}


def _tensor(data: list[Any], dtype: int | None, device: Any, _: bool) -> Tracked:
    """torch.tensor of a list, of which the operator takes a kind that Python cannot make."""
    made = torch.tensor(unwrapped(data), device=device)
    if dtype is not None:  # a number, as the format has it
        made = torch._C._get_operation_overload("aten::to", "dtype")[0](made, dtype)
    return Tracked(made)


ON_LISTS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "aten::tensor": lambda args: [_tensor(*args)],
    "aten::slice": lambda args: [args[0][args[1] : args[2] : args[3]]],
    "aten::add": lambda args: [args[0] + args[1]],
    "aten::mul": lambda args: [args[0] * args[1]],
}
