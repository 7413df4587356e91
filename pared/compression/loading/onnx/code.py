"""Writes the TorchScript of an ONNX graph line by line, and computes each line on an example as it is written.

What does not depend on the inputs is computed and not written. Sizes, and what is computed from them, are numbers of
the code, so that free sizes stay free.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.loading.program_code import attribute
from pared.errors import UnsupportedModel

_MOST_NUMBERS = 64
_TRAINING = "self.training"


@dataclass(frozen=True)
class Number:
    """A number of the code: how it is written there, and what it is on the example."""

    text: str
    value: Any

    @property
    def literal(self) -> bool:
        """Whether it is the same whatever the input is."""
        return self.text == literal(self.value)


class Mode:
    """Stands for whether the model trains, as an argument of an operator."""


TRAINING = Mode()


@dataclass(frozen=True)
class Value:
    """A value of the graph.

    Attributes:
        tensor: what it is on the example.
        text: how the code reads it; empty where the code does not hold it yet.
        known: whether it is the same whatever the input is.
        numbers: its elements, where these are sizes or computed from sizes; it has one dimension, or none.
        source: the tensor of the file that it is, or is a transpose of.
        transposed: whether it is a transpose of that.
        fill: what all its elements are, where that is known though their number is not.
    """

    tensor: Tensor
    text: str = ""
    known: bool = False
    numbers: tuple[Number, ...] | None = None
    source: str = ""
    transposed: bool = False
    fill: float | None = None

    @property
    def shape(self) -> list[int]:
        """Its shape on the example."""
        return list(self.tensor.shape)

    @property
    def rank(self) -> int:
        """Its number of dimensions."""
        return self.tensor.dim()


class Positions(list[Value]):
    """Positions along the dimensions of a tensor, as an index takes them."""


@dataclass
class Code:
    """The code so far, and the tensors of the module that it is of.

    Attributes:
        first: the name of the first input, whose device the module runs on.
        free_batch: let reshapes that give the first dimension a fixed size take any.
    """

    first: str = ""
    free_batch: bool = False
    lines: list[str] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    _count: int = 0
    _paths: dict[str, tuple[str, bool]] = field(default_factory=dict)
    _loose: dict[str, str] = field(default_factory=dict)

    # -- lines --------------------------------------------------------------------------------

    def call(self, operator: str, *arguments: Any, **named: Any) -> Value:
        """The one result of an operator of torch."""
        return self.calls(operator, 1, *arguments, **named)[0]

    def calls(self, operator: str, count: int, *arguments: Any, **named: Any) -> list[Value]:
        """The results of an operator of torch: written into the code, and computed on the example.

        Args:
            arguments, named: as the operator takes them, Values for tensors and Numbers or plain numbers for numbers.
        """
        result = getattr(torch.ops.aten, operator)(
            *(_plain(argument) for argument in arguments), **{name: _plain(value) for name, value in named.items()}
        )
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        if all(_is_known(argument) for argument in [*arguments, *named.values()]):
            return [Value(tensor, known=True) for tensor in results]
        texts = [self._text(argument) for argument in arguments]
        texts += [f"{name}={self._text(value)}" for name, value in named.items()]
        name = self._assigned(f"torch.ops.aten.{operator}({', '.join(texts)})")
        if not isinstance(result, (tuple, list)):
            return [Value(result, name)]
        return [Value(tensor, f"{name}[{index}]") for index, tensor in enumerate(results)]

    def number(self, text: str, value: Any) -> Number:
        """A number that the code computes. Long texts get a name."""
        if len(text) < 40:
            return Number(text, value)
        return Number(self._assigned(text), value)

    def size(self, value: Value, dim: int) -> Number:
        """The size of a dimension: of what is known a literal, else as the code finds it."""
        dim %= max(value.rank, 1)
        size = value.tensor.shape[dim]
        if value.known:
            return Number(literal(size), size)
        return self.number(f"{self.text(value)}.size({dim})", size)

    def _assigned(self, text: str) -> str:
        name = f"v{self._count}"
        self._count += 1
        self.lines.append(f"{name} = {text}")
        return name

    # -- operands -----------------------------------------------------------------------------

    def text(self, value: Value) -> str:
        """How the code reads a value as a tensor; what it does not hold yet is put into it."""
        if value.text:
            return value.text
        if value.numbers is not None and not value.known:
            items = [number.text for number in value.numbers]
            listed = f"[{', '.join(items)}]" if value.rank else items[0]
            return self._assigned(f"torch.tensor({listed}, dtype={value.tensor.dtype}, device={self.first}.device)")
        if value.source:
            return self._kept(value)
        return self._loose_text(value.tensor)

    def weight(
        self, value: Value, path: str, *, transposed: bool = False, kind: str = "", trains: bool = True
    ) -> Value:
        """A tensor of the file as one of the module.

        Args:
            path: what it is called, where the file's own name for it is none of a layer.
            transposed: keep its transpose, of a matrix, which is what is given back.
            kind: the class of the layer that it belongs to.
            trains: whether it is a parameter, or else a buffer.
        """
        if not value.known or value.text:
            return self.call("t", value) if transposed else value
        flipped = value.transposed != transposed
        held = self._paths.get(value.source) if value.source else None
        tensor = value.tensor.t() if transposed else value.tensor
        if held is None:
            name = self._free(path)
            stored = tensor.detach().clone().contiguous()
            trainable = trains and stored.is_floating_point()
            self.tensors[name] = nn.Parameter(stored) if trainable else stored
            if value.source:
                self._paths[value.source] = name, flipped
                self.origin[name] = value.source
            held = name, flipped
        name, stored_flipped = held
        layer = name.rpartition(".")[0]
        if kind and layer and trains:
            self.kinds.setdefault(layer, kind)
        text = attribute(name)
        if stored_flipped != flipped:
            text = self._assigned(f"torch.ops.aten.t({text})")
        return Value(tensor, text)

    def _kept(self, value: Value) -> str:
        """A tensor of the file that an operator reads which is no layer."""
        trains = value.tensor.is_floating_point() and value.tensor.numel() > 1 and named_as_weight(value.source)
        return self.weight(value, path_of(value.source), trains=trains).text

    def _loose_text(self, tensor: Tensor) -> str:
        """A constant that was computed, as a buffer."""
        content = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        key = f"{tensor.dtype}{list(tensor.shape)}{content}"
        if key not in self._loose:
            name = self._free(f"constants.c{len(self._loose)}")
            self.tensors[name] = tensor.detach().clone().contiguous()
            self._loose[key] = attribute(name)
        return self._loose[key]

    def _free(self, path: str) -> str:
        """A path that no other tensor has, nor a module on the way to one."""
        taken = set(self.tensors)
        modules = {".".join(name.split(".")[:end]) for name in taken for end in range(1, name.count(".") + 1)}
        tried, count = path, 0
        while tried in taken | modules or any(part in taken for part in _above(tried)):
            count += 1
            parent, _, leaf = path.rpartition(".")
            tried = f"{parent}_{count}.{leaf}" if parent else f"{leaf}_{count}"
        return tried

    def _text(self, argument: Any) -> str:
        """An argument as TorchScript writes it."""
        match argument:
            case Value():
                return self.text(argument)
            case Number():
                return argument.text
            case Mode():
                return _TRAINING
            case list() | tuple():
                return self._list(argument)
            case _:
                return literal(argument)

    def _list(self, items: Sequence[Any]) -> str:
        texts = [self._text(item) for item in items]
        if isinstance(items, Positions):
            return f"torch.jit.annotate(List[Optional[Tensor]], [{', '.join(texts)}])"
        if any(isinstance(item, Value) for item in items):
            return f"[{', '.join(texts)}]"
        kind = "bool" if items and all(isinstance(item, bool) for item in items) else "int"
        if any(isinstance(item.value if isinstance(item, Number) else item, float) for item in items):
            kind = "float"
        return f"torch.jit.annotate(List[{kind}], [{', '.join(texts)}])"


def _plain(argument: Any) -> Any:
    """An argument as torch takes it on the example."""
    match argument:
        case Value():
            return argument.tensor
        case Number():
            return argument.value
        case Mode():
            return False
        case list() | tuple():
            return [_plain(item) for item in argument]
        case _:
            return argument


def _is_known(argument: Any) -> bool:
    match argument:
        case Value():
            return argument.known and not argument.text
        case Number():
            return argument.literal
        case Mode():
            return False
        case list() | tuple():
            return all(_is_known(item) for item in argument)
        case _:
            return True


def literal(value: Any) -> str:
    """A number, a type, a text or nothing as the code writes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return json.dumps(value) if isinstance(value, str) else repr(value)


