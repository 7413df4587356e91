"""Makes a torch.export program (`.pt2`) of a model, TorchScript or not, that takes any batch size.

torch.export runs Python, and a ScriptModule has none. So the graph interpreter of `coupling` runs it, operator by
operator, while torch.export watches; sizes travel as its symbols, so that what is computed from them stays computed.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_map_only

from pared.compression.coupling.fused import ON_TENSORS
from pared.compression.coupling.interpreter import Interpreter, Step, storage_key
from pared.compression.coupling.labels import Tracked
from pared.compression.coupling.reloading import reloaded

FreeDims = Sequence[frozenset[int]]
"""The dimensions of each input that may have any size."""


def program_of(
    module: nn.Module, example: Sequence[Tensor], free: FreeDims, *, unsaved: frozenset[str] = frozenset()
) -> torch.export.ExportedProgram:
    """The module as a torch.export program. The same module gives the same program in every process.

    What it says of how it was made is left out: source lines, with this machine's paths, and the example.

    Args:
        module: in eval mode, on the CPU. Not changed.
        example: its inputs, with a size of at least 2 wherever it is free, or the size becomes fixed.
        free: the dimensions that may have any size, as far as the module allows it.
        unsaved: buffers of a ScriptModule that the state dict leaves out.

    Raises:
        Exception: torch.export's own, or the interpreter's, for a model that no program can hold.
    """
    dims = tuple({dim: Dim.AUTO for dim in of_one if dim < x.dim()} for of_one, x in zip(free, example, strict=True))
    shapes: Any = dims
    if isinstance(module, torch.jit.ScriptModule):
        module = _Followed(module, unsaved).eval()
        shapes = {"inputs": dims}
    with quiet(), torch.no_grad():
        program = torch.export.export(module, tuple(example), dynamic_shapes=shapes, strict=False)
        for part in program.graph_module.modules():
            if isinstance(part, torch.fx.GraphModule):
                for node in part.graph.nodes:
                    node.meta = {name: node.meta[name] for name in ("val", "torch_fn") if name in node.meta}
        program.example_inputs = tuple(map(torch.zeros_like, example)), {}
    return program


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program as a `.pt2` file."""
    with quiet():
        torch.export.save(program, path)


def load_program(path: Path) -> Callable[..., Any]:
    """Load a program that pared wrote, as a function. Not for uploads: torch's reader runs what is in the file."""
    with quiet():
        return torch.export.load(path).module()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters, which print whole graphs when they fail; their exceptions say the same in a line."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class _Followed(nn.Module):
    """A ScriptModule as a module that Python runs; parameters and buffers have the names that they have there."""

    def __init__(self, script: torch.jit.ScriptModule, unsaved: frozenset[str]) -> None:
        super().__init__()
        script = reloaded(script)
        self._interpreter = _Symbolic(script)
        parameters = dict(script.named_parameters(remove_duplicate=False))
        known: dict[Any, nn.Parameter] = {}  # what is tied there is tied here
        for name, tensor in [*parameters.items(), *script.named_buffers(remove_duplicate=False)]:
            *parts, leaf = name.split(".")
            owner: nn.Module = self
            for part in parts:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if name in parameters:
                made = nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
                owner.register_parameter(leaf, known.setdefault(storage_key(tensor), made))
            else:
                owner.register_buffer(leaf, tensor, persistent=name not in unsaved)

    def forward(self, *inputs: Tensor) -> Any:
        """The ScriptModule's answer."""
        # Looked up anew in each run: torch.export puts its own tensors in the place of these.
        tensors = dict(self.named_parameters(remove_duplicate=False)) | dict(self.named_buffers(remove_duplicate=False))
        answer = self._interpreter.run(
            inputs, lambda name, tensor: Tracked(tensors.get(name, tensor)), lambda call: None
        )
        return tree_map_only(Tracked, lambda tracked: tracked.tensor, answer)


class _Symbolic(Interpreter):
    """Follows a graph with sizes that may be symbols, which TorchScript's own operators would turn into numbers."""

    def _run_step(self, step: Step, env: dict[str, Any]) -> list[Any]:
        if step.kind in _ON_SIZES:
            values = [env[name] for name in step.inputs]
            values = tree_map_only(Tracked, lambda tracked: tracked.tensor, values)
            answer = _ON_SIZES[step.kind](values)
            if answer is not None:
                return [answer]
        return super()._run_step(step, env)

    def _call(self, step: Step, args: list[Any]) -> list[Any]:
        library, _, name = step.kind.partition("::")
        schema = torch._C.parse_schema(step.schema)
        overloads = getattr(getattr(torch.ops, library), name, None)
        overload = getattr(overloads, schema.overload_name or "default", None)
        if library == "prim" or overload is None or not torch._C._dispatch_has_kernel(overload.name()):
            return super()._call(step, args)
        plain = tree_map_only(Tracked, lambda tracked: tracked.tensor, args)
        arguments = [_declared(value, argument) for value, argument in zip(plain, schema.arguments, strict=True)]
        named = {a.name: value for value, a in zip(arguments, schema.arguments, strict=True) if a.kwarg_only}
        positional = arguments[: len(arguments) - len(named)]
        result = _PLAINER.get(step.kind, overload)(*positional, **named)
        results = list(result) if len(step.outputs) > 1 else [result] if step.outputs else []
        return list(tree_map_only(Tensor, Tracked, results))


