"""Pools, and what makes pictures larger or smaller."""

from __future__ import annotations

import math
from typing import Any

import torch

from pared.compression.loading.onnx.code import Value
from pared.compression.loading.onnx.operators.padding import Window, padded, window
from pared.compression.loading.onnx.operators.step import Step, operator


@operator("MaxPool", "auto_pad ceil_mode dilations kernel_shape pads strides")
def max_pool(step: Step) -> Value:
    """The largest of each window."""
    x, spatial = step.input(), step.input().rank - 2
    frame = _frame(step, x)
    if step.outputs > 1:
        raise step.refuse("gives the positions of its maxima, which pared does not follow.")
    if not frame.even or any(2 * pad > width for pad, width in zip(frame.begins, frame.kernel, strict=True)):
        x, frame = padded(step, x, frame, -math.inf), frame.unpadded()
    return step.code.call(
        f"max_pool{spatial}d",
        x,
        frame.kernel,
        frame.strides,
        frame.begins,
        frame.dilations,
        bool(step.attribute("ceil_mode", 0)),
    )


def _frame(step: Step, x: Value) -> Window:
    kernel = step.attribute("kernel_shape")
    if kernel is None or len(kernel) != x.rank - 2 or not 1 <= len(kernel) <= 3:
        raise step.refuse(f"has no window that fits a tensor of {x.rank} dimensions: the file is damaged.")
    return window(step, x, list(kernel))


@operator("AveragePool", "auto_pad ceil_mode count_include_pad dilations kernel_shape pads strides")
def average_pool(step: Step) -> Value:
    """The mean of each window, of its padding too where `count_include_pad` says so."""
    x, code, spatial = step.input(), step.code, step.input().rank - 2
    frame, counted = _frame(step, x), bool(step.attribute("count_include_pad", 0))
    if max(frame.dilations) > 1:
        raise step.refuse("averages windows with gaps (dilations), which torch does not have.")
    ceil = bool(step.attribute("ceil_mode", 0))
    fits = frame.even and all(2 * pad <= width for pad, width in zip(frame.begins, frame.kernel, strict=True))
    if fits:
        return code.call(f"avg_pool{spatial}d", x, frame.kernel, frame.strides, frame.begins, ceil, counted)
    wide, bare = padded(step, x, frame, 0.0), frame.unpadded()
    mean = code.call(f"avg_pool{spatial}d", wide, bare.kernel, bare.strides, bare.begins, ceil, True)
    if counted:
        return mean
    shares = padded(step, code.call("ones_like", x), frame, 0.0)
    share = code.call(f"avg_pool{spatial}d", shares, bare.kernel, bare.strides, bare.begins, ceil, True)
    return code.call("div", mean, share)


@operator("GlobalAveragePool")
def global_average_pool(step: Step) -> Value:
    """The mean of each channel."""
    return step.code.call("mean", step.input(), list(range(2, step.input().rank)), True)


@operator("GlobalMaxPool")
def global_max_pool(step: Step) -> Value:
    """The largest of each channel."""
    return step.code.call("amax", step.input(), list(range(2, step.input().rank)), True)


@operator(
    "Resize Upsample",
    "antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside keep_aspect_ratio_policy mode "
    "nearest_mode scales",
)
def resize(step: Step) -> Value:
    """Resize over the dimensions behind batch and channels, as torch has it."""
    x, code = step.input(), step.code
    mode = _text(step.attribute("mode", "nearest"))
    scales, sizes = _targets(step)
    changed = [dim for dim in range(x.rank) if _changes(x, dim, scales, sizes)]
    if not changed:
        return x
    if x.rank == 4 and changed[0] == 1 and 3 not in changed:  # channels last
        back = code.call("permute", x, [0, 3, 1, 2])
        order = [0, 3, 1, 2]
        scales, sizes = (each and [each[dim] for dim in order] for each in (scales, sizes))
        return code.call("permute", _resized(step, back, mode, scales, sizes), [0, 2, 3, 1])
    if changed[0] < 2:
        raise step.refuse("changes the size of the batch or the channels.")
    return _resized(step, x, mode, scales, sizes)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _targets(step: Step) -> tuple[list[Any] | None, list[Any] | None]:
    """The scale of each dimension, or else its size."""
    rank = step.input().rank
    if step.op == "Upsample" or step.opset < 11:
        return _for_each(step, step.numbers(1, "scales")), None
    axes = step.attribute("axes", list(range(rank)))
    scales = step.numbers(2) if step.given(2) is not None else None
    sizes = step.numbers(3) if step.given(3) is not None else None
    if sizes and _text(step.attribute("keep_aspect_ratio_policy", "stretch")) != "stretch":
        raise step.refuse("keeps an aspect ratio of its own; give it sizes, or scales.")
    full: list[list[Any] | None] = []
    for given, default in ((scales, 1.0), (sizes, None)):
        if not given:
            full.append(None)
            continue
        if len(given) != len(axes):
            raise step.refuse("has other dimensions than its input: the file is damaged.")
        values: list[Any] = [default or step.code.size(step.input(), dim) for dim in range(rank)]
        for axis, value in zip(axes, given, strict=True):
            values[axis % rank] = value
        full.append(values)
    if full[0] is None and full[1] is None:
        raise step.refuse("has neither scales nor sizes: the file is damaged.")
    return full[0], full[1]


