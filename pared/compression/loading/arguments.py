"""Lets a TorchScript model be run on tensors alone: its other arguments get values, and its states begin anew.

What computes, trains, measures and exports then calls `forward(x, …)` with one tensor after another, each with its
batch first. The file's own forward stays beside it under another name, with all its arguments, and is what is written
into a TorchScript result. All of this is done to copies, through TorchScript's own format.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from pared.compression.coupling.interpreter import OWN_FORWARD
from pared.compression.coupling.reloading import reloaded
from pared.compression.loading.script_files import edited
from pared.errors import ValidationError
from pared.specs import TensorSpec

_VALUE = "pared_value_"
_START = "pared_start_"


@dataclass(frozen=True)
class Arguments:
    """What forward is called with: an entry for each argument that is given, tensors with their `batch_dim` settled.

    `states`: path of an attribute that forward sets -> what it was in the file.
    """

    specs: tuple[TensorSpec, ...]
    states: Mapping[str, Any]

    @property
    def tensors(self) -> list[TensorSpec]:
        """The tensors that are left to be given, in order, as they are given: each with its batch first."""
        return [batch_first(each) for spec in self.specs for each in spec.tensors]

    @property
    def fixed(self) -> bool:
        """Whether an argument has a value, or is several tensors together."""
        return any(spec.shape is None for spec in self.specs)

    def given_to(self, module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
        """A copy of a module as its file has it, whose forward takes these tensors alone."""
        made = edited(module, names={"forward": OWN_FORWARD})
        schema = made._c._get_method(OWN_FORWARD).schema
        formal = schema.arguments[1:]
        writer = _Writer(made)
        passed = [writer.argument(one.name, one.type, spec) for one, spec in zip(formal, self.specs, strict=False)]
        starts = [line for path, value in self.states.items() for line in writer.start(path, value)]
        taken = "".join(f", {name}: Tensor" for name in writer.tensors)
        lines = [*starts, f"answer = self.{OWN_FORWARD}({', '.join(passed)})", *starts, "return answer"]
        made.define("".join(f"{line}\n" for line in [f"def forward(self{taken}):", *(f"    {line}" for line in lines)]))
        return reloaded(made)

    def taken_from(self, module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
        """A copy of what `given_to` made, whatever became of its tensors and code, with its own forward again."""
        count = len([spec for spec in self.specs for _ in _values(spec)])
        attributes = [f"{_VALUE}{index}" for index in range(count)]
        attributes += [f"{_START}{index}" for index in range(len(self.states))]
        restored = edited(module, methods=["forward"], attributes=attributes, names={OWN_FORWARD: "forward"})
        return reloaded(restored)  # so that the tensors of those attributes are gone too


class _Writer:
    """Writes a forward in TorchScript, and keeps the values that it names in attributes of the module."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._module = module
        self._values = itertools.count()
        self._starts = itertools.count()
        self.tensors: list[str] = []

    def argument(self, name: str, kind: Any, spec: TensorSpec) -> str:
        """What to pass for an argument."""
        if spec.shape is not None:
            plain = re.sub(r"\W", "_", name)
            numbered = (plain + "_" * extra for extra in itertools.count())
            self.tensors.append(next(each for each in numbered if each not in (*self.tensors, "self", "answer")))
            return f"{self.tensors[-1]}.transpose(0, 1)" if spec.batch_dim else self.tensors[-1]
        if isinstance(spec.items, dict):
            inner = _wanted(kind).getValueType()
            parts = ", ".join(
                f"{key!r}: {self.argument(f'{name}_{key}', inner, each)}" for key, each in spec.items.items()
            )
            return f"{{{parts}}}"
        if spec.items is not None:
            wanted = _wanted(kind)
            tuple_of = wanted.elements() if isinstance(wanted, torch._C.TupleType) else None
            kinds = tuple_of or [wanted.getElementType()] * len(spec.items)
            parts = "".join(
                f"{self.argument(f'{name}_{index}', inner, each)}, "
                for index, (inner, each) in enumerate(zip(kinds, spec.items, strict=True))
            )
            return f"({parts})" if tuple_of else f"[{parts.removesuffix(', ')}]"
        attribute = f"{_VALUE}{next(self._values)}"
        self._module._c._register_attribute(attribute, kind, spec.value)
        return f"self.{attribute}"

    def start(self, path: str, value: Any) -> list[str]:
        """The lines that set a state to what it was in the file."""
        index = next(self._starts)
        attribute = f"{_START}{index}"
        owner, _, leaf = path.rpartition(".")
        place = "self"
        for name in owner.split(".") if owner else ():
            place = f'getattr({place}, "{name}")'
        kind = torch._C._jit_try_infer_type(value).type()
        self._module._c._register_attribute(attribute, kind, value)
        again = f"self.{attribute}.clone()" if isinstance(value, Tensor) else f"self.{attribute}"
        return [f"owner{index} = {place}", f"owner{index}.{leaf} = {again}"] if owner else [f"self.{leaf} = {again}"]


