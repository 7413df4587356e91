"""Owns where a model runs: puts its tensors, and the devices that are written into it, on one device.

Tracing writes the device that it ran on into a graph, and code that was scripted may name one: as a literal, as text,
in an attribute or as the default of an argument. Such a model runs on no other device until it says so. The graph API
used here is private to torch; `tests/compression/test_device_literals.py` pins what is relied on.
"""

from __future__ import annotations

import functools
import io
import operator
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.jit._fuser import optimized_execution
from torch.utils._pytree import tree_map_only

from pared.weights.program import write_record

Graph = Any  # _C.Graph
Node = Any  # _C.Node
Value = Any  # _C.Value

CPU = torch.device("cpu")
_C: Any = torch._C  # whose types lack most of what is used here

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
_COMPUTED = "computed"
"""Stands for a device whose name the code puts together as it runs."""


def place(module: nn.Module, device: str | torch.device) -> None:
    """Let a module run on a device, in place: its tensors go there, and what is written in it says so.

    That is: parameters and buffers, tensors in attributes, constants of the code, and devices in all of these. What the
    code makes without naming a device is made there too, except for numbers that shapes are computed from. Pinned
    memory, which only CUDA has, is asked for no more. A device that is only compared with stays: the code asks where a
    tensor is, and is told the truth.

    A ScriptModule whose code must change gets code of its own: copies of it keep theirs, and what torch has compiled
    before does not matter. Its names, attributes, modes and submodules stay. Tensors that move become other objects,
    without gradients: make optimizers afterwards.
    """
    target = torch.empty(0, device=device).device  # with its index, for a tensor is on cuda:0 rather than on cuda
    for script in scripts_in(module):
        if next(_written(script, target), None) is not None:
            _rewrite(script, target)
    placed = _Moved(target)
    for layer in module.modules():
        if isinstance(layer, torch.jit.ScriptModule):
            for name, value in [*_tensors(layer), *_attributes(layer)]:
                if _is_away(value, target):
                    layer._c.setattr(name, placed.of(value))
    if not isinstance(module, torch.jit.ScriptModule):
        _place_plain(module, placed)


def place_graph(graph: Graph, device: torch.device, module: torch.jit.ScriptModule) -> None:
    """The same for a graph that has not run yet, in which all calls of the module's methods are inlined."""
    for written in list(_places(graph, device, module._c)):
        written.change()


def device_of(module: nn.Module) -> torch.device:
    """Where a module runs: where its first tensor is, be it a constant of its code. The CPU, if it has none."""
    for layer in module.modules():
        for _, tensor in _tensors(layer):
            return tensor.device
    for script in scripts_in(module):
        for graph in graphs_of(script):
            for node in graph.findAllNodes("prim::Constant", recurse=True):
                for leaf in _leaves(_constant(node)):
                    if isinstance(leaf, Tensor):
                        return leaf.device
    return CPU


def foreign_devices(module: nn.Module) -> list[str]:
    """The devices other than the CPU that are written into the ScriptModules of a module, sorted."""
    names: set[str] = set()
    for script in scripts_in(module):
        names |= {written.device for written in _written(script, CPU)}
        held = [value for layer in _layers(script) for _, value in _attributes(layer)]
        names |= {str(leaf) for leaf in _leaves(held) if isinstance(leaf, torch.device)}
        if _COMPUTED in names:
            names |= {text for text in _texts(script) if _device_named(text) is not None}
    return sorted(names - {"", "cpu", _COMPUTED})


# -- modules, and what they hold ------------------------------------------------------------------


def scripts_in(module: nn.Module) -> Iterator[torch.jit.ScriptModule]:
    """The outermost ScriptModules of a module."""
    if isinstance(module, torch.jit.ScriptModule):
        yield module
        return
    for child in module.children():
        yield from scripts_in(child)


def _layers(script: torch.jit.ScriptModule) -> Iterator[Any]:
    return (layer for layer in script.modules() if isinstance(layer, torch.jit.ScriptModule))


