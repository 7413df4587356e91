"""Keeps what types and memory layouts a file has its tensors in, computes in float32, and gives a result them back."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.interpreter import inlined_graph, nodes_of
from pared.compression.coupling.reloading import reloaded
from pared.compression.devices.placement import graphs_of

_NUMBERS = {torch.float16: 5, torch.float64: 7, torch.bfloat16: 15}
"""What TorchScript calls these types."""


@dataclass(frozen=True)
class Form:
    """What a tensor is kept in."""

    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format


Forms = Mapping[str, Form]
"""Of each tensor of floating-point numbers, by name; empty where all are plain float32, as they are computed with."""


def forms_of(tensors: Mapping[str, Tensor]) -> dict[str, Form]:
    """What these tensors are kept in; empty where that is what is computed with."""
    forms = {name: Form(x.dtype, _layout(x)) for name, x in tensors.items() if x.is_floating_point()}
    return {} if set(forms.values()) <= {Form()} else forms


def usual_type(types: Iterable[torch.dtype]) -> torch.dtype:
    """The type that most tensors have; float32 where there are none."""
    counted = Counter(types)
    return max(counted, key=lambda each: counted[each]) if counted else torch.float32


def in_float32(script: torch.jit.ScriptModule) -> tuple[torch.jit.ScriptModule, bool]:
    """A ScriptModule that has not run yet, to compute in float32; and whether calls in its code had to be inlined.

    Where its code names the type of its weights, the name follows them from now on, so that the code is right in
    float32 and in its own type alike.
    """
    tensors = {**dict(script.named_parameters()), **dict(script.named_buffers())}
    usual = usual_type(x.dtype for x in tensors.values() if x.is_floating_point())
    changed = False
    if usual in _NUMBERS:
        changed = _follow(script, next(name for name, x in tensors.items() if x.dtype == usual), _NUMBERS[usual])
    script.float()
    return (reloaded(script) if changed else script), changed


def typed(types: Mapping[str, torch.dtype]) -> dict[str, Form]:
    """The forms of tensors of these types, by name; empty where that is what is computed with."""
    return {} if set(types.values()) <= {torch.float32} else {name: Form(kind) for name, kind in types.items()}


def form_note(types: Iterable[torch.dtype]) -> list[str]:
    """What an inspection says of floating-point types other than float32, if there are any."""
    others = sorted({str(each).removeprefix("torch.") for each in types if each.is_floating_point} - {"float32"})
    if not others:
        return []
    note = f"Weights in {', '.join(others)} are computed with in float32, scores and quality too; a result has them in "
    note += f"{', '.join(others)} again, and takes inputs of that type."
    if "float64" in others:
        note += " Digits beyond float32 are lost."
    return [note]


def own_types(forms: Forms) -> Callable[[str], torch.dtype]:
    """The type that the file has a tensor in, by name; of one that it has not, that of most."""
    usual = usual_type(form.dtype for form in forms.values())
    return lambda name: forms[name].dtype if name in forms else usual


def in_own_form(module: nn.Module, forms: Forms) -> nn.Module:
    """A copy of the module in the form that its file had; the module itself, where that is what is computed with."""
    if not forms:
        return module
    copied = reloaded(module) if isinstance(module, torch.jit.ScriptModule) else copy.deepcopy(module)
    type_of = own_types(forms)
    seen: set[int] = set()
    for name, tensor in [*copied.named_parameters(), *copied.named_buffers()]:
        if not tensor.is_floating_point() or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        form = forms.get(name, Form(type_of(name)))
        with torch.no_grad():
            value = tensor.detach().to(form.dtype)
            fits = form.layout == torch.contiguous_format or tensor.dim() == _RANKS[form.layout]
            tensor.data = value.contiguous(memory_format=form.layout) if fits else value
    return copied


def own_inputs(module: nn.Module, example: Sequence[Tensor], forms: Forms) -> tuple[Tensor, ...]:
    """The example in the type that the module takes: that of most of its weights, or else float32."""
    if not forms:
        return tuple(example)
    usual = usual_type(form.dtype for form in forms.values())
    cast = tuple(x.to(usual) if x.is_floating_point() else x for x in example)
    try:
        with torch.no_grad():
            module(*cast)
    except Exception:  # noqa: BLE001 - whatever it is, the other type is left
        return tuple(example)
    return cast


_RANKS = {torch.channels_last: 4, torch.channels_last_3d: 5}


def _layout(tensor: Tensor) -> torch.memory_format:
    if not tensor.is_contiguous():
        for layout, rank in _RANKS.items():
            if tensor.dim() == rank and tensor.is_contiguous(memory_format=layout):
                return layout
    return torch.contiguous_format


def _follow(script: torch.jit.ScriptModule, name: str, number: int) -> bool:
    """Let literals of a type follow the type of one of the module's tensors; whether there were any."""
    if not any(_literals(graph, number) for graph in graphs_of(script)):
        return False
    graph = inlined_graph(script)
    for node, position in _literals(graph, number):
        with graph.insert_point_guard(node):
            kind = graph.insertNode(graph.create("prim::dtype", [_read(graph, script._c, name)], 1)).output()
        kind.setType(torch._C.IntType.get())
        node.replaceInput(position, kind)
    return True


def _literals(graph: Any, number: int) -> list[tuple[Any, int]]:
    """Each place where an operator is told this type: a node and its input."""
    found = []
    for node in nodes_of(graph):
        schema = node.schema()
        if "ScalarType" not in schema:
            continue
        arguments = torch._C.parse_schema(schema).arguments
        for position, (value, argument) in enumerate(zip(node.inputs(), arguments, strict=False)):
            if "ScalarType" in str(argument.real_type) and value.node().kind() == "prim::Constant":
                found += [(node, position)] if value.toIValue() == number else []
    return found


def _read(graph: Any, module: Any, path: str) -> Any:
    """A new value of the graph: the tensor at this path."""
    value = next(graph.inputs())
    for name in path.split("."):
        get = graph.insertNode(graph.create("prim::GetAttr", [value], 1))
        get.s_("name", name)
        module, value = module.getattr(name), get.output()
        value.setType(module._type() if isinstance(module, torch._C.ScriptModule) else torch._C.TensorType.get())
    return value