def arguments_for(
    module: torch.jit.ScriptModule, specs: Sequence[TensorSpec], states: Mapping[str, Any]
) -> Arguments | None:
    """How a model is called on tensors alone; None where that is what its own forward takes.

    Args:
        module: as its file has it.
        specs: of the arguments of its forward, in order; none where all are tensors that come with data.
        states: of the model, by path.

    Raises:
        ValidationError: the specs are not of the arguments that forward takes.
    """
    formal = module._c._get_method("forward").schema.arguments[1:]
    if not specs:
        tensors = [TensorSpec(shape=[1]) for one in formal if not one.has_default_value()]
        return Arguments(tuple(tensors), states) if states else None
    _check(module, formal, specs)
    arguments = Arguments(tuple(specs), states)
    if len(arguments.tensors) > 1:
        arguments = _settled(module, arguments)
    if not states and all(each.is_plain for each in arguments.specs):
        return None
    return with_defaults(module, arguments)


def with_defaults(module: torch.jit.ScriptModule, arguments: Arguments) -> Arguments:
    """The arguments with the defaults that the file gives for others, as far as they are plain values."""
    specs = list(arguments.specs)
    for one in module._c._get_method("forward").schema.arguments[1 + len(specs) :]:
        fits, value = _plain_check(one.type), one.default_value
        if not one.has_default_value() or (value is not None and (fits is None or not fits(value))):
            break
        specs.append(TensorSpec(value=value))
    return replace(arguments, specs=tuple(specs))


# -- what fits what forward takes -------------------------------------------------------------------


def described(formal: Sequence[Any]) -> str:
    """The arguments of a forward, as TorchScript has them: `x: Tensor, sr: int`."""
    return ", ".join(f"{one.name}: {one.type.annotation_str}{' = …' * one.has_default_value()}" for one in formal)


def advised(formal: Sequence[Any]) -> str:
    """`example_inputs` for a forward, for a message: values for what is no tensor, to be changed."""
    entries = [_advised(one.type) for one in formal if not one.has_default_value()]
    return f"[{', '.join(entries)}]"


def needs_values(module: torch.jit.ScriptModule) -> bool:
    """Whether forward must be given something else than tensors."""
    formal = module._c._get_method("forward").schema.arguments[1:]
    return any(not isinstance(one.type, torch._C.TensorType) and not one.has_default_value() for one in formal)


def takes(module: torch.jit.ScriptModule, count: int) -> bool:
    """Whether forward can be given so many arguments."""
    formal = module._c._get_method("forward").schema.arguments[1:]
    return len([one for one in formal if not one.has_default_value()]) <= count <= len(formal)


def missing_values(module: torch.jit.ScriptModule) -> ValidationError:
    """The refusal of a job that runs a model and does not say what its arguments are."""
    formal = module._c._get_method("forward").schema.arguments[1:]
    text = (
        f"The model's forward takes {described(formal)}, and not all of these are tensors. Give an entry for each in "
        f"`example_inputs`, such as {advised(formal)}; beside a data set too, whose inputs are then the tensors."
    )
    return ValidationError(text, errors=[{"pointer": "/example_inputs", "detail": text}])


