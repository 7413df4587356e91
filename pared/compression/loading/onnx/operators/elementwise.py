"""Operators that compute each element by itself, on tensors and on sizes."""

from __future__ import annotations

import math
import operator as on_numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pared.compression.loading.onnx.code import TRAINING, Number, Value, constant, literal, numbers_of, of_numbers
from pared.compression.loading.onnx.operators.step import INTEGERS, Step, operator
from pared.compression.loading.onnx.reading import dtype_of

_UNARY = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Erf": "erf", "Exp": "exp", "Log": "log", "Sqrt": "sqrt",
    "Abs": "abs", "Neg": "neg", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sign": "sign", "Sin": "sin",
    "Cos": "cos", "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh",
    "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh", "Reciprocal": "reciprocal", "Not": "logical_not",
    "IsNaN": "isnan", "Mish": "mish", "HardSwish": "hardswish", "BitwiseNot": "bitwise_not",
}  # fmt: skip


@operator(" ".join(_UNARY))
def unary(step: Step) -> Value:
    """An operator that torch has alike."""
    x = step.input()
    numbers = numbers_of(x)
    if x.numbers is not None and numbers is not None and step.op in _NUMBER_UNARY:
        return of_numbers([_NUMBER_UNARY[step.op](step, each) for each in numbers], x.tensor.dtype, x.rank)
    return step.code.call(_UNARY[step.op], x)


def _of_function(text: str, compute: Callable[[Any], Any]) -> Callable[[Step, Number], Number]:
    return lambda step, x: _made(step, text.format(x.text), compute(x.value), [x])


def _made(step: Step, text: str, value: Any, parts: Sequence[Number]) -> Number:
    return constant(value) if all(part.literal for part in parts) else step.code.number(text, value)


_NUMBER_UNARY: dict[str, Callable[[Step, Number], Number]] = {
    "Neg": _of_function("(-{})", on_numbers.neg),
    "Abs": _of_function("abs({})", abs),
    "Floor": _of_function("float(math.floor({}))", lambda x: float(math.floor(x))),
    "Ceil": _of_function("float(math.ceil({}))", lambda x: float(math.ceil(x))),
    "Sqrt": _of_function("math.sqrt({})", math.sqrt),
    "Not": _of_function("(not {})", on_numbers.not_),
}


@operator("LeakyRelu", "alpha")
def leaky_relu(step: Step) -> Value:
    """x, or where it is negative α times x."""
    return step.code.call("leaky_relu", step.input(), float(step.attribute("alpha", 0.01)))


@operator("Elu", "alpha")
def elu(step: Step) -> Value:
    """x, or where it is negative α(eˣ − 1)."""
    return step.code.call("elu", step.input(), float(step.attribute("alpha", 1.0)))


@operator("Celu", "alpha")
def celu(step: Step) -> Value:
    """Elu with its argument over α."""
    return step.code.call("celu", step.input(), float(step.attribute("alpha", 1.0)))


@operator("Selu", "alpha gamma")
def selu(step: Step) -> Value:
    """Selu, whose two constants torch has fixed."""
    alpha, gamma = step.attribute("alpha", _SELU[0]), step.attribute("gamma", _SELU[1])
    if math.isclose(alpha, _SELU[0], rel_tol=1e-4) and math.isclose(gamma, _SELU[1], rel_tol=1e-4):
        return step.code.call("selu", step.input())
    return step.code.call("mul", step.code.call("elu", step.input(), float(alpha)), float(gamma))


_SELU = (1.6732632, 1.0507010)


@operator("Softplus")
def softplus(step: Step) -> Value:
    """log(1 + eˣ)."""
    return step.code.call("softplus", step.input())


@operator("Softsign")
def softsign(step: Step) -> Value:
    """x over 1 + |x|."""
    x = step.input()
    return step.code.call("div", x, step.code.call("add", step.code.call("abs", x), 1.0))


