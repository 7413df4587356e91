"""Follows what a TorchScript graph computes from what, and which nodes matter once a value is no longer used."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from pared.compression.coupling.interpreter import blocks_of, inputs_of, nodes_of, outputs_of
from pared.compression.coupling.python_values import Node


@dataclass
class Step:
    """A node of the graph, with values by name. `around`: the position of the `prim::If` or loop that it stands in."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    around: int | None
    written: list[str]
    """The inputs that it changes in place."""
    blocks: list[tuple[list[str], list[str]]] = field(default_factory=list)
    """Inputs and outputs of each inner block."""

    @property
    def has_effect(self) -> bool:
        """Whether it does more than to make its outputs."""
        return bool(self.written) or not (self.outputs or self.blocks)


class Flow:
    """One inlined graph, read into plain Python; `steps` are in the order of `nodes_of`.

    `paths`: value -> the dotted name of the module or attribute that it is. `parameters`: value -> the name of the
    parameter that it is. `data`: the values that are computed from the data of the model's inputs, not just from their
    sizes.
    """

    def __init__(self, graph: Any, module: torch.jit.ScriptModule) -> None:
        self.graph = graph
        self.steps: list[Step] = []
        self.maker: dict[str, int] = {}
        self.paths: dict[str, str] = {}
        self._values: dict[str, Any] = {}
        self._made_of: dict[str, list[str]] = {}
        owner, *inputs = graph.inputs()
        self.paths[owner.debugName()] = ""
        self._values |= {value.debugName(): value for value in (owner, *inputs)}
        self._read(graph, None)
        self.outputs = [value.debugName() for value in graph.outputs()]
        named = dict(module.named_parameters(remove_duplicate=False))
        self.parameters = {value: path for value, path in self.paths.items() if path in named}
        self._tensors = {name for name, value in self._values.items() if _holds_tensors(value.type())}
        kinds = torch._C.ListType, torch._C.DictType
        self._lists = {name for name in self._tensors if isinstance(self._values[name].type(), kinds)}
        self._inputs = {value.debugName() for value in inputs}
        self._read_by: dict[str, list[str]] = {}
        for value in self._tensors:
            for part in self._parts(value):
                self._read_by.setdefault(part, []).append(value)
        self.data = self.reach(self._inputs & self._tensors)

    # -- what is made of what -------------------------------------------------------------------

    def cone(self, value: str) -> set[str]:
        """The tensors that a value is computed from, itself among them; sizes of tensors do not count."""
        return _closure([value], self._parts)

    def _parts(self, value: str) -> Iterator[str]:
        return (part for part in self._made_of.get(value, ()) if part in self._tensors)

    def operands(self, value: str) -> list[str]:
        """The tensors that the value's own step reads, or that branches make it of."""
        return [*self._parts(value)]

    def parts(self, value: str) -> set[str]:
        """The data that the value's own step reads."""
        return {part for part in self._parts(value) if part in self.data}

    def reach(self, values: Collection[str]) -> set[str]:
        """The tensors that are computed from any of these, themselves among them."""
        return _closure(values, lambda value: self._read_by.get(value, ()))

    def _read(self, block: Any, around: int | None) -> None:
        for node in block.nodes():
            index = len(self.steps)
            inputs = [value.debugName() for value in inputs_of(node)]
            made = {value.debugName(): value for value in outputs_of(node)}
            outputs = [*made]
            step = Step(node.kind(), inputs, outputs, around, _written(node, inputs))
            self.steps.append(step)
            self._values |= made
            self.maker |= dict.fromkeys(outputs, index)
            if step.kind == "prim::GetAttr" and inputs[0] in self.paths:
                path = f"{self.paths[inputs[0]]}.{node.s('name')}".lstrip(".")
                self.paths[outputs[0]] = path
                continue
            for inner in blocks_of(node):
                taken = {value.debugName(): value for value in inner.inputs()}
                names = [*taken]
                self._values |= taken
                self.maker |= dict.fromkeys(names, index)
                self._read(inner, index)
                step.blocks.append((names, [value.debugName() for value in inner.outputs()]))
            self._note_parts(step)

    def _note_parts(self, step: Step) -> None:
        if step.kind == "prim::Loop":
            ((names, results),) = step.blocks
            for position, output in enumerate(step.outputs):
                carried = [step.inputs[position + 2], results[position + 1]]
                self._made_of[output] = self._made_of[names[position + 1]] = carried
        elif step.blocks:
            for position, output in enumerate(step.outputs):
                self._made_of[output] = [results[position] for _, results in step.blocks]
        else:
            self._made_of |= dict.fromkeys(step.outputs, step.inputs)
        # What is put into a list, or written where the result is not taken up, is met under the old name.
        if not any(self._values[output].uses() for output in step.outputs):
            for name in step.written:
                self._made_of[name] = [*self._made_of.get(name, ()), *step.inputs]

    # -- what matters ---------------------------------------------------------------------------

    def live(self) -> tuple[set[int], set[str]]:
        """The positions of all steps that the model's answer needs, and the values that these read.

        What is done in place matters where a needed tensor may share the memory; a count that a layer keeps, where the
        layer's tensors are needed; a check, where all that it looks at is computed anyway.
        """
        steps: set[int] = set()
        values: set[str] = set()
        aliases = self.graph.alias_db()
        effects = [index for index, step in enumerate(self.steps) if step.has_effect]
        self._need(self.outputs, steps, values)
        values |= self._inputs  # who calls the model sees what is done to them
        compared: set[str] = set()
        while True:
            fresh = values & self._tensors - compared
            compared |= fresh
            effects = [index for index in effects if index not in steps]
            read = {path for value, path in self.paths.items() if value in values and value in self._tensors}
            mattering = [
                index for index in effects if self._matters(self.steps[index], steps, values, fresh, read, aliases)
            ]
            if not mattering:
                return steps, values
            for index in mattering:
                self._need_step(index, steps, values)

    def _need(self, names: Iterable[str], steps: set[int], values: set[str]) -> None:
        todo = [*names]
        while todo:
            name = todo.pop()
            if name in values:
                continue
            values.add(name)
            index: int | None = self.maker.get(name)
            while index is not None and index not in steps:
                steps.add(index)
                step = self.steps[index]
                todo += step.inputs
                todo += [result for _, results in step.blocks for result in results]
                index = step.around

    def _need_step(self, index: int, steps: set[int], values: set[str]) -> None:
        """An effect, with what decides on whether it happens."""
        needed = [*self.steps[index].inputs]
        for control in self._around(self.steps[index]):
            needed += self.steps[control].inputs
            if control not in steps:
                needed += [result for _, results in self.steps[control].blocks for result in results]
        steps |= {index, *self._around(self.steps[index])}
        self._need(needed, steps, values)

    def _matters(
        self, step: Step, steps: set[int], values: set[str], fresh: set[str], read: set[str], aliases: Any
    ) -> bool:
        """Whether an effect has to stay.

        Args:
            fresh: the tensors among the values that no effect was compared with before.
            read: names of the module's tensors among the values.
        """
        if not step.written:
            computed = all(self.steps[index].outputs == [] or index in steps for index in self._around(step))
            return computed and all(value in values or self.paths.get(value) in read for value in self._looked_at(step))
        for name in step.written:
            path = self.paths.get(name)
            if path is None:
                if name in self._lists:  # putting a tensor into a list changes the list alone
                    touched = bool(self._kin(name) & values)
                else:
                    value = self._values[name]
                    touched = any(aliases.may_contain_alias(value, self._values[other]) for other in fresh)
                if touched:
                    return True
            else:
                module = path if step.kind == "prim::SetAttr" else path.rpartition(".")[0]
                if any(other.rpartition(".")[0] == module for other in read):
                    return True
        return False

    def _kin(self, name: str) -> set[str]:
        """The lists that a list may be, whatever branch or loop it came through."""

        def further(value: str) -> Iterable[str]:
            return (other for other in (*self._parts(value), *self._read_by.get(value, ())) if other in self._lists)

        return _closure([name], further)

    def _around(self, step: Step) -> Iterator[int]:
        """The control nodes that a step stands in, from the inside."""
        while step.around is not None:
            yield step.around
            step = self.steps[step.around]

    def _looked_at(self, step: Step) -> set[str]:
        """The tensors on which it depends whether, and with what, a step runs."""
        todo = [*step.inputs, *(value for index in self._around(step) for value in self.steps[index].inputs)]
        stops: set[str] = set()

        def further(value: str) -> Iterable[str]:
            if value in self._tensors:
                stops.add(value)
                return ()
            made = self.maker.get(value)
            return () if made is None else self.steps[made].inputs

        _closure(todo, further)
        return stops


def erase_dead(graph: Any, flow: Flow) -> None:
    """Take out of a graph all that its answer does not need. `flow` is of this graph."""
    steps, _ = flow.live()
    for index, node in reversed(list(enumerate(nodes_of(graph)))):
        around = flow.steps[index].around
        if index not in steps and (around is None or around in steps):
            node.destroy()


def _closure(roots: Iterable[str], further: Callable[[str], Iterable[str]]) -> set[str]:
    reached = set(roots)
    todo = [*reached]
    while todo:
        for value in further(todo.pop()):
            if value not in reached:
                reached.add(value)
                todo.append(value)
    return reached


def _written(node: Node, inputs: list[str]) -> list[str]:
    if node.kind() == "prim::SetAttr":
        return inputs[:1]
    text = node.schema()
    if "!" not in text:
        return []
    arguments = torch._C.parse_schema(text).arguments
    return [
        name
        for name, argument in zip(inputs, arguments, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _holds_tensors(kind: Any) -> bool:
    """Whether values of this type are tensors, or may hold some."""
    if isinstance(kind, torch._C.TensorType):
        return True
    if isinstance(kind, torch._C.ClassType):
        return False
    return any(map(_holds_tensors, kind.containedTypes()))
