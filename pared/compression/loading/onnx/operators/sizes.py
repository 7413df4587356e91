"""Operators that ask for sizes, and make tensors of sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pared.compression.loading.onnx.code import Number, Value, constant, numbers_of, of_numbers
from pared.compression.loading.onnx.operators.elementwise import binary_of
from pared.compression.loading.onnx.operators.step import Step, operator
from pared.compression.loading.onnx.reading import dtype_of


@operator("Shape", "end start")
def shape(step: Step) -> Value:
    """The sizes of all dimensions, or of some of them in a row."""
    x = step.input()
    start, end = step.attribute("start", 0), step.attribute("end", x.rank)
    dims = range(x.rank)[slice(start, end)]
    return of_numbers([step.code.size(x, dim) for dim in dims], torch.int64)


@operator("Size")
def size(step: Step) -> Value:
    """The number of elements."""
    result = of_numbers([constant(1)], torch.int64, 0)
    for dim in range(step.input().rank):
        result = binary_of(step, "Mul", result, of_numbers([step.code.size(step.input(), dim)], torch.int64, 0))
    return result


@operator("Constant", "value value_float value_floats value_int value_ints")
def value(step: Step) -> Value:
    """A tensor, or numbers, written in the graph."""
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32)):
        if name in step.attributes:
            return Value(torch.tensor(step.attributes[name], dtype=dtype), known=True)
    for name in ("value_int", "value_ints"):
        if name in step.attributes:
            return Value(torch.tensor(step.attributes[name], dtype=torch.int64), known=True)
    tensor = step.attribute("value")
    if not isinstance(tensor, torch.Tensor):
        raise step.refuse("holds no numbers, which is all that pared opens.")
    return Value(tensor, known=True, source=step.name)


@operator("ConstantOfShape", "value")
def constant_of_shape(step: Step) -> Value:
    """A tensor of one number all over."""
    sizes = step.numbers(0) or []
    filling = step.attribute("value")
    tensor = torch.zeros(1) if filling is None else filling
    number = tensor.reshape(-1)[0].item()
    _bounded(step, sizes)
    made = _made(step, "full", sizes, number, dtype=tensor.dtype)
    return replace(made, fill=number)


_FEW = 4096
_MOST_ELEMENTS = 1 << 28


def _bounded(step: Step, sizes: list[Number]) -> None:
    count = 1
    for number in sizes:
        count *= int(number.value)
        if number.value < 0 or count > _MOST_ELEMENTS:
            listed = "×".join(str(each.value) for each in sizes)
            raise step.refuse(f"makes a tensor of {listed} elements; the most we take is {_MOST_ELEMENTS:,}.")


def _made(step: Step, operator_name: str, *arguments: Any, dtype: torch.dtype) -> Value:
    """A new tensor: of few elements and fixed size it is known, else it is made where the model runs."""
    sizes = [one for argument in arguments for one in (argument if isinstance(argument, list) else [argument])]
    if all(not isinstance(size, Number) or size.literal for size in sizes):
        known = step.code.call(operator_name, *arguments, dtype=dtype)
        if known.tensor.numel() <= _FEW:
            return known
    device = Number(f"{step.code.first}.device", None)
    return step.code.call(operator_name, *arguments, dtype=dtype, device=device)


@operator("Range")
def arange(step: Step) -> Value:
    """Numbers in a row, from and to sizes."""
    given = [numbers_of(step.input(index)) for index in range(3)]
    if any(numbers is None or len(numbers) != 1 for numbers in given):
        raise step.refuse("takes its ends from the data, so that its size is not known.")
    start, end, by = (numbers[0] for numbers in given if numbers)
    dtype = step.input(0).tensor.dtype
    if not by.value or (end.value - start.value) / by.value > _MOST_ELEMENTS:
        raise step.refuse("goes in steps of 0, or in more steps than we take: the file is damaged.")
    return _made(step, "arange", start, end, by, dtype=dtype)


@operator("NonZero")
def non_zero(step: Step) -> Value:
    """Where a known tensor is not zero; elsewhere the data decides on sizes."""
    x = step.input()
    if not x.known or x.text:
        raise step.refuse("gives as many positions as the data has, so that no size is known.")
    return Value(x.tensor.nonzero().t().contiguous(), known=True)


@operator("Trilu", "upper")
def triangle(step: Step) -> Value:
    """The upper or lower triangle."""
    offset = int(step.known(1, "diagonal") or 0)
    return step.code.call("triu" if step.attribute("upper", 1) else "tril", step.input(), offset)


@operator("EyeLike", "dtype k")
def eye_like(step: Step) -> Value:
    """Ones on a diagonal, as large as the input."""
    x, offset = step.input(), int(step.attribute("k", 0))
    dtype = dtype_of(int(step.attribute("dtype", 0))) or x.tensor.dtype
    ones = step.code.call("ones_like", x, dtype=dtype)
    return step.code.call("triu", step.code.call("tril", ones, offset), offset)


@operator("OneHot", "axis")
def one_hot(step: Step) -> Value:
    """Two values: one where the index is the position."""
    index, code = step.input(0), step.code
    depth, values = step.numbers(1), step.input(2)
    if not depth or not values.known or values.tensor.numel() != 2:
        raise step.refuse("computes its two values or its depth from the data.")
    axis = int(step.attribute("axis", -1)) % (index.rank + 1)
    places = _made(step, "arange", depth[0], dtype=index.tensor.dtype)
    for _ in range(index.rank - axis):
        places = code.call("unsqueeze", places, -1)
    positive = code.call("where", code.call("lt", index, 0), code.call("add", index, depth[0]), index)
    hit = code.call("eq", code.call("unsqueeze", positive, axis), places)
    off, on = values.tensor.tolist()
    made = code.call("to", hit, values.tensor.dtype)
    if (off, on) == (0, 1):
        return made
    return code.call("add", code.call("mul", made, on - off), off)