def _tensors(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """A layer's own parameters and buffers."""
    held = [*layer._parameters.items(), *layer._buffers.items()]
    return [(name, tensor) for name, tensor in held if tensor is not None]


_STATE = frozenset(vars(nn.Module()))


def _attributes(layer: nn.Module) -> list[tuple[str, Any]]:
    """What else a layer holds that may be, or contain, a device or a tensor."""
    if not isinstance(layer, torch.jit.ScriptModule):
        return [(name, value) for name, value in vars(layer).items() if name not in _STATE]
    return [(name, layer._c.getattr(name)) for name, kind in _kinds(layer).items() if _may_hold(kind)]


def _kinds(layer: Any) -> dict[str, Any]:
    """The types of a ScriptModule's attributes, besides parameters, buffers and modules."""
    kind = layer._c._type()
    if all(isinstance(part, _PLAIN) for part in kind.containedTypes()):  # as nearly always, and much faster
        return {}
    return {name: part for name, (part, _) in _C.ConcreteModuleType.from_jit_type(kind).get_attributes().items()}


_PLAIN = (_C.TensorType, _C.BoolType, _C.IntType, _C.FloatType, _C.NoneType, _C.ClassType)


def _may_hold(kind: Any) -> bool:
    if isinstance(kind, _C.ClassType):  # an object of the code's own: see `_places`
        return False
    if isinstance(kind, (_C.DeviceObjType, _C.TensorType)):
        return True
    return any(_may_hold(part) for part in kind.containedTypes())


def _texts(script: torch.jit.ScriptModule) -> Iterator[str]:
    """Texts that a ScriptModule is made or called with, by default."""
    for layer in _layers(script):
        kinds = _kinds(layer).items()
        yield from (layer._c.getattr(name) for name, kind in kinds if isinstance(kind, _C.StringType))
    yield from (value for value in _defaults(script) if isinstance(value, str))


def _defaults(script: torch.jit.ScriptModule) -> Iterator[Any]:
    """The defaults of the arguments of all methods."""
    for method in _methods(script):
        yield from (argument.default_value for argument in method.schema.arguments if argument.has_default_value())


def _methods(script: torch.jit.ScriptModule) -> Iterator[Any]:
    """All methods of a ScriptModule and of those inside of it, which share them where they are of one class."""
    for kind in {layer._c._type().qualified_name(): layer._c for layer in _layers(script)}.values():
        yield from (kind._get_method(name) for name in kind._method_names())


def graphs_of(script: torch.jit.ScriptModule) -> Iterator[Graph]:
    """The code that a ScriptModule runs: copies of the graphs of its methods and hooks in which calls are inlined."""
    held = script._c
    methods = [held._get_method(name) for name in held._method_names()]
    for function in [*methods, *held._get_forward_pre_hooks(), *held._get_forward_hooks()]:
        graph = function.graph.copy()
        with optimized_execution(True):  # torch keeps what it inlines, and would otherwise keep it as it is
            _C._jit_pass_inline(graph)
        yield graph
        if graph.findNode("prim::CallMethod", recurse=True) is not None:  # of an interface, which any module may be
            yield from (method.graph for method in _methods(script))


# -- devices and tensors among values -------------------------------------------------------------


def _leaves(value: Any) -> Iterator[torch.device | Tensor]:
    """The devices and tensors in a value."""
    if isinstance(value, (torch.device, Tensor)):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))


def _is_away(value: Any, target: torch.device) -> bool:
    return any((leaf if isinstance(leaf, torch.device) else leaf.device) != target for leaf in _leaves(value))


