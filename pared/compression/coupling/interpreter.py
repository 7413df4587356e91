"""Runs the inlined graph of a ScriptModule node by node in Python, so that each operator can be looked at.

TorchScript's own executor gives no way to see the values between two operators. This one does: tensors
travel as `Tracked`, every `aten` operator is called through its own registered schema, and a visitor is
shown each call. Control flow is followed for real, with the example's values.

The graph API used here is private to torch; `tests/unit/compression/test_coupling.py` pins what is relied on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from pared.compression.coupling.labels import Tracked
from pared.compression.coupling.python_values import (
    ON_LISTS,
    ON_VALUES,
    Node,
    UnsupportedGraph,
    spoken,
    truth,
    unwrapped,
    wrapped,
)
from pared.errors import telling_line

Wrap = Callable[[str, torch.Tensor], Tracked]
Visitor = Callable[["Call"], None]
StorageKey = tuple[int, tuple[int, ...], tuple[int, ...]]

OWN_FORWARD = "forward_of_upload"
"""The method with the file's own forward, where a module's forward only calls it with tensors alone."""


class Call:
    """One executed `aten` operator: its node, arguments by schema name, and outputs.

    A visitor may replace `outputs` (before it is stored) or the labels in them.
    """

    def __init__(self, step: Step, interpreter: Interpreter, arguments: dict[str, Any], outputs: list[Any]) -> None:
        self.node = step.node
        self.kind = step.kind
        self.schema = step.schema
        self._interpreter = interpreter
        self.arguments = arguments
        self.outputs = outputs

    @property
    def index(self) -> int:
        """Position of the node in `nodes_of`."""
        return self._interpreter.index_of(self.node)

    @property
    def tensors(self) -> list[Tracked]:
        """All tensor arguments, those in lists included."""
        return list(_tracked(list(self.arguments.values())))

    @property
    def results(self) -> list[Tracked]:
        """All tensor outputs, those in lists included."""
        return list(_tracked(self.outputs))

    def input_value(self, argument: str) -> Any:
        """The graph value (torch._C.Value) that feeds this argument."""
        return self.node.inputsAt(list(self.arguments).index(argument))

    def run_again(self, replacements: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """The results of the call with some of its tensors replaced: `id` of the `Tracked` -> what stands in for it."""
        operator, formal = self._interpreter.operator_of(self.schema)
        values = [(name, kwarg_only, _replaced(self.arguments[name], replacements)) for name, kwarg_only in formal]
        result = operator(
            *[value for _, kwarg_only, value in values if not kwarg_only],
            **{name: value for name, kwarg_only, value in values if kwarg_only},
        )
        return [result] if isinstance(result, torch.Tensor) else list(result)


class Interpreter:
    """Runs one module's `forward`, as often as wanted.

    Args:
        module: a ScriptModule. Neither its code nor its tensors are changed.
        graph: the module's, inlined, whose values are meant by their names; a copy of it unless given.
    """

    def __init__(self, module: torch.jit.ScriptModule, graph: Any | None = None) -> None:
        self.module = module
        self._graph = inlined(_own_graph(module).copy()) if graph is None else graph
        self._call_of_own = _Block(module.graph.copy()) if calls_own_forward(module) else None
        self._program = _Block(self._graph)
        self._operators: dict[str, tuple[Any, list[tuple[str, bool]]]] = {}
        # A recurrent layer reads its weights from a list of them.
        self._names = {storage_key(tensor): name for name, tensor in module.named_parameters()}
        self._set: dict[str, Any] = {}  # what a run has set attributes to, by their full names

    def holds(self, kinds: Iterable[str]) -> bool:
        """Whether an operator of one of these kinds is in the graph, whatever branch is taken."""
        return any(self._graph.findNode(kind, recurse=True) is not None for kind in kinds)

    def kinds(self) -> list[str]:
        """The operators and constructs of the graph, in the order of `nodes_of`."""
        return [node.kind() for node in nodes_of(self._graph)]

    def index_of(self, node: Node) -> int:
        """The position of a node in `nodes_of`."""
        return self._index[id_of(node)]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {id_of(node): index for index, node in enumerate(nodes_of(self._graph))}

    def run(self, inputs: Sequence[torch.Tensor], wrap: Wrap, visit: Visitor) -> Any:
        """The module's outputs for these inputs, tensors as `Tracked`.

        Args:
            wrap: makes the `Tracked` of a parameter or buffer, from its full name and tensor.
            visit: called after every operator.
        """
        self._wrap, self._visit, self._set = wrap, visit, {}
        program = self._call_of_own or self._program
        owner, *names = program.inputs
        env: dict[str, Any] = {owner: _Attribute(self.module._c, "")}
        defaults = self.module._c._get_method("forward").schema.arguments[1 + len(inputs) :]
        if len(names) != len(inputs) + len(defaults) or not all(each.has_default_value() for each in defaults):
            raise UnsupportedGraph(f"forward takes other arguments than these {len(inputs)}")
        values = [*map(Tracked, inputs), *(wrapped(argument.default_value) for argument in defaults)]
        env |= zip(names, values, strict=True)
        outputs = self._run_block(program, env)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def fixed_values(self) -> dict[str, Any]:
        """What comes out whatever the inputs are, in the module's present mode: name of the graph value -> value.

        Not what a draw of chance has a part in. Steps that write in place write into the module's own tensors.
        """
        self._wrap, self._visit, self._set = lambda name, tensor: Tracked(tensor, name=name), lambda call: None, {}
        env: dict[str, Any] = {self._program.inputs[0]: _Attribute(self.module._c, "")}
        self._run_fixed(self._program, env)
        return env

    def _run_fixed(self, block: _Block, env: dict[str, Any]) -> None:
        for step in block.steps:
            if step.kind == "prim::If":
                known = env.get(step.inputs[0])
                branches = step.blocks if known is None else [step.blocks[0 if truth(known) else 1]]
                for branch in branches:
                    self._run_fixed(branch, env)
                if known is not None:
                    results = zip(step.outputs, branches[0].outputs, strict=True)
                    env |= {output: env[result] for output, result in results if result in env}
            elif step.kind == "prim::SetAttr":
                continue
            elif _DRAWN.match(step.kind) is None and all(name in env for name in step.inputs):
                try:
                    env |= zip(step.outputs, self._run_step(step, env), strict=True)
                except Exception:  # noqa: BLE001, S112 - whatever it is, it is not known
                    continue

    def _run_block(self, block: _Block, env: dict[str, Any]) -> list[Any]:
        for step, done_with in zip(block.steps, block.done_with, strict=True):
            try:
                outputs = self._run_step(step, env)
            except UnsupportedGraph:
                raise
            except Exception as error:  # a defect of this interpreter or of a rule: only the analysis is lost
                raise UnsupportedGraph(
                    f"{spoken(step.kind)} ({type(error).__name__}: {telling_line(error)})"
                ) from error
            env.update(zip(step.outputs, outputs, strict=True))
            for name in done_with:
                del env[name]
        return [env[name] for name in block.outputs]

    def _run_step(self, step: Step, env: dict[str, Any]) -> list[Any]:
        kind = step.kind
        if kind == "prim::Constant":
            return [wrapped(step.constant)]
        args = [env[name] for name in step.inputs]
        if kind == "prim::GetAttr":
            return [self._get_attribute(args[0], step.node.s("name"))]
        if kind == "prim::SetAttr":
            self._set[_full_name(args[0], step.node.s("name"))] = args[1]  # the module itself stays as it is
            return []
        if kind == "prim::If":
            return self._run_block(step.blocks[0 if truth(args[0]) else 1], env)
        if kind == "prim::Loop":
            return self._run_loop(step.blocks[0], args, env)
        if kind == "prim::RaiseException":
            raise RuntimeError(str(args[0]))
        if kind == "prim::CallMethod" and step.node.s("name") == OWN_FORWARD:
            return self._run_block(self._program, dict(zip(self._program.inputs, args, strict=True)))
        if kind == "prim::CreateObject":
            return [_Attribute(None, f"the object {step.outputs[0]}")]
        if kind in ("prim::Enter", "prim::Exit") and _GRADIENTS.search(step.node.inputsAt(0).type().annotation_str):
            return [None] * len(step.outputs)  # values are the same with and without gradients
        if kind in ON_LISTS and isinstance(args[0], list):
            return ON_LISTS[kind](args)
        if kind in ON_VALUES:
            return ON_VALUES[kind](step.node, args)
        return self._call(step, args)

    def _run_loop(self, block: _Block, args: list[Any], env: dict[str, Any]) -> list[Any]:
        trips, condition, carried = args[0], truth(args[1]), args[2:]
        trip = 0
        while condition and trip < trips:
            env.update(zip(block.inputs, [trip, *carried], strict=True))
            condition, *carried = self._run_block(block, env)
            condition = truth(condition)
            trip += 1
        return carried

    def _get_attribute(self, owner: _Attribute, name: str) -> Any:
        full_name = _full_name(owner, name)
        if full_name in self._set:
            return self._set[full_name]
        value = owner.object.getattr(name)
        if isinstance(value, torch.Tensor):
            return self._wrap(full_name, value)
        if isinstance(value, torch._C.ScriptModule):
            return _Attribute(value, full_name)
        if isinstance(value, list) and any(isinstance(item, torch.Tensor) for item in value):
            return [self._wrap(self._names.get(storage_key(item), full_name), item) for item in value]
        return wrapped(value)

    def _call(self, step: Step, args: list[Any]) -> list[Any]:
        schema_text = step.schema
        if schema_text == "(no schema)":
            raise UnsupportedGraph(spoken(step.kind))
        operator, formal = self.operator_of(schema_text)
        plain = [unwrapped(arg) for arg in args]
        positional = [value for value, (_, kwarg_only) in zip(plain, formal, strict=True) if not kwarg_only]
        named = {name: value for value, (name, kwarg_only) in zip(plain, formal, strict=True) if kwarg_only}
        result = operator(*positional, **named)
        results = list(result) if len(step.outputs) > 1 else [result] if step.outputs else []
        arguments = dict(zip((name for name, _ in formal), args, strict=True))
        call = Call(step, self, arguments, [wrapped(result) for result in results])
        self._visit(call)
        if step.kind.endswith("_") and isinstance(args[0], Tracked) and call.results:
            args[0].layers = call.results[0].layers  # in place: all who hold the tensor see the result
        return call.outputs

    def operator_of(self, schema_text: str) -> tuple[Any, list[tuple[str, bool]]]:
        """The operator of a schema, and the names of its arguments with whether they are given by name alone.

        Raises:
            UnsupportedGraph: it has none.
        """
        if schema_text not in self._operators:
            schema = torch._C.parse_schema(schema_text)
            operator = torch._C._get_operation_overload(schema.name, schema.overload_name)
            if operator is None:
                raise UnsupportedGraph(spoken(schema.name))
            self._operators[schema_text] = (operator[0], [(a.name, a.kwarg_only) for a in schema.arguments])
        return self._operators[schema_text]


class _Block:
    """A block of the graph, read when it first runs: its steps, and the names of what goes in and out."""

    def __init__(self, block: Any) -> None:
        self._block = block

    @cached_property
    def inputs(self) -> list[str]:
        return [value.debugName() for value in self._block.inputs()]

    @cached_property
    def steps(self) -> list[Step]:
        return [Step(node) for node in self._block.nodes()]

    @cached_property
    def outputs(self) -> list[str]:
        return [value.debugName() for value in self._block.outputs()]

    @cached_property
    def reads(self) -> set[str]:
        """All that its steps read, or it gives."""
        return set(self.outputs).union(*(step.reads for step in self.steps))

    @cached_property
    def done_with(self) -> list[list[str]]:
        """Of each step, which values that the block itself makes are read by no later one."""
        made = {name for step in self.steps for name in step.outputs}
        later, done_with = set(self.outputs), []
        for step in reversed(self.steps):
            last = made & (step.reads | set(step.outputs)) - later
            done_with.append(sorted(last))
            later |= last
        done_with.reverse()
        return done_with


class Step:
    """A node of the graph."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.kind: str = node.kind()
        self.inputs = [value.debugName() for value in inputs_of(node)]
        self.outputs = [value.debugName() for value in outputs_of(node)]
        self.blocks = [_Block(block) for block in blocks_of(node)]
        is_value = self.kind == "prim::Constant" and node.hasAttribute("value")
        self.constant = node.output().toIValue() if is_value else None

    @cached_property
    def reads(self) -> set[str]:
        """The values that it needs, those inside of its blocks included."""
        return set(self.inputs).union(*(block.reads for block in self.blocks))

    @cached_property
    def schema(self) -> str:
        schema: str = self.node.schema()
        return schema


