"""A function made of a ScriptModule's own graph that also returns what its layers gave.

A ScriptModule takes no hooks. The graph API is private to torch; `tests/integration/compression/test_distill.py` and
`test_features.py` pin what is relied on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pared.compression.coupling.reloading import reloaded
from pared.compression.devices.placement import device_of, place_graph

_OPERATORS = (
    "aten::linear",
    "aten::addmm",
    "aten::mm",
    "aten::matmul",
    "aten::conv",
    "aten::_conv",
    "aten::embedding",
    "aten::batch_norm",
    "aten::layer_norm",
    "aten::group_norm",
    "aten::instance_norm",
    "aten::lstm",
    "aten::gru",
    "aten::rnn",
)
_MARK = "prim::Print"
_TURNED = ("aten::t", "aten::transpose", "aten::numpy_T")


Run = tuple[Any, Any]
"""A value that a layer gave, and the node of the graph behind which it is there."""
Capturing = Callable[..., tuple[Any, dict[str, list[Any]]]]
"""`inputs -> (output, layer -> what it gave in each of its runs)`, in the order in which layers end."""


class NoSuchLayer(LookupError):
    """There is no layer of this name; `known` are those that there are."""

    def __init__(self, layer: str, known: Sequence[str]) -> None:
        super().__init__(layer)
        self.layer, self.known = layer, known


def capturing_script(module: torch.jit.ScriptModule, layers: Sequence[str] | None) -> tuple[Capturing, dict[str, str]]:
    """A function that runs a ScriptModule and returns what its layers gave, and of each layer its kind.

    In a copy, every call of a submodule is marked before calls are inlined. Where calls are inlined in the file, as in
    exported programs and where removing channels had to rewrite a size, a layer is the last operator that takes its
    weight. Weights and the training flag are read from the module at each call.

    Args:
        module: it is not changed.
        layers: names; None: all.

    Returns:
        The function, and name -> class of the submodule, or operator.

    Raises:
        NoSuchLayer: a name is unknown.
    """
    copy: Any = reloaded(module)
    marked: set[str] = set()
    for submodule in copy.modules():
        kind = submodule._c._type().qualified_name()
        if kind not in marked:  # instances of one class share their code
            marked.add(kind)
            for method in submodule._c._method_names():
                graph = submodule._c._get_method(method).graph
                _mark_calls(graph, graph)
    graph = copy._c._get_method("forward").graph
    torch._C._jit_pass_inline(graph)
    graph = graph.copy()
    place_graph(graph, device_of(module), copy)
    runs = _Runs()
    runs.collect(graph)
    classes = {name: str(submodule.original_name) for name, submodule in copy.named_modules()}
    for name in layers or ():
        if name not in runs.found:
            raise NoSuchLayer(name, list(runs.found))
    names = [name for name in runs.found if layers is None or name in layers]
    function = _returning(graph, [runs.found[name] for name in names])

    def run(*inputs: Any) -> tuple[Any, dict[str, list[Any]]]:
        output, *captured = function(module, *inputs)
        return output, dict(zip(names, captured, strict=True))

    return run, {name: runs.operators.get(name) or classes[name] for name in names}


def capturing_eager(module: nn.Module, layers: Sequence[str] | None) -> tuple[Capturing, dict[str, str]]:
    """The same of any other module, by hooks."""
    named = {name: each for name, each in module.named_modules() if name}
    for name in layers or ():
        if name not in named:
            raise NoSuchLayer(name, list(named))
    names = list(named) if layers is None else list(dict.fromkeys(layers))

    def run(*inputs: Any) -> tuple[Any, dict[str, list[Any]]]:
        captured: dict[str, list[Any]] = {}

        def keeper(name: str) -> Any:
            def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
                captured[name] = [*captured.pop(name, []), _first(output)]

            return keep

        hooks = [named[name].register_forward_hook(keeper(name)) for name in names]
        try:
            output = module(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return output, captured

    return run, {name: type(named[name]).__name__ for name in names}


def _first(output: Any) -> Any:
    """Of a tuple, as recurrent layers give it, the first tensor."""
    if not isinstance(output, tuple):
        return output
    return next((each for each in output if isinstance(each, torch.Tensor)), output)


def _mark_calls(graph: Any, block: Any) -> None:
    """After each call of a submodule a node that prints it and its output, which inlining does not optimize away."""
    for node in list(block.nodes()):
        for inner in node.blocks():
            _mark_calls(graph, inner)
        # The second call of a traced module is a method `forward1`.
        if node.kind() == "prim::CallMethod" and node.s("name").startswith("forward"):
            graph.create(_MARK, [next(node.inputs()), node.output()], 0).insertAfter(node)


class _Runs:
    """The layers of an inlined graph in the order of their last runs; `operators`: of those that are no calls."""

    def __init__(self) -> None:
        self.found: dict[str, list[Run]] = {}
        self.operators: dict[str, str] = {}

    def collect(self, block: Any) -> None:
        for node in block.nodes():
            for inner in node.blocks():
                self.collect(inner)
            if _is_mark(node):
                called, output = node.inputs()
                if (name := _path(called)) and _holds_tensor(output):
                    earlier = [] if name in self.operators else self.found.get(name, [])
                    self.operators.pop(name, None)
                    self._add(name, [*earlier, (output, node)])
            elif node.kind().startswith(_OPERATORS):
                for name in dict.fromkeys(map(_layer_of, _arguments(node))):
                    if name and (name in self.operators or name not in self.found):
                        self.operators[name] = node.kind().removeprefix("aten::")
                        self._add(name, [(next(node.outputs()), node)])

    def _add(self, name: str, runs: list[Run]) -> None:
        self.found.pop(name, None)
        self.found[name] = runs


def _returning(graph: Any, layers: Sequence[list[Run]]) -> Any:
    """The graph as a function that also returns a list for each layer, to which each run adds what it gave."""
    lists = []
    for runs in layers:
        made = graph.create("prim::ListConstruct", [], 1)
        made.output().setType(torch._C.ListType(torch._C.TensorType.get()))
        graph.prependNode(made)
        lists.append(made.output())
        for value, node in runs:
            tensor, behind = _first_tensor(graph, value, node)
            added = graph.create("aten::append", [made.output(), tensor], 1)
            added.output().setType(made.output().type())
            added.insertAfter(behind)
    result = graph.create("prim::TupleConstruct", [*graph.outputs(), *lists], 1)
    result.output().setType(torch._C.TupleType([value.type() for value in result.inputs()]))
    graph.appendNode(result)
    for _ in list(graph.outputs()):
        graph.eraseOutput(0)
    graph.registerOutput(result.output())
    _without_marks(graph)
    torch._C._jit_pass_dce(graph)
    return torch._C._create_function_from_graph("with_features", graph)


def _first_tensor(graph: Any, value: Any, node: Any) -> tuple[Any, Any]:
    """The tensor of a value, of a tuple as recurrent layers give it the first one; and the node behind it."""
    if value.type().kind() != "TupleType":
        return value, node
    unpacked = graph.create("prim::TupleUnpack", [value], len(value.type().elements()))
    for output, kind in zip(unpacked.outputs(), value.type().elements(), strict=True):
        output.setType(kind)
    unpacked.insertAfter(node)
    return next(output for output in unpacked.outputs() if output.type().kind() == "TensorType"), unpacked


def _holds_tensor(value: Any) -> bool:
    kind = value.type()
    kinds = kind.elements() if kind.kind() == "TupleType" else [kind]
    return any(each.kind() == "TensorType" for each in kinds)


def _is_mark(node: Any) -> bool:
    first = next(node.inputs(), None) if node.kind() == _MARK else None
    return first is not None and isinstance(first.type(), torch._C.ClassType)


def _without_marks(block: Any) -> None:
    for node in list(block.nodes()):
        for inner in node.blocks():
            _without_marks(inner)
        if _is_mark(node):
            node.destroy()


def _arguments(node: Any) -> Iterator[Any]:
    """The inputs of a node, those in lists too, as recurrent layers have their weights."""
    for value in node.inputs():
        made = value.node()
        yield from made.inputs() if made.kind() == "prim::ListConstruct" else [value]


def _layer_of(value: Any) -> str:
    """The layer that a value is a weight of, transposed or not; else the empty text."""
    if value.node().kind() in _TURNED:
        value = next(value.node().inputs())
    layer, _, weight = _path(value).rpartition(".")
    return layer if "weight" in weight else ""


def _path(value: Any) -> str:
    """`layer1.conv.weight` for a chain of attributes that starts at the module itself, else the empty text."""
    parts: list[str] = []
    while value.node().kind() == "prim::GetAttr":
        parts.append(value.node().s("name"))
        value = next(value.node().inputs())
    return ".".join(reversed(parts)) if value.node().kind() == "prim::Param" else ""