# What torch.export has not known in every version since 2.10, in operators that it has: what `nn.Conv2d` is to a trace,
# which adds settings of cuDNN to the nine arguments of a convolution, and fused attention.
_PLAINER: Mapping[str, Callable[..., Any]] = {
    "aten::_convolution": lambda *args: torch.ops.aten.convolution.default(*args[:9]),
    **ON_TENSORS,
}


def _declared(value: Any, argument: Any) -> Any:
    """A value as Python's operators take it: TorchScript has numbers for types, and numbers in tensors."""
    declared = str(argument.real_type)
    for kind, members in _ENUMERATIONS.items():
        if kind in declared and isinstance(value, int):
            return members[value]
    if declared == "Tensor" and not isinstance(value, Tensor) and value is not None:
        return torch.scalar_tensor(value)
    return value


def _on_numbers(compute: Callable[..., Any], count: int) -> Callable[[list[Any]], Any]:
    """Arithmetic on numbers, which tracing wraps in tensors. None where an operand is a tensor of the model's own."""

    def run(values: list[Any]) -> Any:
        operands = [_number_in(value) for value in values[:count]]
        if None in operands or all(isinstance(value, Tensor) for value in values[:count]):
            return None
        return compute(*operands)

    return run


def _number_in(value: Any) -> Any:
    if isinstance(value, _NUMBERS):
        return value
    if type(value) is Tensor and not value.dim() and not value.is_floating_point():  # a constant of the code
        with torch.utils._python_dispatch._disable_current_modes():
            return value.item()
    return None


def _quotient(values: list[Any]) -> Any:
    """A division of numbers, which a third value may ask to round; sizes are not negative, so that both ways agree."""
    return _on_numbers(operator.floordiv if values[2:] in (["floor"], ["trunc"]) else operator.truediv, 2)(values)


def _equal(values: list[Any]) -> Any:
    """Whether two numbers, or two lists of numbers, are equal: recurrent layers compare whole shapes."""
    first, second = values[:2]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(_equal([one, other]) for one, other in zip(first, second, strict=True))
    return _on_numbers(operator.eq, 2)(values)


def _different(values: list[Any]) -> Any:
    if isinstance(values[0], (list, tuple)):
        same = _equal(values)
        return None if same is None else not same
    return _on_numbers(operator.ne, 2)(values)


def _size(values: list[Any]) -> Any:
    return values[0].shape[values[1]] if len(values) > 1 else list(values[0].shape)


def _length(values: list[Any]) -> Any:
    return values[0].shape[0] if isinstance(values[0], Tensor) else None


_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)

_ON_SIZES: Mapping[str, Callable[[list[Any]], Any]] = {
    "aten::size": _size,
    "aten::len": _length,
    "aten::numel": lambda values: values[0].numel(),
    "prim::device": lambda values: values[0].device,
    "prim::NumToTensor": lambda values: values[0],
    **{
        f"aten::{name}": _on_numbers(lambda number: number, 1)
        for name in ("Int", "IntImplicit", "ScalarImplicit", "Bool")
    },
    "aten::Float": _on_numbers(torch.sym_float, 1),
    "aten::neg": _on_numbers(operator.neg, 1),
    "aten::__not__": _on_numbers(torch.sym_not, 1),
    "aten::add": _on_numbers(operator.add, 2),
    "aten::sub": _on_numbers(operator.sub, 2),
    "aten::mul": _on_numbers(operator.mul, 2),
    "aten::div": _quotient,
    "aten::floordiv": _on_numbers(operator.floordiv, 2),
    "aten::floor_divide": _on_numbers(operator.floordiv, 2),
    "aten::remainder": _on_numbers(operator.mod, 2),
    "aten::eq": _equal,
    "aten::ne": _different,
    "aten::lt": _on_numbers(operator.lt, 2),
    "aten::le": _on_numbers(operator.le, 2),
    "aten::gt": _on_numbers(operator.gt, 2),
    "aten::ge": _on_numbers(operator.ge, 2),
    "prim::max": _on_numbers(torch.sym_max, 2),
    "prim::min": _on_numbers(torch.sym_min, 2),
}

_ENUMERATIONS: Mapping[str, Mapping[int, Any]] = {  # of c10
    "ScalarType": {
        0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16,
        6: torch.float32, 7: torch.float64, 11: torch.bool, 15: torch.bfloat16,
    },
    "Layout": {0: torch.strided},
    "MemoryFormat": {
        0: torch.contiguous_format, 1: torch.preserve_format, 2: torch.channels_last, 3: torch.channels_last_3d,
    },
}  # fmt: skip