class _Attribute:
    """A module inside the module, with its path."""

    def __init__(self, module: Any, name: str) -> None:
        self.object = module
        self.name = name


def _full_name(owner: _Attribute, name: str) -> str:
    return f"{owner.name}.{name}" if owner.name else name


def inlined_graph(module: torch.jit.ScriptModule) -> Any:
    """The graph of the file's own forward with every call inlined, in place: an edit of it is an edit of the module."""
    return inlined(_own_graph(module))


def _own_graph(module: torch.jit.ScriptModule) -> Any:
    return module._c._get_method(OWN_FORWARD).graph if calls_own_forward(module) else module.graph


def calls_own_forward(module: torch.jit.ScriptModule) -> bool:
    """Whether a module's forward only calls the file's own one, which is another method."""
    return bool(module._c._has_method(OWN_FORWARD))


def inlined(graph: Any) -> Any:
    """The graph itself, with every call in it inlined."""
    torch._C._jit_pass_inline(graph)
    return graph


def nodes_of(block: Any) -> Iterator[Node]:
    """All nodes, those of inner blocks included, in one fixed order."""
    for node in block.nodes():
        yield node
        for inner in blocks_of(node):
            yield from nodes_of(inner)


def blocks_of(node: Node) -> list[Any]:
    """The inner blocks of a node."""
    return [] if node.kind().startswith(_WITHOUT_BLOCKS) else list(node.blocks())


