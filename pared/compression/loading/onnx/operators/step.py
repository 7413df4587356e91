"""What an operator of ONNX is handed, and the table of those that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pared.compression.loading.onnx.code import (
    Code,
    Number,
    Value,
    constant,
    layer_of,
    named_as_weight,
    numbers_of,
    path_of,
    refused,
)
from pared.errors import UnsupportedModel


@dataclass(frozen=True)
class Step:
    """One node of the graph.

    Attributes:
        code: where it is written.
        op: the operator's name.
        name: the node's.
        opset: the version of ONNX's operators.
        inputs: None for one that is left out.
        attributes: by name, as Python has them; tensors as torch has them.
        outputs: how many results the graph has names for.
    """

    code: Code
    op: str
    name: str
    opset: int
    inputs: Sequence[Value | None]
    attributes: dict[str, Any]
    outputs: int = 1

    def given(self, index: int) -> Value | None:
        """An input, if there is one."""
        return self.inputs[index] if index < len(self.inputs) else None

    def input(self, index: int = 0) -> Value:
        """An input that must be there."""
        value = self.given(index)
        if value is None:
            raise self.refuse(f"lacks its input {index}: the file is damaged. Save and upload it again.")
        return value

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or what it is where it is left out."""
        return self.attributes.get(name, default)

    def numbers(self, index: int, attribute: str = "") -> list[Number] | None:
        """A list of numbers that is an input, or an attribute in older versions; None: left out.

        Raises:
            UnsupportedModel: it depends on the data.
        """
        if attribute and attribute in self.attributes:
            return [constant(number) for number in self.attributes[attribute]]
        value = self.given(index)
        if value is None:
            return None
        numbers = numbers_of(value)
        if numbers is None:
            raise self.refuse(f"takes its input {index} from the data, where pared needs a number. {STRAIGHT}")
        return list(numbers)

    def integers(self, index: int, attribute: str = "") -> list[int] | None:
        """As `numbers`, for those that must be written in the file."""
        numbers = self.numbers(index, attribute)
        if numbers is None:
            return None
        if not all(number.literal for number in numbers):
            raise self.refuse(f"computes its input {index} from a size, where pared needs a fixed number. {STRAIGHT}")
        return [int(number.value) for number in numbers]

    def known(self, index: int, what: str) -> Any:
        """A single number that is written in the file, or None where it is left out."""
        value = self.given(index)
        if value is None:
            return None
        if not value.known or value.text or value.tensor.numel() != 1:
            raise self.refuse(f"computes its {what}, where pared needs a fixed number. {STRAIGHT}")
        return value.tensor.item()

    def weight(self, index: int, leaf: str, kind: str, **options: Any) -> Value | None:
        """An input as a weight of the layer that this node is."""
        value = self.given(index)
        return None if value is None else self.code.weight(value, self.path(value, leaf), kind=kind, **options)

    def path(self, value: Value, leaf: str) -> str:
        """What a weight of this layer is called: as in the file, where it has a layer's name there."""
        if named_as_weight(value.source):
            return path_of(value.source)
        layer = self._layer()
        if layer:
            return f"{layer}.{leaf}"
        return path_of(value.source) if "/" in value.source else f"{path_of(value.source or self.op)}.{leaf}"

    def _layer(self) -> str:
        first = next((v.source for v in self.inputs[1:] if v is not None and named_as_weight(v.source)), "")
        return path_of(first).rpartition(".")[0] or layer_of(self.name, self.op)

    def refuse(self, why: str) -> UnsupportedModel:
        """The refusal of this node."""
        return refused(self.name, self.op, why)


STRAIGHT = "Export the model with fixed settings, or upload it as TorchScript or a torch.export program."

Operator = Callable[[Step], "Value | Sequence[Value | None]"]
OPERATORS: dict[str, Operator] = {}
_ATTRIBUTES: dict[str, frozenset[str]] = {}
_OF_NO_EFFECT = {
    "consumed_inputs", "extrapolation_value", "is_test", "round_mode", "saturate", "seed", "softmax_precision",
    "spatial", "stash_type", "storage_order",
}  # fmt: skip
"""Attributes that change nothing in what pared opens: of old versions, of training, of small types, of memory."""


def operator(names: str, attributes: str = "") -> Callable[[Operator], Operator]:
    """Enter a function into the table, as one of these operators, which have these attributes.

    Args:
        names, attributes: with spaces between them.
    """

    def enter(function: Operator) -> Operator:
        for name in names.split():
            OPERATORS[name] = function
            _ATTRIBUTES[name] = frozenset(attributes.split())
        return function

    return enter


def unknown_attribute(op: str, given: Iterable[str]) -> str | None:
    """An attribute that pared does not know of this operator, such as one of a newer version."""
    return next((name for name in given if name not in _ATTRIBUTES[op] | _OF_NO_EFFECT), None)


INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
