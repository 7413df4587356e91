"""Writes the graph of a torch.export program as TorchScript, which all else in pared works on.

The graph is a straight line of `aten` calls, so its code is one too. Two things become better than the file has them:
batch norm and dropout follow the mode that the model is in, where an exported graph holds the mode of its export; and a
batch that was fixed by the export becomes free where only reshapes name it (`free_batch`).
"""

from __future__ import annotations

import json
import keyword
import math  # noqa: F401 - the code that is compiled here finds its names among this module's
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, List, Optional  # noqa: F401, UP035 - see math

import torch
from torch import Tensor, nn

from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.loading.program_files import Argument, Graph, NamedArgument, Node, Program, sizes_of, torch_dtype
from pared.errors import UnsupportedModel

IN_TORCHSCRIPT = "Upload the model as TorchScript instead: torch.jit.save(torch.jit.script(model), …)."


def as_torchscript(program: Program, *, free_batch: bool = False) -> torch.jit.ScriptModule:
    """The program as a ScriptModule, its tensors under the names that they have there.

    Args:
        free_batch: let reshapes that give the first dimension a fixed size take any.

    Raises:
        UnsupportedModel: it uses an operator that plain PyTorch lacks, or what is no straight line of calls.
    """
    tree = module_tree({**program.tensors, **program.constants}, _kinds(program.graph))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            script: torch.jit.ScriptModule = torch.jit.script(tree)
            script.define(_Code(program, free_batch=free_batch).text())
        except RuntimeError as error:
            raise UnsupportedModel(_refusal(error)) from error
    place(script, CPU)  # pinned memory may be written in the graph, which only a GPU's machine has
    return script


def devices_named(program: Program) -> list[str]:
    """The devices other than the CPU that are written into the graph, sorted."""
    return sorted(set(_devices(program.graph)) - {"cpu"})


