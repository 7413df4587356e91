"""Looks after what a TorchScript file holds beside what the example runs: other methods, and other values of arguments.

A removal is chosen and checked by what forward does with the given inputs. A method that no longer answers as the
upload's does is taken out of the result; a value for which forward no longer does is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pared.compression.coupling import Removed
from pared.compression.coupling.interpreter import (
    OWN_FORWARD,
    Interpreter,
    Step,
    id_of,
    inlined,
    inlined_graph,
    nodes_of,
    storage_key,
)
from pared.compression.coupling.labels import Tracked
from pared.compression.coupling.python_values import UnsupportedGraph, truth
from pared.compression.coupling.reloading import reloaded
from pared.compression.coupling.shrink import tensors_of
from pared.compression.coupling.verify import Mismatch, answers, check
from pared.compression.loading import LoadedModel
from pared.compression.loading.arguments import Arguments, arguments_for, states_of, with_defaults
from pared.compression.loading.script_files import calls, edited, methods_of
from pared.specs import TensorSpec
from pared.wording import shortened

_MOST_TRIED = 8  # other values of one argument

Example = Sequence[Tensor]


def other_methods(loaded: LoadedModel) -> list[str]:
    """The methods of a TorchScript file beside its forward."""
    if loaded.format != "torchscript" or not isinstance(loaded.module, torch.jit.ScriptModule):
        return []
    return [name for name in methods_of(loaded.module) if name not in ("forward", OWN_FORWARD)]


def with_code_that_holds(before: LoadedModel, after: LoadedModel, example: Example, removed: Removed) -> LoadedModel:
    """The smaller model without methods that do not hold, and with what it has lost told.

    Args:
        before: the model that channels were removed from; its weights are those of `after`, but for these.
        removed: what went, in the numbering of `before`.
    """
    old, new = before.module, after.module
    if after.format != "torchscript" or not isinstance(old, torch.jit.ScriptModule):
        return after
    if not isinstance(new, torch.jit.ScriptModule):
        return after
    formal = old._c._get_method("forward" if before.given is None else OWN_FORWARD).schema.arguments[1:]
    takes_tensors = all(isinstance(one.type, torch._C.TensorType) and not one.has_default_value() for one in formal)
    others = [name for name in other_methods(before) if _uses_the_module(old, name)]
    if takes_tensors and not others:
        return after
    # Copies, for torch no longer inlines all calls of what has run.
    files = [reloaded(each) if before.given is None else before.given.taken_from(each) for each in (old, new)]
    keys = {storage_key(tensor) for name, tensor in tensors_of(files[0]).items() if name in removed}
    methods = [name for name in others if _reads(files[0], _graph(files[0], name), keys)]
    called = before.given or Arguments(tuple(TensorSpec(shape=list(each.shape)) for each in example), {})
    broken = {name: why for name in methods if (why := _breaks(files, name, called, example, removed)) is not None}
    after = _without_methods(after, broken)
    if takes_tensors:
        return after
    return _told(after, _other_values(files, with_defaults(files[0], called), example, removed))


def _told(loaded: LoadedModel, notes: list[str]) -> LoadedModel:
    return replace(loaded, lost=tuple(dict.fromkeys([*loaded.lost, *notes])))


# -- what code reads --------------------------------------------------------------------------------


def _graph(module: torch.jit.ScriptModule, method: str) -> Any:
    return inlined(module._c._get_method(method).graph.copy())


def _uses_the_module(module: torch.jit.ScriptModule, method: str) -> bool:
    """Whether a method looks at anything of its module; `__len__` of a `Sequential` gives a number."""
    return bool(next(module._c._get_method(method).graph.inputs()).uses())


def _reads(module: torch.jit.ScriptModule, block: Any, keys: set[Any]) -> list[str]:
    """The names under which a block of a graph reads some of these tensors."""
    found = []
    for node in nodes_of(block):
        values = [node.output()] if node.kind() == "prim::GetAttr" else list(node.inputs())
        for value in values:
            path = _path(value)
            if path:
                held = module._c
                for name in path:
                    held = held.getattr(name)
                tensors = held if isinstance(held, list) else [held]
                if any(isinstance(each, Tensor) and storage_key(each) in keys for each in tensors):
                    found.append(".".join(path))
    return list(dict.fromkeys(found))


def _path(value: Any) -> list[str]:
    """The names that lead from the module to what a value is; none, if it is no attribute."""
    names: list[str] = []
    while value.node().kind() == "prim::GetAttr":
        names.insert(0, value.node().s("name"))
        value = value.node().inputsAt(0)
    return names if value.node().kind() == "prim::Param" else []


# -- methods ----------------------------------------------------------------------------------------


def _breaks(
    files: Sequence[torch.jit.ScriptModule], method: str, called: Arguments, example: Example, removed: Removed
) -> str | None:
    """Why a method that reads what was removed does not answer as before without it; None: it does.

    It is tried with what forward is given, as many of its arguments as it takes.
    """
    names = {"forward": "pared_other_forward", method: "forward"}
    as_forward = [edited(each, names=names) for each in files]
    count = len(as_forward[0]._c._get_method("forward").schema.arguments) - 1
    specs, states = called.specs[:count], states_of(as_forward[0])
    given = example[: sum(len(spec.tensors) for spec in specs)]
    try:
        arguments = arguments_for(as_forward[0], specs, states) or Arguments(specs, states)
        old, new = (arguments.given_to(each) for each in as_forward)
        runner = Interpreter(old)
        answers(old, given)
    except Exception:  # noqa: BLE001 - it takes something else, in any way it likes
        return "it could not be tried out, for it takes other arguments than forward"
    try:
        check(runner, given, removed, new)
    except Mismatch as mismatch:
        return str(mismatch)
    return None


def _without_methods(loaded: LoadedModel, broken: dict[str, str]) -> LoadedModel:
    """The model without these methods and those that call them; forward keeps what it needs of them."""
    script = loaded.module
    if not broken or not isinstance(script, torch.jit.ScriptModule):
        return loaded
    calling, gone = calls(script), dict(broken)
    forwards = {"forward", OWN_FORWARD}
    while more := {name for name, called in calling.items() if called & gone.keys()} - gone.keys() - forwards:
        gone |= {name: f"it calls {shortened(sorted(calling[name] & gone.keys()))}" for name in more}
    script = reloaded(script)  # with code of its own
    inlined_graph(script)
    notes = [
        f"The method {name} is gone from the result, as it reads what was removed: {why}. To keep it, keep its layers "
        "whole with `exclude`."
        for name, why in gone.items()
    ]
    return _told(replace(loaded, module=edited(script, methods=gone), inlined=True), notes)


# -- values -----------------------------------------------------------------------------------------


def _other_values(
    files: Sequence[torch.jit.ScriptModule], called: Arguments, example: Example, removed: Removed
) -> list[str]:
    """What to say of values of the arguments for which forward no longer answers as the upload's does."""
    formal = files[0]._c._get_method("forward").schema.arguments[1:]
    notes: list[str] = []
    runs = [_Both(files, called, example)]
    graph = _graph(files[0], "forward")
    for index, (one, spec) in enumerate(zip(formal, called.specs, strict=False)):
        for other in _others(graph, one.type, spec):
            specs = (*called.specs[:index], other, *called.specs[index + 1 :])
            given = _left(called, index, example) if spec.shape is not None else example
            try:
                both = _Both(files, replace(called, specs=specs), given)
                answers(both.module, given)
            except Exception:  # noqa: BLE001, S112 - no value that the upload takes
                continue
            try:
                check(both.old, given, removed, both.smaller)
            except Mismatch as mismatch:
                notes.append(
                    f"With {one.name}={other.value!r} the result does not answer as the upload does: {mismatch}. It is "
                    f"right with {one.name}={_said(spec)}, which the job ran with."
                )
            runs.append(both)
    return [*notes, *_never_tried(runs, removed)]