def inputs_of(node: Node) -> list[Any]:
    """The values that a node reads; the node's own iterator takes ten times as long, as its end is a C++ exception."""
    return [node.inputsAt(index) for index in range(node.inputsSize())]


def outputs_of(node: Node) -> list[Any]:
    """The values that a node makes."""
    return [node.outputsAt(index) for index in range(node.outputsSize())]


def id_of(node: Node) -> str:
    """A name for a node that is the same whichever Python object wraps it."""
    names = [value.debugName() for value in outputs_of(node)]
    return f"{node.kind()}:{','.join(names)}" if names else f"{node.kind()}:{hash(node)}"


def storage_key(tensor: torch.Tensor) -> StorageKey:
    """The same for all names of one tensor."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def is_static(value: Any, known: Container[str] = ()) -> bool:
    """Whether an int in the graph is written in the file, rather than computed from a tensor's shape.

    Args:
        known: names of further values that count as written.
    """
    if value.debugName() in known:
        return True
    node = value.node()
    kind = node.kind()
    if kind in ("prim::Constant", "prim::GetAttr"):
        return True
    if kind in ("aten::size", "aten::len"):
        return False
    if kind in ("prim::NumToTensor", "prim::ListConstruct") or kind.startswith("aten::"):
        inputs = inputs_of(node)
        return bool(inputs) and all(is_static(value, known) for value in inputs)
    if kind == "prim::TupleUnpack":
        maker, position = node.inputsAt(0).node(), [v.debugName() for v in outputs_of(node)].index(value.debugName())
        return maker.kind() == "prim::TupleConstruct" and is_static(maker.inputsAt(position), known)
    return False


def is_constant(value: Any, known: Container[str] = ()) -> bool:
    """Whether a tensor in the graph is the same for all inputs, such as a buffer, a range, or a view of one.

    Args:
        known: names of further values that count as written.
    """
    node = value.node()
    if node.kind() in ("prim::device", "prim::dtype", "prim::layout"):  # where and how it is kept is no matter
        return True
    if node.kind() in ("prim::NumToTensor", "prim::ListConstruct") or node.kind().startswith("aten::"):
        inputs = inputs_of(node)
        drawn = _DRAWN.match(node.kind()) is not None
        return value.debugName() in known or (
            not drawn
            and node.kind() not in ("aten::size", "aten::len")
            and bool(inputs)
            and all(is_constant(each, known) for each in inputs)
        )
    return is_static(value, known)


def _replaced(value: Any, replacements: Mapping[int, torch.Tensor]) -> Any:
    """A value of the interpreter's as torch takes it, with some tensors replaced."""
    if isinstance(value, Tracked):
        return replacements.get(id(value), value.tensor)
    if isinstance(value, list):
        return [_replaced(item, replacements) for item in value]
    return value


def _tracked(value: Any) -> Iterator[Tracked]:
    if isinstance(value, Tracked):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tracked(item)


_WITHOUT_BLOCKS = ("aten::", "prim::Constant", "prim::GetAttr", "prim::ListConstruct", "prim::Tuple")
"""How the kinds of most nodes begin, for which nobody has to look for blocks."""
_GRADIENTS = re.compile(r"grad_mode\.(___torch_mangle_\d+\.)?(no_grad|enable_grad)$")
_DRAWN = re.compile(r"aten::(\w*dropout|rand\w*|bernoulli|normal|uniform|multinomial|poisson|exponential|rrelu)(_|$)")
"""Operators whose results hang on chance."""