def _devices(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        for argument in node.inputs:
            ((kind, value),) = argument.arg.items()
            if kind == "as_device":
                index = value.get("index")
                yield (value["type"] if index is None else f"{value['type']}:{index}")[:40]
            elif kind == "as_graph":
                yield from _devices(Graph.model_validate(value["graph"]))


def mode_flags(program: Program) -> set[bool]:
    """The modes in which the operators that have one were exported: {True} is training, {False} evaluation."""
    return {
        bool(argument.arg["as_bool"])
        for node in program.graph.nodes
        for argument in node.inputs
        if _is_mode(node, argument)
    }


_MODED = re.compile(
    r"torch\.ops\.aten\.(batch_norm|(feature_|alpha_|feature_alpha_)?dropout_?|rrelu_?|lstm|gru|rnn_\w+)\."
)
_TARGET = re.compile(r"torch\.ops\.(\w+)\.(\w+)(?:\.(\w+))?")
_ASSERTIONS = re.compile(r"torch\.ops\.aten\.(_assert\w*|sym_constrain_range\w*|_functional_assert\w*)\.")

_PYTHON: dict[str, Callable[..., str]] = {
    "_operator.add": "({} + {})".format,
    "_operator.sub": "({} - {})".format,
    "_operator.mul": "({} * {})".format,
    "_operator.floordiv": "({} // {})".format,
    "_operator.truediv": "({} / {})".format,
    "_operator.mod": "({} % {})".format,
    "_operator.pow": "({} ** {})".format,
    "_operator.neg": "(-{})".format,
    "_operator.eq": "({} == {})".format,
    "_operator.ne": "({} != {})".format,
    "_operator.lt": "({} < {})".format,
    "_operator.le": "({} <= {})".format,
    "_operator.gt": "({} > {})".format,
    "_operator.ge": "({} >= {})".format,
    "_operator.and_": "({} and {})".format,
    "_operator.or_": "({} or {})".format,
    "math.ceil": "math.ceil({})".format,
    "math.floor": "math.floor({})".format,
    "math.trunc": "int({})".format,
    "torch.sym_float": "float({})".format,
    "torch.sym_max": "max({}, {})".format,
    "torch.sym_min": "min({}, {})".format,
    "torch.sym_not": "(not {})".format,
    "torch.sym_sum": "sum({})".format,
}
"""How arithmetic on sizes is written."""

_ALIKE = {"lift_fresh_copy": "clone", "sym_size": "size", "sym_numel": "numel", "_unsafe_view": "reshape"}
"""Operators of exported graphs, and those that say the same to TorchScript."""

_VIEW = "torch.ops.aten.view.default"
"""torch.export leaves out copies that its own device can do without. Where kernels lay their results out otherwise,
a view of them fails; a reshape is a view, or copies if it must."""

_NORMS: dict[str, Callable[..., str]] = {
    "_native_batch_norm_legit_no_training": (
        "batch_norm({0}, {1}, {2}, {3}, {4}, self.training, {5}, {6}, False)".format
    ),
    "native_layer_norm": "layer_norm({0}, {1}, {2}, {3}, {4})".format,
    "native_group_norm": "group_norm({0}, {6}, {1}, {2}, {7})".format,
}
"""How `run_decompositions` writes norms (with statistics beside the result, which nobody reads), and how layers do."""

_RESHAPES = {"view", "reshape", "_unsafe_view", "expand"}


class _Code:
    """Writes `forward` line by line."""

    def __init__(self, program: Program, *, free_batch: bool) -> None:
        self._program = program
        self._free_batch = free_batch
        self._moded = len(mode_flags(program)) == 1
        self._lines: list[str] = []
        self._count = 0
        self._inputs: list[str] = []

    def text(self) -> str:
        """The function's source."""
        graph = self._program.graph
        values = dict(self._given())
        self._write(graph, values)
        answers = [self._value(argument, values) for argument in self._answers()]
        single = self._program.out_spec.type is None
        result = answers[0] if single and len(answers) == 1 else f"({', '.join(answers)},)"
        head = ", ".join(f"{name}: Tensor" for name in self._inputs)
        return "\n    ".join([f"def forward(self, {head}):", *self._lines, f"return {result}\n"])

    def _given(self) -> Iterator[tuple[str, str]]:
        """What the inputs of the graph are called here."""
        for spec in self._program.input_specs:
            ((kind, value),) = spec.items()
            if kind in _NAME_OF:
                name = value[_NAME_OF[kind]]
                if name not in self._program.tensors and name not in self._program.constants:
                    raise UnsupportedModel(f"This program is damaged: it has no tensor {name[:200]}. Export it again.")
                yield value["arg"]["name"], attribute(name)
            elif kind == "user_input" and "as_tensor" in value["arg"]:
                name = f"x{len(self._inputs)}"
                self._inputs.append(name)
                yield value["arg"]["as_tensor"]["name"], name
            elif kind != "constant_input":  # fixed by the export, and so no input here
                raise UnsupportedModel(
                    f"This program takes {_described(kind, value)}, where pared needs tensors alone. Wrap the model so "
                    "that it takes tensors, and export that."
                )
        if not self._inputs:
            raise UnsupportedModel("This program takes no tensor, so there is nothing to run it on.")

    def _answers(self) -> Iterator[Argument]:
        for spec in self._program.output_specs:
            ((kind, value),) = spec.items()
            if kind != "user_output" or "as_tensor" not in value["arg"]:
                raise UnsupportedModel(
                    f"This program has {_described(kind, value)} among its results, where pared needs tensors alone. "
                    "Export it for inference (model.eval(), no run_decompositions()), and return tensors."
                )
            yield value["arg"]

    def _write(self, graph: Graph, values: dict[str, str]) -> None:
        """The calls of a graph; `values`: what the values of the graph are called here."""
        for node in graph.nodes:
            if _ASSERTIONS.match(node.target):
                continue
            if node.target == "torch.ops.higher_order.wrap_with_set_grad_enabled":
                self._write_inner(node, values)
                continue
            call = self._call(graph, node, values)
            if self._counts_batches(node):
                self._lines += ["if self.training:", f"    {call}"]
                values[_items(node.outputs[0])[0]] = self._value(node.inputs[0].arg, values)
                continue
            self._assign(node.outputs[:1] if _norm(node) else node.outputs, call, values)

    def _write_inner(self, node: Node, values: dict[str, str]) -> None:
        """Write the calls that ran under no_grad, which does not change their results."""
        _, inner, *operands = [argument.arg for argument in node.inputs]
        graph = Graph.model_validate(inner["as_graph"]["graph"])
        inside = {
            parameter["as_tensor"]["name"]: self._value(operand, values)
            for parameter, operand in zip(graph.inputs, operands, strict=True)
        }
        self._write(graph, inside)
        results = [item for output in node.outputs for item in _items(output)]
        for name, made in zip(results, graph.outputs, strict=True):
            values[name] = self._value(made, inside)

    def _call(self, graph: Graph, node: Node, values: Mapping[str, str]) -> str:
        if node.target in _PYTHON:
            try:
                return _PYTHON[node.target](*(self._value(argument.arg, values) for argument in node.inputs))
            except IndexError as error:
                raise _unknown(node.target) from error
        match = _TARGET.fullmatch(node.target)
        if match is None:
            raise _unknown(node.target)
        library, operator = match[1], match[2]
        if library == "higher_order":
            raise UnsupportedModel(
                f"This program uses torch.export's {operator}, a branch or loop that its data decides on, or another "
                f"graph inside its graph; pared follows straight programs. {IN_TORCHSCRIPT}"
            )
        if library != "aten":
            raise UnsupportedModel(
                f"This program uses {library[:100]}::{operator[:100]}, which plain PyTorch does not have, or which is "
                "for quantized models; such operators are not installed here. Export a float32 model without it."
            )
        if not hasattr(torch.ops.aten, operator):
            raise UnsupportedModel(
                f"This program uses aten::{operator[:100]}, which PyTorch {torch.__version__.partition('+')[0]} lacks. "
                "Save it with that PyTorch."
            )
        arguments = []
        for argument in node.inputs:
            text = self._argument(graph, node, operator, argument, values)
            if argument.kind == 2 and not argument.name.isidentifier():
                raise _unknown(f"{node.target} with an argument called {argument.name}")
            arguments.append(f"{argument.name}={text}" if argument.kind == 2 else text)
        if (norm := _norm(node)) is not None:
            return f"torch.ops.aten.{norm(*arguments)}"
        operator = "reshape" if node.target == _VIEW else _ALIKE.get(operator, operator)
        return f"torch.ops.aten.{operator}({', '.join(arguments)})"

    def _argument(
        self, graph: Graph, node: Node, operator: str, argument: NamedArgument, values: Mapping[str, str]
    ) -> str:
        if self._moded and _is_mode(node, argument):
            return "self.training"
        if self._free_batch and operator in _RESHAPES and argument.name in ("size", "shape"):
            freed = _without_batch(graph, node, argument.arg)
            if freed is not None:
                return repr(freed)
        return self._value(argument.arg, values)

    def _assign(self, outputs: Sequence[Argument], call: str, values: dict[str, str]) -> None:
        name = f"v{self._count}"
        self._count += 1
        self._lines.append(f"{name} = {call}")
        for index, output in enumerate(outputs):
            whole = name if len(outputs) == 1 else f"{name}[{index}]"
            items = _items(output)
            listed = "as_tensors" in output
            for position, item in enumerate(items):
                values[item] = f"{whole}[{position}]" if listed else whole

    def _counts_batches(self, node: Node) -> bool:
        """Whether it counts the batches that batch norm saw, which only training does."""
        if node.target != "torch.ops.aten.add_.Tensor" or not self._moded:
            return False
        counted = node.inputs[0].arg.get("as_tensor", {}).get("name")
        return any(
            spec["buffer"]["arg"]["name"] == counted and spec["buffer"]["buffer_name"].endswith("num_batches_tracked")
            for spec in self._program.input_specs
            if "buffer" in spec
        )

    def _value(self, argument: Argument, values: Mapping[str, str]) -> str:
        """An argument as TorchScript writes it."""
        ((kind, value),) = argument.items()
        match kind:
            case "as_none":
                return "None"
            case "as_bool" | "as_int" | "as_string" | "as_bools":
                return repr(value)
            case "as_float":
                return _number(value)
            case "as_ints" | "as_sym_ints":
                return _list("int", [_named_or(item, values) for item in value])
            case "as_floats" | "as_sym_floats":
                return _list("float", [_named_or(item, values) for item in value])
            case "as_tensor":
                return _known(value["name"], values)
            case "as_tensors":
                return f"[{', '.join(_known(item['name'], values) for item in value)}]"
            case "as_optional_tensors":
                return _list("Optional[Tensor]", [self._value(item, values) for item in value])
            case "as_optional_tensor":
                return self._value(value, values)
            case "as_sym_int" | "as_sym_float" | "as_sym_bool":
                return _named_or(value, values)
            case "as_scalar_type":
                return str(torch_dtype(value))
            case "as_device":
                return f"{self._inputs[0]}.device"  # where it was exported says nothing of where it runs
            case "as_layout" if value == 7:
                return "torch.strided"
            case "as_memory_format" if value in _MEMORY_FORMATS:
                return _MEMORY_FORMATS[value]
        raise UnsupportedModel(
            f"An operator of this program takes {_described(kind, value)}, which pared does not know. {IN_TORCHSCRIPT}"
        )


_NAME_OF = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
_MEMORY_FORMATS = {
    1: "torch.contiguous_format",
    2: "torch.channels_last",
    3: "torch.channels_last_3d",
    4: "torch.preserve_format",
}


def _is_mode(node: Node, argument: NamedArgument) -> bool:
    """Whether an argument says that an operator trains."""
    return argument.name in ("training", "train") and "as_bool" in argument.arg and bool(_MODED.match(node.target))


def _norm(node: Node) -> Callable[..., str] | None:
    return next((text for name, text in _NORMS.items() if node.target == f"torch.ops.aten.{name}.default"), None)


def _items(output: Argument) -> list[str]:
    """The names of the values that an output, or a list of outputs, stands for."""
    ((kind, value),) = output.items()
    match kind:
        case "as_tensor":
            return [value["name"]]
        case "as_tensors":
            return [item["name"] for item in value]
        case "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return [value["as_name"]]
        case "as_none":
            return []
    raise UnsupportedModel(f"An operator of this program gives {_described(kind, value)}. {IN_TORCHSCRIPT}")


def _known(name: str, values: Mapping[str, str]) -> str:
    if name not in values:
        raise UnsupportedModel(f"This program is damaged: it uses {name[:100]} before it is made. Export it again.")
    return values[name]


def _named_or(value: Any, values: Mapping[str, str]) -> str:
    """A number, or the name of one."""
    if not isinstance(value, dict):
        return _number(value)
    ((kind, inner),) = value.items()
    return _known(inner, values) if kind == "as_name" else _number(inner)


def _list(kind: str, items: Sequence[str]) -> str:
    """A list whose type shows even where it is empty or begins with None."""
    return f"torch.jit.annotate(List[{kind}], [{', '.join(items)}])"


def _number(value: Any) -> str:
    if isinstance(value, str):  # JSON has no numbers for these
        if value not in ("Infinity", "-Infinity", "NaN"):
            raise UnsupportedModel(f"This program is damaged: {value[:40]!r} stands for a number. Export it again.")
        return f'float("{value.replace("Infinity", "inf").lower()}")'
    return repr(value)


def _described(kind: str, value: Any) -> str:
    """What stands where something else was wanted, in the words of torch's schema."""
    if kind in ("user_input", "user_output"):
        kind = next(iter(value["arg"]))
    return f"what torch.export calls {kind.removeprefix('as_')[:60]}"


def _unknown(target: str) -> UnsupportedModel:
    return UnsupportedModel(f"This program uses {target[:100]}, which pared does not know. {IN_TORCHSCRIPT}")


def _refusal(error: RuntimeError) -> str:
    text = str(error)
    unknown = re.search(r"(?:Unknown builtin op|unknown operator):?\s*'?([\w:.]+)", text)
    what = unknown[1] if unknown else next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]
    return f"The code of this program does not compile as TorchScript: {what}. {IN_TORCHSCRIPT}"


