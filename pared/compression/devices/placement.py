"""Owns where a model runs: puts its tensors, and the devices that are written into it, on one device.

Tracing writes the device that it ran on into a graph, and code that was scripted may name one: as a literal, as text,
in an attribute or as the default of an argument. Such a model runs on no other device until it says so.
"""

from __future__ import annotations

import io
import operator
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.jit._fuser import optimized_execution
from torch.utils._pytree import tree_map_only

from pared.compression.devices.script_code import COMPUTED, Place, constant_of, places_in
from pared.compression.devices.values import _C, CPU, Graph, Moved, device_named, is_away, leaves
from pared.weights.program import write_record


def place(module: nn.Module, device: str | torch.device) -> None:
    """Move a module to a device, in place: its tensors, and the devices that are written into its code.

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
    placed = Moved(target)
    for layer in module.modules():
        if isinstance(layer, torch.jit.ScriptModule):
            for name, value in [*_tensors(layer), *_attributes(layer)]:
                if is_away(value, target):
                    layer._c.setattr(name, placed.of(value))
    if not isinstance(module, torch.jit.ScriptModule):
        _place_plain(module, placed)


def place_graph(graph: Graph, device: torch.device, module: torch.jit.ScriptModule) -> None:
    """Move a graph that has not run yet to a device; all calls of the module's methods in it are inlined."""
    for written in list(places_in(graph, device, module._c)):
        written.change()


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first tensor, which may be a constant of its code; the CPU, if it has none."""
    for layer in module.modules():
        for _, tensor in _tensors(layer):
            return tensor.device
    for script in scripts_in(module):
        for graph in graphs_of(script):
            for node in graph.findAllNodes("prim::Constant", recurse=True):
                for leaf in leaves(constant_of(node)):
                    if isinstance(leaf, Tensor):
                        return leaf.device
    return CPU


def foreign_devices(module: nn.Module) -> list[str]:
    """The devices other than the CPU that are written into the ScriptModules of a module, sorted."""
    names: set[str] = set()
    for script in scripts_in(module):
        names |= {written.device for written in _written(script, CPU)}
        values = [value for layer in _layers(script) for _, value in _attributes(layer)]
        names |= {str(leaf) for leaf in leaves(values) if isinstance(leaf, torch.device)}
        if COMPUTED in names:
            names |= {text for text in _texts(script) if device_named(text) is not None}
    return sorted(names - {"", "cpu", COMPUTED})


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
    tensors = [*layer._parameters.items(), *layer._buffers.items()]
    return [(name, tensor) for name, tensor in tensors if tensor is not None]


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
    if isinstance(kind, _C.ClassType):  # an object of the code's own: see `places_in`
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
    cpp_module = script._c
    methods = [cpp_module._get_method(name) for name in cpp_module._method_names()]
    for function in [*methods, *cpp_module._get_forward_pre_hooks(), *cpp_module._get_forward_hooks()]:
        graph = function.graph.copy()
        with optimized_execution(True):  # torch keeps what it inlines, and would otherwise keep it as it is
            _C._jit_pass_inline(graph)
        yield graph
        if graph.findNode("prim::CallMethod", recurse=True) is not None:  # of an interface, which any module may be
            yield from (method.graph for method in _methods(script))


def _place_plain(module: nn.Module, moved: Moved) -> None:
    """Place a module that Python runs; the ScriptModules in it are placed already."""
    before = [(layer, name, tensor) for layer in module.modules() for name, tensor in _tensors(layer)]
    module.to(moved.target)
    for layer, name, tensor in before:
        moved.know(tensor, getattr(layer, name))
    for layer in module.modules():
        if isinstance(layer, torch.jit.ScriptModule):
            continue
        for name, value in _attributes(layer):
            if is_away(value, moved.target):
                setattr(layer, name, moved.of(value))
        if isinstance(layer, fx.GraphModule):
            _place_fx_graph(layer, moved.target)


def _place_fx_graph(module: fx.GraphModule, target: torch.device) -> None:
    """Let the calls of a graph of torch.fx or torch.export name the target wherever they name a device."""
    changed = False
    for node in module.graph.nodes:
        arguments = node.args, node.kwargs
        if node.target not in (operator.eq, operator.ne) and is_away(arguments, target):
            node.args, node.kwargs = tree_map_only(torch.device, lambda _: target, arguments)
            changed = True
    if changed:
        module.recompile()


def _written(script: torch.jit.ScriptModule, target: torch.device) -> Iterator[Place]:
    for value in _defaults(script):
        if isinstance(value, torch.device) and value != target:
            yield Place(str(value), lambda: None)  # changed in the text: see `_with_defaults`
    for graph in graphs_of(script):
        yield from places_in(graph, target, script._c)


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
        for written in list(places_in(function.graph, target, fresh)):
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
