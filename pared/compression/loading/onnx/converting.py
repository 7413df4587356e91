"""Turns an ONNX graph into TorchScript, operator by operator, running each on an example."""

from __future__ import annotations

import math  # noqa: F401 - the code that is compiled here finds its names among this module's
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, List, Optional  # noqa: F401, UP035 - see math

import torch
from torch import Tensor

from pared.compression.loading.loaded import first_line
from pared.compression.loading.onnx.code import Code, Value, refused
from pared.compression.loading.onnx.graph import Graph, Node
from pared.compression.loading.onnx.operators import OPERATORS, Step, unknown_attribute
from pared.compression.loading.program_code import module_tree
from pared.errors import OutOfMemory, UnsupportedModel

_DEEPEST = 20


def refuse_unknown(graph: Graph, depth: int = 0) -> None:
    """Refuse a graph with operators that pared does not open, or with graphs too deep in each other.

    Raises:
        UnsupportedModel: naming the first of them and its node.
    """
    if depth > _DEEPEST:
        raise UnsupportedModel("The graphs of this ONNX file lie more than 20 deep in each other: it is damaged.")
    for node in graph.nodes:
        if node.op in _QUANTIZED or node.op.startswith("QLinear"):
            why = "belongs to a quantized model. Prune and distill before quantizing: upload the float32 model."
            raise refused(node.name, node.op, why)
        if node.domain:
            others = "; only ONNX's own operators are. Export the model without the optimizations of one runtime."
            raise refused(node.name, f"{node.domain}::{node.op}", f"is not one that pared opens{others}")
        if node.op not in OPERATORS and node.op != "If":
            why = (
                "is not one that pared opens. Cut it off, as onnx.utils.extract_model does, or upload the model as "
                "TorchScript or a torch.export program."
            )
            raise refused(node.name, node.op, why)
        if node.op != "If" and (unknown := unknown_attribute(node.op, node.attributes)) is not None:
            why = f"has the attribute {unknown[:60]}, which pared does not know. Export the model without it."
            raise refused(node.name, node.op, why)
        for value in node.attributes.values():
            if isinstance(value, Graph):
                refuse_unknown(value, depth + 1)


def refuse_undefined(graph: Graph, around: frozenset[str] = frozenset()) -> None:
    """Refuse a graph that reads what nothing has made.

    Args:
        around: what an inner graph finds made already.

    Raises:
        UnsupportedModel: naming the first such value.
    """
    made = {"", *around, *graph.inputs, *graph.tensors}
    for node in graph.nodes:
        for name in node.inputs:
            if name not in made:
                raise _undefined(name)
        for value in node.attributes.values():
            if isinstance(value, Graph):
                refuse_undefined(value, frozenset(made))
        made.update(node.outputs)
    for name in graph.outputs:
        if name not in made:
            raise _undefined(name)


_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
}  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """A graph as TorchScript.

    Attributes:
        origin: what each tensor of the module is called in the file.
        by_sizes: whether sizes of the example decided which way it goes.
    """

    module: torch.jit.ScriptModule
    origin: Mapping[str, str]
    by_sizes: bool


def convert(graph: Graph, example: Sequence[Tensor], opset: int, *, free_batch: bool = False) -> Converted:
    """The graph as a ScriptModule in eval mode, whose inputs come in the file's order.

    Args:
        example: an input each, on which it is run while it is written.
        free_batch: let reshapes to a fixed size of the first dimension take any.

    Raises:
        UnsupportedModel: an operator is used in a way that torch does not have, or the graph is damaged.
    """
    writer = _Writer(Code(first="x0", free_batch=free_batch), opset)
    names = [f"x{index}" for index in range(len(example))]
    values = {name: Value(tensor, text) for name, tensor, text in zip(graph.inputs, example, names, strict=True)}
    with torch.no_grad():
        made = writer.run(graph, values, 0)
        answers = [writer.code.text(made[name]) for name in graph.outputs]
    result = answers[0] if len(answers) == 1 else f"({', '.join(answers)},)"
    head = ", ".join(f"{name}: Tensor" for name in names)
    text = "\n    ".join([f"def forward(self, {head}):", *writer.code.lines, f"return {result}\n"])
    tree = module_tree(writer.code.tensors, {"": "OnnxModel", **writer.code.kinds})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            script: torch.jit.ScriptModule = torch.jit.script(tree)
            script.define(text)
        except RuntimeError as error:
            raise UnsupportedModel(
                f"What this ONNX file computes does not compile as TorchScript: {first_line(error)}. Upload the model "
                "as TorchScript or a torch.export program."
            ) from error
    return Converted(script.eval(), writer.code.origin, writer.by_sizes)