def _said(spec: TensorSpec) -> str:
    return repr(spec.value) if spec.shape is None else "a tensor"


def _left(called: Arguments, index: int, example: Example) -> list[Tensor]:
    """The example without the tensors of one argument."""
    before = sum(len(spec.tensors) for spec in called.specs[:index])
    return [*example[:before], *example[before + len(called.specs[index].tensors) :]]


def _others(graph: Any, kind: Any, spec: TensorSpec) -> Iterator[TensorSpec]:
    """Other values that an argument may have: what the code compares such values with."""
    if spec.shape is not None:
        if isinstance(kind, torch._C.OptionalType):
            yield TensorSpec(value=None)
        return
    if isinstance(spec.value, bool):
        yield TensorSpec(value=not spec.value)
    elif isinstance(spec.value, (int, float, str)):
        found: list[Any] = [spec.value]
        for node in nodes_of(graph):
            if node.kind() in _COMPARISONS:
                constants = [each.toIValue() for each in node.inputs() if each.node().kind() == "prim::Constant"]
                for each in constants:
                    found += each if isinstance(each, list) else [each]
        known: list[Any] = [each for each in dict.fromkeys(found) if type(each) is type(spec.value)][:_MOST_TRIED]
        unknown = "another" if isinstance(spec.value, str) else max(known) + 1
        yield from (TensorSpec(value=each) for each in [*known[1:], unknown])