@operator("ThresholdedRelu", "alpha")
def thresholded_relu(step: Step) -> Value:
    """x where it is above α, else 0."""
    return step.code.call("threshold", step.input(), float(step.attribute("alpha", 1.0)), 0.0)


@operator("Shrink", "bias lambd")
def shrink(step: Step) -> Value:
    """0 near 0, and moved towards it elsewhere by the bias."""
    x, limit, bias = step.input(), float(step.attribute("lambd", 0.5)), float(step.attribute("bias", 0.0))
    low = step.code.call("mul", step.code.call("lt", x, -limit), step.code.call("add", x, bias))
    high = step.code.call("mul", step.code.call("gt", x, limit), step.code.call("sub", x, bias))
    return step.code.call("add", low, high)


@operator("HardSigmoid", "alpha beta")
def hard_sigmoid(step: Step) -> Value:
    """max(0, min(1, αx + β)), which torch has for one α and β."""
    x, alpha, beta = step.input(), float(step.attribute("alpha", 0.2)), float(step.attribute("beta", 0.5))
    if math.isclose(alpha, 1 / 6, rel_tol=1e-3) and beta == 0.5:
        return step.code.call("hardsigmoid", x)
    moved = step.code.call("add", step.code.call("mul", x, alpha), beta)
    return step.code.call("clamp", moved, 0.0, 1.0)


@operator("Gelu", "approximate")
def gelu(step: Step) -> Value:
    """Gelu, computed or approximated."""
    return step.code.call("gelu", step.input(), approximate=_text(step.attribute("approximate", "none")))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@operator("Swish", "alpha")
def swish(step: Step) -> Value:
    """Swish: x · sigmoid(αx)."""
    x, alpha = step.input(), float(step.attribute("alpha", 1.0))
    if alpha == 1:
        return step.code.call("silu", x)
    return step.code.call("mul", x, step.code.call("sigmoid", step.code.call("mul", x, alpha)))


@operator("Clip", "max min")
def clip(step: Step) -> Value:
    """Clip, whose limits are attributes before version 11."""
    x = step.input()
    low, high = (
        step.attribute(name) if name in step.attributes else step.known(index, "limits")
        for index, name in ((1, "min"), (2, "max"))
    )
    if low is None and high is None:
        return x
    if x.numbers is not None:
        return of_numbers([_clipped(step, number, low, high) for number in x.numbers], x.tensor.dtype, x.rank)
    if (low, high) == (0, 6) and x.tensor.is_floating_point():
        return step.code.call("relu6", x)
    return step.code.call("clamp", x, low, high)


def _clipped(step: Step, number: Number, low: Any, high: Any) -> Number:
    for limit, name, choose in ((low, "max", max), (high, "min", min)):
        if limit is not None:
            text = f"{name}({number.text}, {literal(limit)})"
            number = _made(step, text, choose(number.value, limit), [number])
    return number


# -- two operands ---------------------------------------------------------------------------------