def _advised(kind: Any) -> str:
    wanted = _wanted(kind)
    if isinstance(wanted, torch._C.TensorType):
        return '{"shape": [1, 512]}'
    if isinstance(wanted, torch._C.TupleType):
        return f'{{"items": [{", ".join(_advised(each) for each in wanted.elements())}]}}'
    if isinstance(wanted, torch._C.ListType) and not _plain_check(kind):
        return f'{{"items": [{_advised(wanted.getElementType())}]}}'
    if isinstance(wanted, torch._C.DictType):
        return f'{{"items": {{"name": {_advised(wanted.getValueType())}}}}}'
    return _EXAMPLES.get(wanted.annotation_str, '{"value": …}')


_EXAMPLES = {
    "int": '{"value": 16000}',
    "float": '{"value": 1.0}',
    "number": '{"value": 1.0}',
    "bool": '{"value": false}',
    "str": '{"value": "…"}',
}


def _check(module: torch.jit.ScriptModule, formal: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
    said = f"The model's forward takes {described(formal)}"
    if not takes(module, len(specs)):
        text = f"{said}; {len(specs)} of these are described. Give one entry for each, such as {advised(formal)}."
        raise ValidationError(text, errors=[{"pointer": "/example_inputs", "detail": text}])
    for index, (one, spec) in enumerate(zip(formal, specs, strict=False)):
        for pointer, why in _misfits(one.type, spec, f"/example_inputs/{index}"):
            text = f"{said}, and for {one.name} {why}"
            raise ValidationError(text, errors=[{"pointer": pointer, "detail": text}])


def _misfits(kind: Any, spec: TensorSpec, pointer: str) -> Iterator[tuple[str, str]]:
    """Why an entry is not of a type, and where in it."""
    wanted = _wanted(kind)
    name = kind.annotation_str
    tensor = isinstance(wanted, torch._C.TensorType)
    if spec.shape is not None and not tensor:
        yield f"{pointer}/shape", f"a shape is given, where {name} is wanted: give {_advised(kind)}."
    elif spec.items is not None:
        yield from _items_misfit(kind, spec, pointer)
    elif spec.shape is None:
        fits = _plain_check(kind)
        if spec.value is None:
            if not isinstance(kind, torch._C.OptionalType):
                yield f"{pointer}/value", f"no value is given, where {name} is wanted: give {_advised(kind)}."
        elif fits is None or not fits(spec.value):
            what = f"the value {spec.value!r} is given"
            yield f"{pointer}/value", f"{what[:200]}, where {name} is wanted: give {_advised(kind)}."


def _items_misfit(kind: Any, spec: TensorSpec, pointer: str) -> Iterator[tuple[str, str]]:
    wanted, items = _wanted(kind), spec.items
    named = isinstance(wanted, torch._C.DictType) and wanted.getKeyType().annotation_str == "str"
    if isinstance(items, dict) and named:
        for key, part in items.items():
            yield from _misfits(wanted.getValueType(), part, f"{pointer}/items/{key}")
    elif isinstance(items, list) and isinstance(wanted, torch._C.TupleType):
        kinds = wanted.elements()
        if len(kinds) != len(items):
            yield (
                f"{pointer}/items",
                f"{len(items)} items are given, where {kind.annotation_str} is wanted: give {len(kinds)}.",
            )
        for index, (inner, part) in enumerate(zip(kinds, items, strict=False)):
            yield from _misfits(inner, part, f"{pointer}/items/{index}")
    elif isinstance(items, list) and isinstance(wanted, torch._C.ListType):
        for index, part in enumerate(items):
            yield from _misfits(wanted.getElementType(), part, f"{pointer}/items/{index}")
    else:
        yield f"{pointer}/items", f"items are given, where {kind.annotation_str} is wanted: give {_advised(kind)}."


def _wanted(kind: Any) -> Any:
    """The type without its being optional."""
    return kind.getElementType() if isinstance(kind, torch._C.OptionalType) else kind


_CHECKS = {
    "int": lambda value: type(value) is int,
    "float": lambda value: type(value) in (int, float) and math.isfinite(value),
    "number": lambda value: type(value) in (int, float) and math.isfinite(value),
    "bool": lambda value: type(value) is bool,
    "str": lambda value: type(value) is str,
}


def _plain_check(kind: Any) -> Any:
    """What tells whether a value is of a type; None for a type that no value is of."""
    wanted = _wanted(kind)
    if isinstance(wanted, torch._C.ListType):
        each = _CHECKS.get(wanted.getElementType().annotation_str)
        return None if each is None else lambda value: isinstance(value, list) and all(map(each, value))
    return _CHECKS.get(wanted.annotation_str)


def _values(spec: TensorSpec) -> Iterator[Any]:
    if spec.shape is None and spec.items is None:
        yield spec.value
    for part in spec.parts:
        yield from _values(part)


# -- where the batch is -----------------------------------------------------------------------------


def batch_first(spec: TensorSpec) -> TensorSpec:
    """The tensor as it is given, its batch first."""
    if not spec.batch_dim:
        return spec
    first, second, *rest = spec.sizes
    return spec.model_copy(update={"shape": [second, first, *rest], "batch_dim": None})


def _settled(module: torch.jit.ScriptModule, arguments: Arguments) -> Arguments:
    """The arguments with the dimension that each tensor has its batch in, found by running the model on two batches."""
    given = [each for spec in arguments.specs for each in spec.tensors]
    batch = batch_first(given[0]).sizes[0]
    options = [_dims(each, batch) for each in given]
    for dims in itertools.product(*options):
        chosen = iter(dims)
        tried = Arguments(tuple(_with_dims(spec, chosen) for spec in arguments.specs), arguments.states)
        if all(_runs(module, tried, size) for size in (4, 3)):
            return tried
    return arguments


def _dims(spec: TensorSpec, batch: int) -> list[int]:
    if spec.batch_dim is not None:
        return [spec.batch_dim]
    return [0, 1] if spec.sizes[1:2] == [batch] else [0]


def _with_dims(spec: TensorSpec, dims: Iterator[int]) -> TensorSpec:
    if spec.shape is not None:
        dim = next(dims)
        return spec.model_copy(update={"batch_dim": dim or None})
    if isinstance(spec.items, dict):
        return spec.model_copy(update={"items": {key: _with_dims(each, dims) for key, each in spec.items.items()}})
    if spec.items is not None:
        return spec.model_copy(update={"items": [_with_dims(each, dims) for each in spec.items]})
    return spec


def _runs(module: torch.jit.ScriptModule, arguments: Arguments, batch: int) -> bool:
    """Whether the model takes a batch of this size."""
    inputs = [
        torch.zeros([batch, *spec.sizes[1:]], dtype=torch.int64 if spec.dtype == "int64" else torch.float32)
        for spec in arguments.tensors
    ]
    try:
        with torch.no_grad(), optimized_execution(False):
            arguments.given_to(module)(*inputs)
    except Exception:  # noqa: BLE001 - the model says no in its own words
        return False
    return True


# -- states -----------------------------------------------------------------------------------------


def states_of(module: torch.jit.ScriptModule) -> dict[str, Any]:
    """The attributes that a module's forward sets, which keep something from one call to the next, and their values.

    Not the counters of batch norms, nor what is no tensor, number, flag or text.
    """
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    found: dict[str, Any] = {}
    graph: Any = module.inlined_graph  # which is gone when nothing holds it
    for node in graph.findAllNodes("prim::SetAttr", recurse=True):
        owner = _path(node.inputsAt(0))
        if owner is None:
            continue  # an object that lives for one call
        path = ".".join([*owner, node.s("name")])
        if path in parameters or path.endswith("num_batches_tracked"):
            continue
        value: Any = module._c
        for name in path.split("."):
            value = value.getattr(name)
        if isinstance(value, (Tensor, bool, int, float, str)):
            found[path] = value.detach().clone() if isinstance(value, Tensor) else value
    return found


def _path(value: Any) -> list[str] | None:
    """The names that lead from the module to a part of it; None for what is no part of it."""
    names: list[str] = []
    while value.node().kind() == "prim::GetAttr":
        names.insert(0, value.node().s("name"))
        value = value.node().inputsAt(0)
    return names if value.node().kind() == "prim::Param" else None