def constant(number: Any) -> Number:
    """A number that the code holds as it is."""
    return Number(literal(number), number)


def of_numbers(numbers: Iterable[Number], dtype: torch.dtype, rank: int = 1) -> Value:
    """A value of these elements, of one dimension or none."""
    items = tuple(numbers)
    values = [number.value for number in items]
    tensor = torch.tensor(values if rank else values[0], dtype=dtype)
    if all(number.literal for number in items):
        return Value(tensor, known=True)
    return Value(tensor, numbers=items)


def numbers_of(value: Value) -> tuple[Number, ...] | None:
    """The elements of a value that is a short list of numbers of the code; None: it is another."""
    if value.numbers is not None:
        return value.numbers
    if not value.known or value.text or value.rank > 1 or value.tensor.numel() > _MOST_NUMBERS:
        return None
    return tuple(constant(item) for item in value.tensor.reshape(-1).tolist())


def transposed(value: Value) -> Value:
    """The transpose of a matrix that is a tensor of the file."""
    return replace(value, tensor=value.tensor.t(), transposed=not value.transposed)


# -- names ----------------------------------------------------------------------------------------


def named_as_weight(name: str) -> bool:
    """Whether a tensor has a name of a layer, as frameworks give them, and none that an exporter made up."""
    return "." in name and not name.startswith(("onnx::", "/", "_"))