_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "Equal": "eq", "Greater": "gt", "Less": "lt",
    "GreaterOrEqual": "ge", "LessOrEqual": "le", "And": "logical_and", "Or": "logical_or", "Xor": "logical_xor",
    "Max": "maximum", "Min": "minimum", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
}  # fmt: skip
_WITH_NUMBER = {"Add", "Sub", "Mul", "Div", "Pow", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"}
_COMPARISONS = {"Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor"}
_SWAPPED = {
    "Add": "add", "Mul": "mul", "Sub": "rsub", "Equal": "eq", "Greater": "lt", "Less": "gt", "GreaterOrEqual": "le",
    "LessOrEqual": "ge",
}  # fmt: skip


@operator(" ".join(sorted(set(_BINARY) - {"Max", "Min"})))
def binary(step: Step) -> Value:
    """An operator of two operands, which broadcast."""
    return binary_of(step, step.op, step.input(0), step.input(1))


@operator("Mod", "fmod")
def mod(step: Step) -> Value:
    """The remainder, with the sign of the divisor, or with `fmod` of the dividend."""
    x, y = step.input(0), step.input(1)
    if (computed := _on_numbers(step, "Mod", x, y)) is not None:
        return computed
    return step.code.call("fmod" if step.attribute("fmod", 0) else "remainder", x, y)


@operator("Max Min Sum")
def variadic(step: Step) -> Value:
    """Max, Min and Sum of any number of tensors."""
    kind = "Add" if step.op == "Sum" else step.op
    result = step.input(0)
    for index in range(1, len(step.inputs)):
        result = binary_of(step, kind, result, step.input(index))
    return result


@operator("Mean")
def mean(step: Step) -> Value:
    """The mean of any number of tensors."""
    return step.code.call(
        "div", variadic(Step(step.code, "Sum", step.name, step.opset, step.inputs, {})), float(len(step.inputs))
    )


def binary_of(step: Step, kind: str, x: Value, y: Value) -> Value:
    """An operator of two values: on sizes, with a number of the code, or on tensors."""
    if (computed := _on_numbers(step, kind, x, y)) is not None:
        return computed
    code, rounding = step.code, {}
    if kind == "Div" and x.tensor.dtype in INTEGERS:
        rounding = {"rounding_mode": "trunc"}
    if kind in _WITH_NUMBER and (number := _single(y, x)) is not None and not (x.known and y.known):
        return code.call(_BINARY[kind], x, number, **rounding)
    if kind in _SWAPPED and (number := _single(x, y)) is not None and not (x.known and y.known):
        return code.call(_SWAPPED[kind], y, number)
    if kind == "Pow" and x.tensor.dtype != y.tensor.dtype:
        y = code.call("to", y, x.tensor.dtype)
    return code.call(_BINARY[kind], x, y, **rounding)


def _single(value: Value, other: Value) -> Number | None:
    """The one number that a value is, where it does not widen the other."""
    if value.tensor.numel() != 1 or value.rank > other.rank or value.text:
        return None
    if value.known:
        return constant(value.tensor.item())
    return value.numbers[0] if value.numbers else None


def _on_numbers(step: Step, kind: str, x: Value, y: Value) -> Value | None:
    """The operator on the elements, where both are sizes or fixed numbers beside sizes."""
    if (x.numbers is None and y.numbers is None) or kind not in _NUMBER_BINARY:
        return None
    left, right = numbers_of(x), numbers_of(y)
    if left is None or right is None or len({len(left), len(right)} - {1}) > 1:
        return None
    count = max(len(left), len(right))
    left, right = (items * count if len(items) == 1 else items for items in (left, right))
    integer = x.tensor.dtype in INTEGERS
    results = [_number_of(step, kind, a, b, integer=integer) for a, b in zip(left, right, strict=True)]
    dtype = torch.bool if kind in _COMPARISONS else x.tensor.dtype
    return of_numbers(results, dtype, max(x.rank, y.rank))


def _number_of(step: Step, kind: str, a: Number, b: Number, *, integer: bool) -> Number:
    if kind == "Div" and integer:
        text, compute = "({} // {})", on_numbers.floordiv  # sizes are not negative, so that both ways of rounding agree
    else:
        text, compute = _NUMBER_BINARY[kind]
    if kind == "Equal" and (decided := _never_equal(a, b)):
        return constant(not decided)
    if not integer and kind == "Div" and b.value == 0:
        raise step.refuse("divides by 0: the file is damaged. Save and upload it again.")
    if integer and kind in ("Div", "Mod") and b.value == 0:
        raise step.refuse("divides by 0: the file is damaged. Save and upload it again.")
    for number, other in ((a, b), (b, a)):  # what changes nothing is left out
        if (kind, number.text) in (("Add", "0"), ("Mul", "1")):
            return other
    if (kind, b.text) in (("Sub", "0"), ("Div", "1")):
        return a
    return _made(step, text.format(a.text, b.text), compute(a.value, b.value), [a, b])


def _never_equal(a: Number, b: Number) -> bool:
    """Whether a size is compared with a negative number."""
    return any(
        one.literal and one.value < 0 and not other.literal and other.value >= 0 for one, other in ((a, b), (b, a))
    )


_NUMBER_BINARY: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "Add": ("({} + {})", on_numbers.add),
    "Sub": ("({} - {})", on_numbers.sub),
    "Mul": ("({} * {})", on_numbers.mul),
    "Div": ("({} / {})", on_numbers.truediv),
    "Mod": ("({} % {})", on_numbers.mod),
    "Max": ("max({}, {})", max),
    "Min": ("min({}, {})", min),
    "Equal": ("({} == {})", on_numbers.eq),
    "Greater": ("({} > {})", on_numbers.gt),
    "Less": ("({} < {})", on_numbers.lt),
    "GreaterOrEqual": ("({} >= {})", on_numbers.ge),
    "LessOrEqual": ("({} <= {})", on_numbers.le),
    "And": ("({} and {})", lambda a, b: bool(a and b)),
    "Or": ("({} or {})", lambda a, b: bool(a or b)),
}


