"""Operators that move, pick and put together elements."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from pared.compression.loading.onnx.code import Number, Positions, Value, constant, numbers_of, of_numbers, transposed
from pared.compression.loading.onnx.operators.step import Step, operator


def _axis(step: Step, rank: int, default: int = 0, *, most: int = 0) -> int:
    axis = int(step.attribute("axis", default))
    if not -rank <= axis < rank + most:
        raise step.refuse(f"names dimension {axis} of a tensor that has {rank}: the file is damaged.")
    return axis if axis >= 0 else axis + rank


@operator("Reshape", "allowzero shape")
def reshape(step: Step) -> Value:
    """Reshape: 0 keeps a size, -1 is computed."""
    x, code = step.input(), step.code
    sizes = step.numbers(1, "shape") or []
    if x.numbers is not None and len(sizes) <= 1:
        return replace(x, tensor=x.tensor.reshape(-1) if sizes else x.tensor.reshape(()))
    keep = not step.attribute("allowzero", 0)
    asked: list[Any] = []
    for position, size in enumerate(sizes):
        if keep and size.literal and size.value == 0:
            if position >= x.rank:
                raise step.refuse("keeps the size of a dimension that its input does not have: the file is damaged.")
            asked.append(code.size(x, position))
        else:
            asked.append(size)
    asked = _freed(step, x, asked)
    return code.call("reshape", x, asked)


def _freed(step: Step, x: Value, asked: list[Any]) -> list[Any]:
    """The sizes with the first, which is that of the batch, left to what the others leave over."""
    if not step.code.free_batch or x.known or not asked or not x.rank:
        return asked
    written = all(number.literal for number in asked)
    first = asked[0].value
    if not written or first not in (x.shape[0], -1):
        return asked
    result = x.tensor.reshape([number.value for number in asked])
    if first == -1 and result.shape[0] != x.shape[0]:
        return asked
    return [-1, *result.shape[1:]] if 0 not in result.shape else asked


@operator("Flatten", "axis")
def flatten(step: Step) -> Value:
    """A matrix: all dimensions before the axis, and all from it on."""
    x, code = step.input(), step.code
    axis = _axis(step, x.rank, 1, most=1)
    if axis == 1:
        return code.call("flatten", x, 1) if x.rank > 1 else code.call("unsqueeze", x, 1)
    if axis == 0:
        return code.call("reshape", x, [1, -1])
    if axis == x.rank:
        return code.call("reshape", x, [-1, 1])
    return code.call("flatten", code.call("flatten", x, axis), 0, axis - 1)


@operator("Squeeze", "axes")
def squeeze(step: Step) -> Value:
    """Without dimensions of size 1: those named, or all."""
    x = step.input()
    axes = step.integers(1, "axes")
    dims = (
        [dim for dim, size in enumerate(x.shape) if size == 1]
        if axes is None
        else [axis % max(x.rank, 1) for axis in axes]
    )
    if x.numbers is not None:
        return replace(x, tensor=x.tensor.reshape(())) if dims else x
    for dim in sorted(dims, reverse=True):
        if x.shape[dim] != 1:
            raise step.refuse(f"takes away dimension {dim}, which has the size {x.shape[dim]}: the file is damaged.")
        x = step.code.call("squeeze", x, dim)
    return x


@operator("Unsqueeze", "axes")
def unsqueeze(step: Step) -> Value:
    """With more dimensions of size 1."""
    x = step.input()
    axes = step.integers(1, "axes") or []
    rank = x.rank + len(axes)
    if x.numbers is not None and not x.rank and len(axes) == 1:
        return replace(x, tensor=x.tensor.reshape(1))
    for axis in sorted(axis % rank for axis in axes):
        x = step.code.call("unsqueeze", x, axis)
    return x


@operator("Transpose", "perm")
def transpose(step: Step) -> Value:
    """Another order of the dimensions; of a matrix of the file it is noted, and not computed."""
    x = step.input()
    order = [int(dim) for dim in step.attribute("perm", list(reversed(range(x.rank))))]
    if sorted(order) != list(range(x.rank)):
        raise step.refuse(f"puts {x.rank} dimensions in the order {order}: the file is damaged.")
    if order == list(range(x.rank)):
        return x
    if x.rank == 2 and x.known and x.source and not x.text:
        return transposed(x)
    return step.code.call("permute", x, order)


@operator("Concat", "axis")
def concat(step: Step) -> Value:
    """Tensors one after the other; sizes into one list."""
    parts = [step.input(index) for index in range(len(step.inputs))]
    if any(part.numbers is not None for part in parts):
        lists = [numbers_of(part) for part in parts]
        if all(items is not None for items in lists):
            return of_numbers([number for items in lists if items for number in items], parts[0].tensor.dtype)
    axis = int(step.attribute("axis", 0))
    if len(parts) == 1:
        return parts[0]
    return step.code.call("cat", parts, axis)


@operator("Split", "axis num_outputs split")
def split(step: Step) -> list[Value]:
    """Parts of one dimension: of given sizes, or as equal as can be."""
    x, code = step.input(), step.code
    axis = _axis(step, x.rank)
    given = step.numbers(1, "split")
    if x.numbers is not None:
        sizes = [int(number.value) for number in given] if given else _equal(step, x.shape[0])
        ends = [sum(sizes[: position + 1]) for position in range(len(sizes))]
        return [of_numbers(x.numbers[end - one : end], x.tensor.dtype) for one, end in zip(sizes, ends, strict=True)]
    parts: list[Any] = list(given) if given else _equal(step, x.shape[axis])
    return code.calls("split_with_sizes", len(parts), x, parts, axis)


def _equal(step: Step, whole: int) -> list[int]:
    count = int(step.attribute("num_outputs", step.outputs))
    if count < 1 or whole < 1:
        raise step.refuse("splits into no parts: the file is damaged.")
    one = math.ceil(whole / count)
    return [one] * (count - 1) + [whole - one * (count - 1)]


@operator("Slice", "axes ends starts")
def slice_of(step: Step) -> Value:
    """A part of some dimensions, in steps."""
    x, code = step.input(), step.code
    starts, ends = step.numbers(1, "starts") or [], step.numbers(2, "ends") or []
    axes = step.integers(3, "axes") or list(range(len(starts)))
    steps = step.integers(4) or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise step.refuse("has starts, ends and axes of different lengths: the file is damaged.")
    if x.numbers is not None:
        part = slice(starts[0].value, ends[0].value, steps[0])
        return of_numbers(x.numbers[part], x.tensor.dtype)
    for start, end, axis, by in zip(starts, ends, axes, steps, strict=True):
        if by > 0:
            x = code.call("slice", x, axis, _limited(start), _limited(end), by)
        elif by < 0:
            x = _backwards(step, x, start, end, axis, by)
        else:
            raise step.refuse("goes in steps of 0: the file is damaged.")
    return x


_FAR = (1 << 63) - 1


def _limited(number: Number) -> Number:
    """An end as torch takes it: ONNX says "to the end" with the largest number of 32 or 64 bits."""
    if number.literal and abs(number.value) >= (1 << 31) - 1:
        return constant(_FAR if number.value > 0 else -_FAR)
    return number


def _backwards(step: Step, x: Value, start: Number, end: Number, axis: int, by: int) -> Value:
    """A slice from the end: of what is turned around."""
    if not start.literal or not end.literal:
        raise step.refuse("goes backwards between computed positions, which pared does not follow.")
    size = x.shape[axis]
    first, last, _ = slice(start.value, end.value, by).indices(size)
    from_start = start.value >= (1 << 31) - 1 or start.value == -1
    to_end = end.value <= -(1 << 31) + 1
    turned = step.code.call("flip", x, [axis])
    if from_start and to_end:
        return turned if by == -1 else step.code.call("slice", turned, axis, 0, _FAR, -by)
    return step.code.call("slice", turned, axis, size - 1 - first, size - 1 - last, -by)


# -- picking --------------------------------------------------------------------------------------


@operator("Gather", "axis")
def gather(step: Step) -> Value:
    """Slices of one dimension by their positions; of a table of the file, an embedding."""
    x, index, code = step.input(0), step.input(1), step.code
    axis = _axis(step, x.rank)
    positions = numbers_of(index)
    if x.numbers is not None and positions is not None and all(position.literal for position in positions):
        try:
            picked = [x.numbers[int(position.value)] for position in positions]
        except IndexError as error:
            raise step.refuse("asks for the size of a dimension that is not there: the file is damaged.") from error
        return of_numbers(picked, x.tensor.dtype, index.rank)
    if index.known and not index.text and not index.rank:
        return code.call("select", x, axis, int(index.tensor))
    if positions is not None and not index.rank:
        return code.call("select", x, axis, positions[0])
    if axis == 0 and x.known and not x.text and x.rank == 2 and x.tensor.is_floating_point() and not index.known:
        return code.call("embedding", code.weight(x, step.path(x, "weight"), kind="Embedding"), _as_index(step, index))
    if index.rank == 1:
        return code.call("index_select", x, axis, _positive(step, index, x, axis))
    flat = code.call("flatten", _positive(step, index, x, axis))
    picked_flat = code.call("index_select", x, axis, flat)
    return code.call("unflatten", picked_flat, axis, [code.size(index, dim) for dim in range(index.rank)])


def _as_index(step: Step, index: Value) -> Value:
    return index if index.tensor.dtype in (torch.int32, torch.int64) else step.code.call("to", index, torch.int64)


def _positive(step: Step, index: Value, x: Value, axis: int) -> Value:
    """Positions from the start, where some are counted from the end."""
    index = _as_index(step, index)
    size = step.code.size(x, axis)
    if index.known and not index.text and not (index.tensor < 0).any():
        return index
    if index.known and not index.text and size.literal:
        return Value(index.tensor % size.value, known=True)
    return step.code.call("remainder", index, size)


@operator("GatherElements", "axis")
def gather_elements(step: Step) -> Value:
    """Elements along one dimension, each by its own position."""
    x, axis = step.input(0), _axis(step, step.input(0).rank)
    index = step.code.call("to", _positive(step, step.input(1), x, axis), torch.int64)
    return step.code.call("gather", x, axis, index)


@operator("GatherND", "batch_dims")
def gather_nd(step: Step) -> Value:
    """Elements or slices by their coordinates, which are the last dimension of the index."""
    x, index, code = step.input(0), step.input(1), step.code
    if step.attribute("batch_dims", 0):
        raise step.refuse("picks for each sample apart (batch_dims), which pared does not follow.")
    parts = [code.call("select", index, -1, place) for place in range(index.shape[-1])]
    return code.call("index", x, Positions(parts))


@operator("ScatterElements", "axis reduction")
def scatter_elements(step: Step) -> Value:
    """Elements put in the place of others, each by its own position."""
    if step.attribute("reduction", b"none") not in (b"none", "none"):
        raise step.refuse("combines what it writes with what is there, which pared does not follow.")
    x, axis = step.input(0), _axis(step, step.input(0).rank)
    return step.code.call("scatter", x, axis, _positive(step, step.input(1), x, axis), step.input(2))


@operator("ScatterND", "reduction")
def scatter_nd(step: Step) -> Value:
    """Elements or slices put in the place of others, by their coordinates."""
    x, index, updates, code = step.input(0), step.input(1), step.input(2), step.code
    if step.attribute("reduction", b"none") not in (b"none", "none"):
        raise step.refuse("combines what it writes with what is there, which pared does not follow.")
    parts = [code.call("select", index, -1, place) for place in range(index.shape[-1])]
    return code.call("index_put", x, Positions(parts), updates)


# -- repeating and folding ------------------------------------------------------------------------


@operator("Expand")
def expand(step: Step) -> Value:
    """Broadcast to a shape, in which 1 leaves a size as it is."""
    x, code = step.input(), step.code
    if x.numbers is not None and not x.rank:
        x = replace(x, tensor=x.tensor.reshape(1))
    sizes = step.numbers(1) or []
    missing = len(sizes) - x.rank
    asked: list[Any] = [-1] * -missing if missing < 0 else []
    for position, size in enumerate(sizes):
        dim = position - missing
        own = x.shape[dim] if dim >= 0 else 1
        if dim >= 0 and size.value in (1, own) and (own != 1 or size.literal):
            asked.append(-1)
        else:
            asked.append(size)
    if missing <= 0 and all(size == -1 for size in asked):
        return x
    made = code.call("expand", x, asked)
    single = x.tensor.reshape(-1)[0].item() if x.known and x.tensor.numel() == 1 else x.fill
    return replace(made, fill=single)


@operator("Tile")
def tile(step: Step) -> Value:
    """The tensor, several times along each dimension."""
    counts = step.numbers(1) or []
    if all(count.literal and count.value == 1 for count in counts):
        return step.input()
    return step.code.call("repeat", step.input(), counts)


@operator("DepthToSpace", "blocksize mode")
def depth_to_space(step: Step) -> Value:
    """Channels into pixels; in either order of the channels."""
    x, code, block = step.input(), step.code, int(step.attribute("blocksize", 1))
    if step.attribute("mode", b"DCR") in (b"CRD", "CRD"):
        return code.call("pixel_shuffle", x, block)
    turned = code.call("unflatten", x, 1, [block * block, x.shape[1] // (block * block)])
    turned = code.call("flatten", code.call("transpose", turned, 1, 2), 1, 2)
    return code.call("pixel_shuffle", turned, block)


@operator("SpaceToDepth", "blocksize mode")
def space_to_depth(step: Step) -> Value:
    """Pixels into channels."""
    x, code, block = step.input(), step.code, int(step.attribute("blocksize", 1))
    made = code.call("pixel_unshuffle", x, block)
    if step.attribute("mode", b"DCR") in (b"CRD", "CRD"):
        return made
    turned = code.call("unflatten", made, 1, [x.shape[1], block * block])
    return code.call("flatten", code.call("transpose", turned, 1, 2), 1, 2)