_COMPARISONS = {f"aten::{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "__contains__")}


_Branch = tuple[int, int]
"""A branch, by the number of its `prim::If` among those of the graph, and 0 or 1."""


class _Watching(Interpreter):
    """Notes which branches are taken, and of those that are not the shapes of what they would read."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__(module)
        self.ifs = [node for node in nodes_of(self._graph) if node.kind() == "prim::If"]
        self._numbers = {id_of(node): number for number, node in enumerate(self.ifs)}
        self.arguments = {value.debugName() for value in list(self._graph.inputs())[1:]}
        self.taken: dict[_Branch, list[list[int]]] = {}

    def _run_step(self, step: Step, env: dict[str, Any]) -> list[Any]:
        if step.kind == "prim::If":
            branch = 0 if truth(env[step.inputs[0]]) else 1
            other = list(step.node.blocks())[1 - branch]
            read = [env.get(value.debugName()) for node in nodes_of(other) for value in node.inputs()]
            read += [env.get(value.debugName()) for value in other.outputs()]
            shapes = [list(each.tensor.shape) for each in read if isinstance(each, Tracked)]
            self.taken[self._numbers[id_of(step.node)], branch] = shapes
        return super()._run_step(step, env)


class _Both:
    """The model before and after a removal, called with the same values."""

    def __init__(self, files: Sequence[torch.jit.ScriptModule], called: Arguments, given: Example) -> None:
        self.module, self.smaller = (called.given_to(each) for each in files)
        self.old, self._new, self._given = _Watching(self.module), _Watching(self.smaller), given

    def taken(self) -> dict[_Branch, bool]:
        """The branches that are taken; whether those not taken would read what has another shape in the smaller model.

        Raises:
            UnsupportedGraph: one of the models cannot be followed, or fails.
        """
        with torch.no_grad():
            for runner in (self.old, self._new):
                runner.run(self._given, lambda name, tensor: Tracked(tensor, name=name), lambda call: None)
        return {branch: shapes != self._new.taken.get(branch, shapes) for branch, shapes in self.old.taken.items()}


def _never_tried(runs: Sequence[_Both], removed: Removed) -> list[str]:
    """What to say of code that hangs on the arguments' values, depends on what was removed, and was not tried out."""
    found = []
    for both in runs:
        with suppress(UnsupportedGraph):  # told already, where a value does not hold
            found.append((both, both.taken()))
    tried = {branch for _, taken in found for branch in taken}
    layers: set[str] = set()
    for both, taken in found:
        tensors = tensors_of(both.module)
        keys = {storage_key(tensors[name]) for name in removed}
        for (number, branch), differs in taken.items():
            node = both.old.ifs[number]
            if (number, 1 - branch) not in tried and _hangs_on_values(node.inputsAt(0), both.old.arguments):
                read = _reads(both.module, list(node.blocks())[1 - branch], keys) or (list(removed) if differs else [])
                layers |= {name.rpartition(".")[0] or name for name in read}
    if not layers:
        return []
    names = shortened(sorted(layers))
    note = (
        f"Code that other values of the arguments reach depends on what was removed ({names}) and could not be tried "
        "out: use the result with the values that the job ran with."
    )
    return [note]


def _hangs_on_values(value: Any, arguments: set[str]) -> bool:
    """Whether a condition is computed from one of these inputs of the graph, and not through any tensor."""
    todo, seen = [value], set()
    while todo:
        each = todo.pop()
        name = each.debugName()
        if name in seen or isinstance(each.type(), torch._C.TensorType):
            continue
        if name in arguments:
            return True
        seen.add(name)
        todo += list(each.node().inputs())
        todo += [result for block in each.node().blocks() for result in block.outputs()]
    return False
