"""Rebuilds a ScriptModule with no more modules and tensors than its forward graph reads.

TorchScript's classes never lose an attribute, and modules share them. So new modules of the same names are compiled,
and the graph moves over to them. The calls used are private to torch;
`tests/integration/compression/test_residual.py` pins them.
"""

from __future__ import annotations

import io
import itertools
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.interpreter import (
    OWN_FORWARD,
    StorageKey,
    calls_own_forward,
    inlined_graph,
    nodes_of,
    storage_key,
)
from pared.compression.coupling.python_values import Node
from pared.weights.program import write_record

_BODY = "forward_as_a_function"
_rebuilds = itertools.count()


def without_unused(
    script: torch.jit.ScriptModule,
    added: Mapping[str, tuple[str, nn.Parameter]] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
) -> torch.jit.ScriptModule:
    """A copy of a ScriptModule that holds what its file's own `forward` reads, under the same names, and nothing else.

    Calls are inlined. Numbers and the like that no step changes become constants. The same module gives the same
    names of classes in every process.

    Args:
        script: with plain values for attributes, beside modules and tensors; torch raises a RuntimeError for others.
        added: path -> (a parameter of the module, a new one that comes before it). What the graph reads at the path is
            the new one, whatever the module has there.
        buffers: path -> a new buffer, likewise.
    """
    graph = inlined_graph(script).copy()
    added, buffers = added or {}, buffers or {}
    new = {path: parameter for path, (_, parameter) in added.items()}
    modules, reads, changed = _accesses(graph, script, {**new, **buffers})
    kept = {path: value for path, (value, _) in reads.items() if isinstance(value, Tensor) or path in changed}
    for path, (value, nodes) in reads.items():
        if path not in kept and path.rpartition(".")[2] != "training":  # which every module has
            _write_in(graph, value, nodes)
    namespace = f"pared_rebuilt_{next(_rebuilds)}"
    fresh: torch.jit.ScriptModule = torch.jit.script(
        _Tree(script, namespace, added, buffers).of({*modules, *kept}, kept)
    )
    _move(graph, fresh)
    _define(fresh, graph, script, namespace)
    fresh.train(script.training)
    return _with_lasting_names(fresh, namespace)


def _accesses(
    graph: Any, script: torch.jit.ScriptModule, added: Mapping[str, Any]
) -> tuple[list[str], dict[str, tuple[Any, list[Node]]], set[str]]:
    """Paths of the modules read, of the attributes with value and reading nodes, and of those that are set."""
    owner = next(graph.inputs())
    modules: dict[str, tuple[Any, str]] = {owner.debugName(): (script._c, "")}
    reads: dict[str, tuple[Any, list[Node]]] = {}
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
        value = added[full] if full in added else module.getattr(name)
        if isinstance(value, torch._C.ScriptModule):
            modules[node.output().debugName()] = value, full
        else:
            reads.setdefault(full, (value, []))[1].append(node)
    return [path for _, path in modules.values() if path], reads, changed


def _write_in(graph: Any, value: Any, nodes: Iterable[Node]) -> None:
    for node in nodes:
        with graph.insert_point_guard(node):
            node.output().replaceAllUsesWith(graph.insertConstant(value))
        node.destroy()