class _Writer:
    """Goes through a graph, and holds a value only until it has been read for the last time."""

    def __init__(self, code: Code, opset: int) -> None:
        self.code = code
        self._opset = opset
        self.by_sizes = False

    def run(self, graph: Graph, values: Mapping[str, Value], depth: int) -> dict[str, Value]:
        """The outputs of a graph; `values`: its inputs, and for an inner graph what is around it."""
        known = dict(values)
        known |= {name: Value(tensor, known=True, source=name) for name, tensor in graph.tensors.items()}
        last = _last_readers(graph)
        for position, node in enumerate(graph.nodes):
            for name, value in self._results(node, known, depth):
                known[name] = value
            for name in last.get(position, ()):
                if name not in values:
                    del known[name]
        return {name: known[name] for name in graph.outputs}

    def _results(self, node: Node, known: Mapping[str, Value], depth: int) -> Iterator[tuple[str, Value]]:
        inputs = [known[name] if name else None for name in node.inputs]
        if node.op == "If":
            results: Sequence[Value | None] = self._branch(node, inputs, known, depth)
        else:
            step = Step(
                self.code, node.op, node.name, self._opset, inputs, dict(node.attributes), sum(map(bool, node.outputs))
            )
            results = self._run(step)
        asked = max((position for position, name in enumerate(node.outputs, start=1) if name), default=0)
        if len(results) < asked:
            raise refused(node.name, node.op, f"is asked for {asked} outputs, of which pared knows {len(results)}.")
        for name, value in zip(node.outputs, results, strict=False):
            if name and value is not None:
                yield name, value

    def _run(self, step: Step) -> Sequence[Value | None]:
        try:
            made = OPERATORS[step.op](step)
        except UnsupportedModel:
            raise
        except MemoryError as error:
            raise OutOfMemory("The model needs more memory than a job may use.") from error
        except Exception as error:  # torch's own, for what does not fit together
            if "can't allocate memory" in str(error):
                raise OutOfMemory("The model needs more memory than a job may use.") from error
            raise step.refuse(
                f"does not run in torch on what it is given ({type(error).__name__}: {first_line(error)[:200]}). If "
                "onnxruntime runs the file, upload the model as TorchScript or a torch.export program."
            ) from error
        return [made] if isinstance(made, Value) else made

    def _branch(
        self, node: Node, inputs: Sequence[Value | None], known: Mapping[str, Value], depth: int
    ) -> Sequence[Value]:
        """The branch that is taken whatever the data is. What sizes decide is as on the example."""
        condition = inputs[0] if inputs else None
        decided = condition is not None and (condition.numbers is not None or (condition.known and not condition.text))
        if condition is None or not decided or depth >= _DEEPEST:
            raise refused(
                node.name,
                "If",
                "takes one of two ways as its input says, where pared follows straight programs. Export the model for "
                "one of them.",
            )
        self.by_sizes |= not condition.known
        chosen = node.attributes.get("then_branch" if bool(condition.tensor.any()) else "else_branch")
        if not isinstance(chosen, Graph):
            raise refused(node.name, "If", "lacks a branch: the file is damaged. Save and upload it again.")
        made = self.run(chosen, known, depth + 1)
        return [made[name] for name in chosen.outputs]


def _undefined(name: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"This ONNX file uses {name[:100]!r} before it is made: its operators go in a circle or are not in order, or a "
        "part of it is missing. onnx.checker.check_model says more. Save and upload it again."
    )


def _last_readers(graph: Graph) -> dict[int, list[str]]:
    """Position of a node -> the values that nobody reads after it."""
    last: dict[str, int] = {}
    for position, node in enumerate(graph.nodes):
        for name in (*node.outputs, *_read_by(node)):
            last[name] = position
    gone: dict[int, list[str]] = {}
    own = {name for node in graph.nodes for name in node.outputs}
    for name, position in last.items():
        if name and name in own and name not in graph.outputs:
            gone.setdefault(position, []).append(name)
    return gone


def _read_by(node: Node) -> Iterator[str]:
    yield from node.inputs
    for value in node.attributes.values():
        if isinstance(value, Graph):
            yield from value.outputs
            for inner in value.nodes:
                yield from _read_by(inner)