def _for_each(step: Step, numbers: list[Any] | None) -> list[Any]:
    if not numbers or len(numbers) != step.input().rank:
        raise step.refuse("has other dimensions than its input: the file is damaged.")
    return numbers


def _changes(x: Value, dim: int, scales: list[Any] | None, sizes: list[Any] | None) -> bool:
    if scales is not None:
        return bool(_value(scales[dim]) != 1)
    return sizes is not None and bool(_value(sizes[dim]) != x.shape[dim])


def _value(number: Any) -> Any:
    return getattr(number, "value", number)


def _resized(step: Step, x: Value, mode: str, scales: list[Any] | None, sizes: list[Any] | None) -> Value:
    spatial = x.rank - 2
    where = _text(step.attribute("coordinate_transformation_mode", "half_pixel" if step.opset >= 11 else "asymmetric"))
    rounding = _text(step.attribute("nearest_mode", "round_prefer_floor" if step.opset >= 11 else "floor"))
    if step.attribute("antialias", 0) or step.attribute("exclude_outside", 0) or where == "tf_crop_and_resize":
        raise step.refuse(f"resizes with settings that pared does not have ({where}, antialias or exclude_outside).")
    if mode == "nearest":
        names = [_nearest(step, where, rounding, scales, x, sizes)]
    else:
        names = {
            "linear": {1: ["upsample_linear"], 2: ["upsample_bilinear"], 3: ["upsample_trilinear"]},
            "cubic": {2: ["upsample_bicubic"]},
        }.get(mode, {}).get(spatial, [])
        if not names or where not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
            raise step.refuse(
                f"resizes {spatial} dimensions in the mode {mode} with {where}, which torch does not have."
            )
        if mode == "cubic" and not math.isclose(float(step.attribute("cubic_coeff_a", -0.75)), -0.75):
            raise step.refuse("resizes with another cubic coefficient than torch's -0.75.")
    scaled = [_value(scale) * size for scale, size in zip((scales or [])[2:], x.shape[2:], strict=False)]
    if where == "align_corners" and any(not float(size).is_integer() for size in scaled):
        raise step.refuse("aligns corners of pictures of a broken size, which torch does not have.")
    single = any(size == 1 for size in [int(each) for each in scaled] or [_value(each) for each in sizes or []][2:])
    if where == "pytorch_half_pixel" and single and mode != "nearest":
        raise step.refuse("makes pictures of one row or column by pytorch_half_pixel, which torch does not have.")
    target = None if sizes is None or scales is not None else sizes[2:]
    factors = None if scales is None else [_as_float(scale) for scale in scales[2:]]
    corners = [] if mode == "nearest" else [where == "align_corners"]
    return step.code.call(f"{names[0]}{spatial}d", x, target, *corners, factors)


def _as_float(scale: Any) -> Any:
    return float(scale.value) if scale.literal else scale


def _nearest(step: Step, where: str, rounding: str, scales: list[Any] | None, x: Value, sizes: list[Any] | None) -> str:
    """Which of torch's two ways of taking the nearest pixel it is: the one that takes the same, also of other sizes."""
    for name, offset in (("upsample_nearest", 0.0), ("_upsample_nearest_exact", 0.5)):
        if all(
            _same_pixels(where, rounding, offset, before, after, scale)
            for dim in range(2, x.rank)
            for before, after, scale in _to_try(x.shape[dim], dim, scales, sizes)
        ):
            return name
    raise step.refuse(f"takes the nearest pixel by {where} and {rounding}, which torch does not have.")


def _to_try(size: int, dim: int, scales: list[Any] | None, sizes: list[Any] | None) -> list[tuple[int, int, float]]:
    """Sizes before and after, and the scale: of the example, and where the scale is fixed of others."""
    if scales is None:
        after = size if sizes is None else int(_value(sizes[dim]))
        return [(size, after, after / size)]
    scale = float(_value(scales[dim]))
    return [(each, int(each * scale), scale) for each in {size, *range(1, 33)} if int(each * scale)]


def _same_pixels(where: str, rounding: str, offset: float, before: int, after: int, scale: float) -> bool:
    """Whether ONNX takes the pixels that torch takes, which are those of the rounded-down (i + offset) / scale."""
    at = torch.arange(after, dtype=torch.float64)
    ours = ((at + offset) / scale).floor().clamp(0, before - 1)
    match where:
        case "half_pixel" | "tf_half_pixel_for_nn":
            exact = (at + 0.5) / scale - (0.5 if where == "half_pixel" else 0)
        case "pytorch_half_pixel":
            exact = (at + 0.5) / scale - 0.5 if after > 1 else at * 0
        case "asymmetric":
            exact = at / scale
        case "align_corners":
            exact = at * ((before - 1) / max(after - 1, 1))
        case _:
            return False
    rounded = {
        "floor": exact.floor(),
        "ceil": exact.ceil(),
        "round_prefer_floor": (exact - 0.5).ceil(),
        "round_prefer_ceil": (exact + 0.5).floor(),
    }
    return rounding in rounded and torch.equal(rounded[rounding].clamp(0, before - 1), ours)