def path_of(name: str) -> str:
    """A name of the file as a path of the module."""
    name = name.partition("::")[2] or name if name.startswith("onnx::") else name
    parts = [_part(part) for part in name.replace("/", ".").split(".") if part]
    return ".".join(parts) or "tensor"


def layer_of(node_name: str, operator: str) -> str:
    """The path of the layer that a node is of, from names such as `/layer1/layer1.0/conv1/Conv`; or empty."""
    scopes = [scope for scope in node_name.split("/") if scope]
    if scopes and scopes[-1].partition("_")[0] in (operator, "Conv2D", "MatMul"):
        scopes = scopes[:-1] if len(scopes) > 1 else scopes
    path: list[str] = []
    for scope in scopes:
        if path and scope.startswith(f"{path[-1]}."):  # `layer1.0` within `layer1`
            path[-1] = scope
        else:
            path.append(scope)
    return path_of(".".join(path)) if path else ""


def _part(part: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in part)
    taken = keyword.iskeyword(kept) or hasattr(nn.Module, kept) or kept in _TAKEN
    return f"{kept}_" if taken else kept


_TAKEN = {"training", "graph", "code", "constants"}


def _above(path: str) -> Iterable[str]:
    parts = path.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def refused(name: str, operator: str, why: str) -> UnsupportedModel:
    """The refusal of an operator for what it is asked to do."""
    node = f" (node {name[:100]})" if name else ""
    return UnsupportedModel(f"The operator {operator[:100]}{node} {why}")