@operator("Where")
def where(step: Step) -> Value:
    """One of two for each element; on sizes where the choice is known."""
    chosen, x, y = step.input(0), step.input(1), step.input(2)
    if x.numbers is not None or y.numbers is not None:
        choices, left, right = numbers_of(chosen), numbers_of(x), numbers_of(y)
        if choices and left and right and all(choice.literal for choice in choices):
            count = max(len(choices), len(left), len(right))
            spread = [items * count if len(items) == 1 else items for items in (choices, left, right)]
            picked = [a if choice.value else b for choice, a, b in zip(*spread, strict=True)]
            return of_numbers(picked, x.tensor.dtype, max(chosen.rank, x.rank, y.rank))
    return step.code.call("where", chosen, x, y)


@operator("IsInf", "detect_negative detect_positive")
def is_inf(step: Step) -> Value:
    """Infinity of the signs asked for."""
    x, code = step.input(), step.code
    negative, positive = step.attribute("detect_negative", 1), step.attribute("detect_positive", 1)
    if negative and positive:
        return code.call("isinf", x)
    return code.call("eq", x, math.inf if positive else -math.inf)


@operator("Cast CastLike", "to")
def cast(step: Step) -> Value:
    """A change of type."""
    x = step.input()
    dtype = step.input(1).tensor.dtype if step.op == "CastLike" else dtype_of(int(step.attribute("to", 0)))
    if dtype is None:
        raise step.refuse(f"makes a type that pared does not have ({step.attribute('to')}). Export without it.")
    if x.tensor.dtype == dtype:
        return x
    if x.numbers is not None:
        make = "float" if dtype.is_floating_point else "int" if dtype in INTEGERS else "bool"
        return of_numbers([_cast_number(step, make, number) for number in x.numbers], dtype, x.rank)
    if dtype == torch.bool:
        return step.code.call("ne", x, 0)
    return step.code.call("to", x, dtype)


def _cast_number(step: Step, make: str, number: Number) -> Number:
    value = {"float": float, "int": int, "bool": bool}[make](number.value)
    return _made(step, f"{make}({number.text})", value, [number])


@operator("Identity Dropout", "ratio")
def identity(step: Step) -> Value | list[Value]:
    """The same; dropout follows the mode that the model is in."""
    x = step.input()
    if step.op == "Identity":
        return x
    share = step.attribute("ratio") if "ratio" in step.attributes else step.known(1, "ratio")
    if step.known(2, "mode"):
        raise step.refuse("is on for good (training_mode), so that no answer is alike. Export the model for inference.")
    dropped = step.code.call("dropout", x, 0.5 if share is None else float(share), TRAINING)
    if step.outputs > 1:
        raise step.refuse("gives its mask, which only training reads. Export the model for inference.")
    return dropped
