"""Makes a ScriptModule anew with no more modules and tensors than its forward graph reads.

TorchScript's classes never lose an attribute, and modules share them. So new modules of the same names are compiled,
and the graph moves over to them. The calls used are private to torch; `tests/compression/test_residual.py` pins them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.interpreter import inlined_graph, nodes_of, reloaded
from pared.compression.coupling.shrink import StorageKey, storage_key

_BODY = "forward_as_a_function"


def without_unused(script: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A copy of a ScriptModule that holds what its `forward` reads, under the same names, and nothing else.

    Calls are inlined. Numbers and the like that no step changes become constants.

    Raises:
        RuntimeError: torch's own, where an attribute is neither a module, a tensor nor a plain value.
    """
    graph = inlined_graph(script).copy()
    owner = next(graph.inputs())
    modules: dict[str, Any] = {owner.debugName(): (script._c, "")}
    attributes: dict[str, tuple[Any, list[Any]]] = {}  # path -> value, and the nodes that read it
    changed: set[str] = set()
    for node in nodes_of(graph):
        if node.kind() not in ("prim::GetAttr", "prim::SetAttr"):
            continue
        module, path = modules[node.inputsAt(0).debugName()]
        name = node.s("name")
        full = f"{path}.{name}" if path else name
        if node.kind() == "prim::SetAttr":
            changed.add(full)
            continue
        value = module.getattr(name)
        if isinstance(value, torch._C.ScriptModule):
            modules[node.output().debugName()] = value, full
        else:
            attributes.setdefault(full, (value, []))[1].append(node)
    held: dict[str, Any] = {}
    for full, (value, nodes) in attributes.items():
        if isinstance(value, Tensor) or full in changed:
            held[full] = value
        elif full.rpartition(".")[2] != "training":
            for node in nodes:
                with graph.insert_point_guard(node):
                    node.output().replaceAllUsesWith(graph.insertConstant(value))
                node.destroy()
    fresh = torch.jit.script(_tree(script, held, [path for _, path in modules.values()]))
    _move(graph, fresh)
    _define(fresh, graph, script)
    fresh.train(script.training)
    return reloaded(fresh)


def _tree(script: torch.jit.ScriptModule, held: dict[str, Any], paths: list[str]) -> nn.Module:
    """Modules with these attributes, in the order in which the original has them."""
    parameters = dict(script.named_parameters(remove_duplicate=False))
    buffers = dict(script.named_buffers(remove_duplicate=False))
    names = {path: child.original_name for path, child in script.named_modules(remove_duplicate=False)}
    read = {prefix for path in [*paths, *held] for prefix in _prefixes(path)}
    root = _module(names[""])
    of_path = {"": root}
    for path, name in names.items():
        if path in read and path:
            above, _, leaf = path.rpartition(".")
            of_path[path] = _module(name)
            of_path[above].add_module(leaf, of_path[path])
    tied: dict[StorageKey, nn.Parameter] = {}
    for path in [*parameters, *buffers, *(path for path in held if path not in parameters and path not in buffers)]:
        if path not in held:
            continue
        above, _, leaf = path.rpartition(".")
        if path in parameters:
            tensor = parameters[path]
            made = nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
            of_path[above].register_parameter(leaf, tied.setdefault(storage_key(tensor), made))
        elif path in buffers:
            of_path[above].register_buffer(leaf, buffers[path])
        else:
            setattr(of_path[above], leaf, held[path])
    return root


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _module(kind: str) -> nn.Module:
    made: nn.Module = type(kind, (nn.Module,), {"__module__": "program"})()
    return made


def _move(graph: Any, fresh: torch.jit.ScriptModule) -> None:
    """Let a graph read the modules of a new tree."""
    owner = next(graph.inputs())
    owner.setType(fresh._c._type())
    modules = {owner.debugName(): fresh._c}
    for node in nodes_of(graph):
        if node.kind() == "prim::GetAttr":
            value = modules[node.inputsAt(0).debugName()].getattr(node.s("name"))
            if isinstance(value, torch._C.ScriptModule):
                node.output().setType(value._type())
                modules[node.output().debugName()] = value
            elif isinstance(value, Tensor):
                node.output().setType(torch._C.TensorType.get())


def _define(fresh: torch.jit.ScriptModule, graph: Any, script: torch.jit.ScriptModule) -> None:
    """Give a module a forward with this graph, and the arguments that the original's has."""
    unit = torch.jit._state._python_cu
    body = unit.create_function(f"__torch__.program.{_BODY}", graph, True)
    _, *arguments = script._c._get_method("forward").schema.arguments
    taken = [
        f"{a.name}: {a.type.annotation_str}" + (f" = {a.default_value!r}" if a.has_default_value() else "")
        for a in arguments
    ]
    given = ", ".join(["self", *(argument.name for argument in arguments)])
    source = f"def forward({', '.join(['self', *taken])}):\n    return {_BODY}({given})\n"
    known = {_BODY: body, "Tensor": Tensor, "torch": torch}
    fresh._c._define(fresh._concrete_type, source, known.get)