class _Moved:
    """Moves values to a target; a tensor that comes again, under another name or in a list, is moved once."""

    def __init__(self, target: torch.device) -> None:
        self.target = target
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # with the tensor that has this id, so that it keeps it

    def know(self, tensor: Tensor, moved: Tensor) -> None:
        """Something else has moved this tensor."""
        self._known[id(tensor)] = tensor, moved

    def of(self, value: Any) -> Any:
        """A value with its devices and tensors on the target."""
        if isinstance(value, torch.device):
            return self.target
        if isinstance(value, Tensor):
            if id(value) not in self._known:
                self.know(value, self._tensor(value))
            return self._known[id(value)][1]
        if isinstance(value, (list, tuple)):
            parts = [self.of(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, dict):
            return {key: self.of(part) for key, part in value.items()}
        return value

    def _tensor(self, tensor: Tensor) -> Tensor:
        if tensor.device == self.target:
            return tensor
        moved = tensor.detach().to(self.target)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(moved, requires_grad=tensor.requires_grad)
        return moved.requires_grad_(tensor.requires_grad)


def _device_named(*name: Any) -> torch.device | None:
    """The device of a name, such as `cuda:0`; None, if there is none."""
    try:
        return torch.device(*name)
    except (RuntimeError, TypeError):
        return None


def _place_plain(module: nn.Module, moved: _Moved) -> None:
    """Place a module that Python runs; the ScriptModules in it are placed already."""
    before = [(layer, name, tensor) for layer in module.modules() for name, tensor in _tensors(layer)]
    module.to(moved.target)
    for layer, name, tensor in before:
        moved.know(tensor, getattr(layer, name))
    for layer in module.modules():
        if isinstance(layer, torch.jit.ScriptModule):
            continue
        for name, value in _attributes(layer):
            if _is_away(value, moved.target):
                setattr(layer, name, moved.of(value))
        if isinstance(layer, fx.GraphModule):
            _place_fx_graph(layer, moved.target)


def _place_fx_graph(module: fx.GraphModule, target: torch.device) -> None:
    """Let the calls of a graph of torch.fx or torch.export name the target wherever they name a device."""
    changed = False
    for node in module.graph.nodes:
        given = node.args, node.kwargs
        if node.target not in (operator.eq, operator.ne) and _is_away(given, target):
            node.args, node.kwargs = tree_map_only(torch.device, lambda _: target, given)
            changed = True
    if changed:
        module.recompile()


# -- code of ScriptModules ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A place in the code where something else than the target is written, and how it is changed.

    `device`: the one that is written, `_COMPUTED`, or the empty text.
    """

    device: str
    change: Callable[[], None]


def _written(script: torch.jit.ScriptModule, target: torch.device) -> Iterator[_Place]:
    for value in _defaults(script):
        if isinstance(value, torch.device) and value != target:
            yield _Place(str(value), lambda: None)  # changed in the text: see `_with_defaults`
    for graph in graphs_of(script):
        yield from _places(graph, target, script._c)


def _rewrite(script: torch.jit.ScriptModule, target: torch.device) -> None:
    """Give a ScriptModule other code in which all names the target.

    The code is written and read again, as into a file, for torch never looks again at a graph that has run.
    """
    unit = _C.CompilationUnit()
    saved = script._c.save_to_buffer()
    if any(isinstance(value, torch.device) for value in _defaults(script)):
        saved = _with_defaults(saved, target)
    fresh = _C.import_ir_module_from_buffer(unit, saved, CPU, {}, False)
    for function in unit.get_functions():
        for written in list(_places(function.graph, target, fresh)):
            written.change()
    _take_over(script, fresh)


def _take_over(layer: Any, fresh: Any) -> None:
    """Let a ScriptModule be another in C++, of the same attributes; its tensors stay the objects that they are."""
    layer = vars(layer).get("_actual_script_module", layer)  # of a module that was just traced
    for name, child in _C.ModuleDict(fresh).items():
        _take_over(layer._modules[name], child)
    for name, value in [*_tensors(layer), *_attributes(layer)]:
        fresh.setattr(name, value)
    state = layer.__dict__
    for name in [name for name, value in state.items() if isinstance(value, _C.ScriptMethod)]:
        del state[name]  # kept there since it was first called
    state["_c"] = fresh
    state["_concrete_type"] = _C.ConcreteModuleType.from_jit_type(fresh._type())
    state["_parameters"] = torch.jit._script.OrderedDictWrapper(_C.ParameterDict(fresh))
    state["_buffers"] = torch.jit._script.OrderedDictWrapper(_C.BufferDict(fresh))
    state["_modules"] = torch.jit._script.OrderedModuleDict(fresh, layer._modules._python_modules)
    layer._forward_pre_hooks.update(enumerate(fresh._get_forward_pre_hooks()))
    layer._forward_hooks.update(enumerate(fresh._get_forward_hooks()))


def _module_kinds(held: Any) -> set[str]:
    """The names of the classes of a C++ module and those inside of it."""
    inside = [_module_kinds(child) for _, child in _C.ModuleDict(held).items()]
    return {held._type().qualified_name()}.union(*inside)


_DEFAULT = re.compile(rb'(\bDevice\]?=)torch\.device\("[^"]*"\)')


def _with_defaults(saved: bytes, target: torch.device) -> bytes:
    """A TorchScript archive whose functions have the target for the default of every device."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(written, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(".py"):
                content = _DEFAULT.sub(rf'\1torch.device("{target}")'.encode(), content)
            write_record(new, entry.filename, content, compressed=entry.compress_type != zipfile.ZIP_STORED)
    return written.getvalue()


def _places(graph: Graph, target: torch.device, root: Any) -> Iterator[_Place]:
    """Where a graph says something else than the target. A change may take away nodes, but none of another place.

    Args:
        root: the C++ module that the code is of. Devices in attributes of modules are set there; those in attributes of
            other objects, which Python cannot set, are not read any more.
    """
    for node in graph.findAllNodes("prim::Constant", recurse=True):
        value = _constant(node)
        if _is_away(value, target) and not _only_compared(node.output()) and not _is_count(node.output(), value):
            yield _Place(_named(value), functools.partial(_replace, graph, node, target, value))
    for node in graph.findAllNodes("aten::device", recurse=True):
        named = [_constant(given.node()) for given in node.inputs()]
        device = None if None in named else _device_named(*named)
        if device != target and not _only_compared(node.output()):
            yield _Place(str(device or _COMPUTED), functools.partial(_replace, graph, node, target, target))
    for node in graph.findAllNodes("prim::GetAttr", recurse=True):
        if not isinstance(node.output().type(), _C.DeviceObjType) or _only_compared(node.output()):
            continue
        if next(node.inputs()).type().qualified_name() not in _module_kinds(root):
            yield _Place("", functools.partial(_replace, graph, node, target, target))
    for name in {"cuda", "cpu"} - {target.type}:
        for node in graph.findAllNodes(f"aten::{name}", recurse=True):
            yield _Place(name, functools.partial(_replace_move, graph, node, target))
    for name in ("aten::pin_memory", "aten::_pin_memory"):
        for node in graph.findAllNodes(name, recurse=True):
            yield _Place("", functools.partial(_drop, node))
    yield from _in_arguments(graph, target)


def _in_arguments(graph: Graph, target: torch.device) -> Iterator[_Place]:
    """Where an operator that makes a tensor may name no device, and so the CPU, or may ask for pinned memory."""
    for kind in (*FACTORIES, *COPIES):
        for node in graph.findAllNodes(kind, recurse=True):
            inputs = list(node.inputs())
            device, pinned = _positions(node.schema())
            if pinned is not None and not _is_off(inputs[pinned]):
                yield _Place("", functools.partial(_set_argument, graph, node, pinned, False))
            if device is None or target == CPU or isinstance(inputs[device].type(), _C.DeviceObjType):
                continue
            if not _is_number(node.output()):
                yield _Place("", functools.partial(_set_argument, graph, node, device, target))


def _is_off(value: Value) -> bool:
    """Whether a flag is surely not set."""
    return value.node().kind() == "prim::Constant" and not _constant(value.node())


@functools.cache
def _positions(schema: str) -> tuple[int | None, int | None]:
    """Which arguments are the device, of an operator that takes no tensor, and whether memory is pinned."""
    arguments = _C.parse_schema(schema).arguments
    names = [argument.name for argument in arguments]
    takes_tensor = any("Tensor" in str(argument.type) for argument in arguments)
    device = names.index("device") if "device" in names and not takes_tensor else None
    return device, names.index("pin_memory") if "pin_memory" in names else None


def _constant(node: Node) -> Any:
    """The value of a constant; None, if it is none or another node."""
    return node.output().toIValue() if node.kind() == "prim::Constant" and node.hasAttribute("value") else None


def _named(value: Any) -> str:
    """The device in a value, if there is one."""
    return next((str(leaf) for leaf in _leaves(value) if isinstance(leaf, torch.device)), "")


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
        constant = graph.insertConstant(_Moved(target).of(value))
    for use in node.output().uses():
        if use.user.kind() not in _COMPARISONS:
            use.user.replaceInput(use.offset, constant)
    if not node.output().uses():
        node.destroy()


def _replace_move(graph: Graph, node: Node, target: torch.device) -> None:
    """Write `x.to(target)` for `x.cuda()` or `x.cpu()`."""
    with graph.insert_point_guard(node):
        given = [graph.insertConstant(value) for value in (target, None, False, False)]
        move = graph.insertNode(graph.create("aten::to", [next(node.inputs()), *given], 1))
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