def _without_batch(graph: Graph, node: Node, sizes: Argument) -> list[int] | None:
    """Sizes that fit any first dimension, and equal the written ones for the batch of the export.

    A reshape counts its elements, so any one of its sizes may be left to it.
    """
    written = sizes.get("as_ints")
    after = sizes_of(graph.tensor_values, _items(node.outputs[0])[0])
    rest = [size for size in after[1:] if size]
    if not written or len(rest) != len(written) - 1:  # a computed size, or one of none
        return None
    if ".expand." not in node.target:
        return [-1, *rest]
    before = sizes_of(graph.tensor_values, _items(node.inputs[0].arg)[0])
    return [-1, *written[1:]] if len(before) == len(written) and before[0] == written[0] else None


# -- tensors --------------------------------------------------------------------------------------


def module_tree(tensors: Mapping[str, Tensor], kinds: Mapping[str, str]) -> nn.Module:
    """Modules with these tensors, by their paths; `kinds`: path of a module -> name of its class."""
    root = _module(kinds.get("", "Program"))
    for name, tensor in tensors.items():
        owner, path = root, ""
        *parts, leaf = name.split(".")
        if any(keyword.iskeyword(part) for part in (*parts, leaf)):  # torch.jit.load cannot read such code again
            raise UnsupportedModel(
                f"{name[:200]} holds a word of Python's own. Rename it in the model and export that."
            )
        for part in parts:
            path = f"{path}.{part}".removeprefix(".")
            if part not in owner._modules:
                _add(name, owner.add_module, part, _module(kinds.get(path, "Module")))
            owner = owner.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            _add(name, owner.register_parameter, leaf, tensor)
        else:
            _add(name, owner.register_buffer, leaf, tensor)
    return root


