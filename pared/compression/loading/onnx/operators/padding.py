"""Padding: the windows of convolutions and pools, and Pad itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pared.compression.loading.onnx.code import Value
from pared.compression.loading.onnx.operators.step import Step, operator


@dataclass(frozen=True)
class Window:
    """How a window moves over the dimensions of a picture, and what is added on either side."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begins: list[int]
    ends: list[int]

    @property
    def even(self) -> bool:
        """Whether both sides get as much."""
        return self.begins == self.ends

    def unpadded(self) -> Window:
        """The same over what has been padded."""
        nothing = [0] * len(self.kernel)
        return replace(self, begins=nothing, ends=nothing)


def window(step: Step, x: Value, kernel: Sequence[int]) -> Window:
    """The window that the attributes of a convolution or pool describe."""
    count = len(kernel)
    strides = list(step.attribute("strides", [1] * count))
    dilations = list(step.attribute("dilations", [1] * count))
    automatic = step.attribute("auto_pad", b"NOTSET")
    automatic = automatic.decode() if isinstance(automatic, bytes) else automatic
    pads = list(step.attribute("pads", [0] * 2 * count))
    if automatic.startswith("SAME"):
        pads = _same(step, x, kernel, strides, dilations, lower=automatic == "SAME_LOWER")
    elif automatic == "VALID":
        pads = [0] * 2 * count
    if len(pads) != 2 * count or len(strides) != count or len(dilations) != count or min(strides + dilations) < 1:
        raise step.refuse("has strides, dilations or pads of another length than its window: the file is damaged.")
    return Window(list(kernel), strides, dilations, pads[:count], pads[count:])


def _same(
    step: Step, x: Value, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], *, lower: bool
) -> list[int]:
    """The pads that make the output as large as the input over the stride."""
    begins, ends = [], []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + dilation * (width - 1) + 1 - size, 0)
        less, more = total // 2, total - total // 2
        begins.append(more if lower else less)
        ends.append(less if lower else more)
    return [*begins, *ends]


def padded(step: Step, x: Value, frame: Window, value: float) -> Value:
    """The picture with the window's pads around it."""
    return step.code.call("constant_pad_nd", x, torch_pads(frame.begins, frame.ends), value)


def torch_pads(begins: Sequence[int], ends: Sequence[int]) -> list[Any]:
    """Pads as torch lists them: from the last dimension on, both sides of each."""
    return [size for pair in reversed(list(zip(begins, ends, strict=True))) for size in pair]


def cropped(step: Step, x: Value, begins: Sequence[int], ends: Sequence[int]) -> Value:
    """The picture without what pads take off."""
    for dim, (begin, end) in enumerate(zip(begins, ends, strict=True), start=2):
        if begin or end:
            x = step.code.call("slice", x, dim, begin, -end if end else None, 1)
    return x


@operator("Pad", "mode pads value")
def pad(step: Step) -> Value:
    """Pad: with a number, or with what is at the edge."""
    x, code = step.input(), step.code
    mode = step.attribute("mode", b"constant")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    sizes = step.numbers(1, "pads") or []
    if mode != "constant" or all(size.literal for size in sizes):
        sizes_given: list[Any] = step.integers(1, "pads") or []
    else:
        sizes_given = list(sizes)
    axes = step.integers(3) or list(range(x.rank))
    if len(sizes_given) != 2 * len(axes) or any(not -x.rank <= axis < x.rank for axis in axes):
        raise step.refuse("has pads for other dimensions than its input has: the file is damaged.")
    begins: list[Any] = [0] * x.rank
    ends: list[Any] = [0] * x.rank
    for position, axis in enumerate(axes):
        begins[axis], ends[axis] = sizes_given[position], sizes_given[position + len(axes)]
    if mode == "constant":
        value = step.attribute("value", 0.0) if step.opset < 11 else step.known(2, "value")
        first = next((dim for dim in range(x.rank) if begins[dim] != 0 or ends[dim] != 0), x.rank)
        if first == x.rank:
            return x
        return code.call("constant_pad_nd", x, torch_pads(begins[first:], ends[first:]), value or 0)
    return _pad_from_edge(step, x, mode, begins, ends)


def _pad_from_edge(step: Step, x: Value, mode: str, begins: list[int], ends: list[int]) -> Value:
    """Pads of the last dimensions as torch has them; it wants batch and channels in front."""
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in names:
        raise step.refuse(f"has the mode {mode[:40]}, which torch does not have.")
    first = next((dim for dim in range(x.rank) if begins[dim] or ends[dim]), x.rank)
    if first == x.rank:
        return x
    count = x.rank - first
    if count > 3 or min(begins + ends) < 0:
        raise step.refuse(f"pads {count} dimensions in the mode {mode}; torch has it for up to three.")
    code, missing = step.code, max(count + 1 - x.rank, 0)
    for _ in range(missing):
        x = code.call("unsqueeze", x, 0)
    y = code.call("pad", x, torch_pads(begins[first:], ends[first:]), names[mode])
    for _ in range(missing):
        y = code.call("squeeze", y, 0)
    return y