class _Tree:
    """Modules and tensors in the order in which the original has them; classes have its names."""

    def __init__(
        self,
        script: torch.jit.ScriptModule,
        namespace: str,
        added: Mapping[str, tuple[str, nn.Parameter]],
        buffers: Mapping[str, Tensor],
    ) -> None:
        self.parameters: dict[str, Tensor] = {}
        for path, tensor in script.named_parameters(remove_duplicate=False):
            self.parameters |= {name: new for name, (place, new) in added.items() if place == path}
            if path not in added and path not in buffers:
                self.parameters[path] = tensor
        self.buffers = {**dict(script.named_buffers(remove_duplicate=False)), **buffers}
        kinds = {path: part.original_name for path, part in script.named_modules(remove_duplicate=False)}
        # A layer that torch has changed the class of, to compute its weight, is plain again.
        owners = {path.rpartition(".")[0] for path in added}
        self.kinds = {path: kind.removeprefix("Parametrized" * (path in owners)) for path, kind in kinds.items()}
        self.classes = {
            kind: type(kind, (nn.Module,), {"__module__": namespace}) for kind in dict.fromkeys(self.kinds.values())
        }

    def of(self, paths: Iterable[str], values: Mapping[str, Any]) -> nn.Module:
        """Args: paths: of all modules and attributes that it has; values: path -> value of each of the attributes."""
        needed = {""} | {path[: end.start()] for path in paths for end in re.finditer(r"\.|$", path)}
        parts: dict[str, nn.Module] = {}
        for path in self.kinds:
            if path in needed:
                parts[path] = self.classes[self.kinds[path]]()
                if path:
                    above, _, leaf = path.rpartition(".")
                    parts[above].add_module(leaf, parts[path])
        tied: dict[StorageKey, nn.Parameter] = {}
        for path in dict.fromkeys([*self.parameters, *self.buffers, *values]):
            above, _, leaf = path.rpartition(".")
            if path not in values:
                continue
            if path in self.parameters:
                tensor = self.parameters[path]
                made = nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
                parts[above].register_parameter(leaf, tied.setdefault(storage_key(tensor), made))
            elif path in self.buffers:
                parts[above].register_buffer(leaf, self.buffers[path])
            else:
                setattr(parts[above], leaf, values[path])
        return parts[""]


def _move(graph: Any, fresh: torch.jit.ScriptModule) -> None:
    """Let a graph read the modules of another tree."""
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


def _define(fresh: torch.jit.ScriptModule, graph: Any, script: torch.jit.ScriptModule, namespace: str) -> None:
    """Give a module a forward with this graph, and with the arguments that the original's has."""
    body = torch.jit._state._python_cu.create_function(f"__torch__.{namespace}.{_BODY}", graph, True)
    own = OWN_FORWARD if calls_own_forward(script) else "forward"
    _, *arguments = script._c._get_method(own).schema.arguments
    taken = [
        f"{a.name}: {a.type.annotation_str}" + (f" = {a.default_value!r}" if a.has_default_value() else "")
        for a in arguments
    ]
    passed = ", ".join(["self", *(argument.name for argument in arguments)])
    source = f"def forward({', '.join(['self', *taken])}):\n    return {_BODY}({passed})\n"
    fresh._c._define(fresh._concrete_type, source, {_BODY: body, "Tensor": Tensor, "torch": torch}.get)
    inlined_graph(fresh)  # so that no function has to be saved beside it


def _with_lasting_names(fresh: torch.jit.ScriptModule, namespace: str) -> torch.jit.ScriptModule:
    """The module with names of classes that do not count what its process compiled before."""
    saved, renamed = io.BytesIO(), io.BytesIO()
    torch.jit.save(fresh, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(renamed, "w") as new:
        records = {name: old.read(name) for name in old.namelist() if not name.endswith(".debug_pkl")}
        numbers = {int(number) for name in records for number in re.findall(r"___torch_mangle_(\d+)", name)}
        rank = {b"%d" % number: b"%d" % index for index, number in enumerate(sorted(numbers))}

        def lasting(text: bytes) -> bytes:
            text = text.replace(namespace.encode(), b"program")
            return re.sub(rb"(?<=___torch_mangle_)\d+", lambda match: rank.get(match[0], match[0]), text)

        for name, content in records.items():
            named = "/code/" in name or name.endswith(".pkl")
            path = lasting(name.encode()).decode()
            write_record(new, path, lasting(content) if named else content, compressed="/code/" in name)
    renamed.seek(0)
    loaded: torch.jit.ScriptModule = torch.jit.load(renamed, map_location="cpu")  # type: ignore[no-untyped-call]
    for made, old_one in zip(loaded.parameters(), fresh.parameters(), strict=True):
        made.requires_grad_(old_one.requires_grad)
    return loaded.train(fresh.training)