def _add(name: str, add: Callable[[str, Any], None], part: str, value: nn.Module | Tensor) -> None:
    try:
        add(part, value)
    except (KeyError, TypeError) as error:
        raise UnsupportedModel(
            f"{name[:200]} cannot be the name of a tensor: {error}. Rename it in the model and export that."
        ) from error


def _kinds(graph: Graph) -> dict[str, str]:
    """Path of each module that the graph's calls come from -> name of its class."""
    kinds = {}
    for node in graph.nodes:
        for entry in node.metadata.get("nn_module_stack", "").split(";"):
            _, _, rest = entry.partition(",")
            path, _, qualified = rest.rpartition(",")
            name = qualified.rpartition(".")[2]
            if name.isidentifier() and not keyword.iskeyword(name):
                kinds[path.partition("@")[0]] = name  # the second call of a module is that of `path@1`
    return kinds


def _module(kind: str) -> nn.Module:
    made: nn.Module = type(kind, (nn.Module,), {"__module__": "program"})()
    return made


def attribute(path: str) -> str:
    """How code reads a tensor: `self.layer.weight`, also where a part is no name of Python's, such as a number."""
    text = "self"
    for part in path.split("."):
        plain = part.isidentifier() and part.isascii()
        text = f"{text}.{part}" if plain else f"getattr({text}, {json.dumps(part)})"
    return text
