"""Operators that take a dimension together, or go along it."""

from __future__ import annotations

from pared.compression.loading.onnx.code import Value, constant, numbers_of, of_numbers
from pared.compression.loading.onnx.operators.elementwise import binary_of
from pared.compression.loading.onnx.operators.step import Step, operator

_REDUCTIONS = {
    "ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "amax", "ReduceMin": "amin", "ReduceLogSumExp": "logsumexp",
}  # fmt: skip


def _axes(step: Step) -> list[int] | None:
    """The dimensions that go; None: nothing goes, for no dimension is named and that means none."""
    rank = step.input().rank
    axes = step.integers(1, "axes")
    if not axes:
        return None if step.attribute("noop_with_empty_axes", 0) else list(range(rank))
    if any(not -rank <= axis < rank for axis in axes):
        raise step.refuse("takes together a dimension that its input does not have: the file is damaged.")
    return sorted(axis % rank for axis in axes)


@operator(" ".join(_REDUCTIONS), "axes keepdims noop_with_empty_axes")
def reduce(step: Step) -> Value:
    """Sum, mean, largest, smallest and log of the sum of exponentials."""
    x, axes, keep = step.input(), _axes(step), bool(step.attribute("keepdims", 1))
    if axes is None:
        return x
    if not x.rank:
        return x
    if step.op == "ReduceSum" and not x.tensor.is_floating_point():  # torch would give 64 bits
        return step.code.call("sum", x, axes, keep, dtype=x.tensor.dtype)
    return step.code.call(_REDUCTIONS[step.op], x, axes, keep)


@operator("ReduceSumSquare ReduceLogSum ReduceL1 ReduceL2", "axes keepdims noop_with_empty_axes")
def reduce_computed(step: Step) -> Value:
    """Sums of squares, of absolute values and their roots and logs."""
    x, axes, keep, code = step.input(), _axes(step), bool(step.attribute("keepdims", 1)), step.code
    if step.op == "ReduceSumSquare":
        x = code.call("mul", x, x)
    elif step.op in ("ReduceL1", "ReduceL2"):
        if axes is None:
            return code.call("abs", x)
        return code.call("linalg_vector_norm", x, 1.0 if step.op == "ReduceL1" else 2.0, axes, keep)
    total = x if axes is None else code.call("sum", x, axes, keep)
    return code.call("log", total) if step.op == "ReduceLogSum" else total


@operator("ReduceProd", "axes keepdims noop_with_empty_axes")
def reduce_prod(step: Step) -> Value:
    """The product, also of sizes."""
    x, axes, keep = step.input(), _axes(step), bool(step.attribute("keepdims", 1))
    numbers = numbers_of(x)
    if x.numbers is not None and numbers is not None:
        result = of_numbers([constant(1)], x.tensor.dtype, 0)
        for number in numbers:
            result = binary_of(step, "Mul", result, of_numbers([number], x.tensor.dtype, 0))
        final = numbers_of(result) or ()
        return of_numbers(final, x.tensor.dtype, 1 if keep and x.rank else 0)
    for axis in reversed(axes or []):
        x = step.code.call("prod", x, axis, keep, dtype=x.tensor.dtype)
    return x


@operator("Softmax LogSoftmax Hardmax", "axis")
def softmax(step: Step) -> Value:
    """Softmax of one dimension; before version 13 of all from `axis` on, as one."""
    x, code = step.input(), step.code
    axis = int(step.attribute("axis", -1 if step.opset >= 13 else 1))
    if step.op == "Hardmax":
        raise step.refuse("is not one that pared opens: no gradient goes through it.")
    name = "softmax" if step.op == "Softmax" else "log_softmax"
    if step.opset >= 13 or axis % max(x.rank, 1) == x.rank - 1:
        return code.call(name, x, axis)
    axis %= x.rank
    if all(size == 1 for size in x.shape[axis + 1 :]):
        return code.call(name, x, axis)
    return code.call("reshape_as", code.call(name, code.call("flatten", x, axis), -1), x)


@operator("ArgMax ArgMin", "axis keepdims select_last_index")
def arg_extreme(step: Step) -> Value:
    """The position of the largest or smallest."""
    if step.attribute("select_last_index", 0):
        raise step.refuse("asks for the last of equals, where torch gives the first.")
    name = "argmax" if step.op == "ArgMax" else "argmin"
    return step.code.call(name, step.input(), int(step.attribute("axis", 0)), bool(step.attribute("keepdims", 1)))


@operator("TopK", "axis k largest sorted")
def top_k(step: Step) -> list[Value]:
    """The largest or smallest, and where they are; of equals the first."""
    counts = step.numbers(1, "k")
    if not counts:
        raise step.refuse("does not say how many it takes: the file is damaged.")
    axis, largest = int(step.attribute("axis", -1)), bool(step.attribute("largest", 1))
    ordered = step.code.calls("sort", 2, step.input(), stable=True, dim=axis, descending=largest)
    return [step.code.call("slice", part, axis, 0, counts[0], 1) for part in ordered]


@operator("CumSum", "exclusive reverse")
def cumulative_sum(step: Step) -> Value:
    """Sums up to each position."""
    x, code = step.input(), step.code
    axis = int(step.known(1, "axis") or 0)
    backwards, without = step.attribute("reverse", 0), step.attribute("exclusive", 0)
    x = code.call("flip", x, [axis]) if backwards else x
    total = code.call("cumsum", x, axis, dtype=x.tensor.dtype)
    total = code.call("sub", total, x) if without else total
    return code.call("flip", total, [axis]) if backwards else total
