"""Checks the stored inputs of a data set, a chunk at a time, and makes columns of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pared.compression.data.columns import Array, Column, Rows, StoredColumn, in_memory, raw_chunks
from pared.compression.data.samples import Scaling, Split
from pared.compression.data.stored import Stored
from pared.errors import InvalidData
from pared.specs import Preprocess


def checked_inputs(stored: Stored) -> dict[Split, list[StoredColumn]]:
    """A column for each input of each split.

    Raises:
        InvalidData: lengths, shapes or types that do not agree, text, NaN or infinity.
    """
    _check_lengths(stored)
    inputs = {
        split: [_column(rows, f"{input_name(stored, i)}, {split}") for i, rows in enumerate(several)]
        for split, several in stored.inputs.items()
    }
    for split, columns in inputs.items():
        for index, (one, first) in enumerate(zip(columns, inputs["train"], strict=True)):
            if one.shape[1:] != first.shape[1:] or one.dtype != first.dtype:
                raise InvalidData(
                    f"{input_name(stored, index)} differs between splits: {dtype_name(first)} {tuple(first.shape)} in "
                    f"train, {dtype_name(one)} {tuple(one.shape)} in {split}."
                )
    return inputs


def input_name(stored: Stored, index: int) -> str:
    """What an input is called in messages."""
    if stored.names is not None:
        return stored.names[index][:60]
    return "x" if len(stored.inputs["train"]) == 1 else f"x{index}"


def dtype_name(column: Column) -> Literal["float32", "int64"]:
    """The type in which samples come to the model."""
    return "int64" if column.dtype == torch.int64 else "float32"  # bytes become float32


def _check_lengths(stored: Stored) -> None:
    for split, several in stored.inputs.items():
        named = {input_name(stored, index): rows for index, rows in enumerate(several)}
        if split in stored.targets:
            named["y"] = stored.targets[split]
        if not all(rows.shape for rows in named.values()):
            raise InvalidData("Inputs and targets must be arrays with one entry a sample, not single numbers.")
        last, count = [(name, rows.shape[0]) for name, rows in named.items()][-1]
        for name, rows in named.items():
            if rows.shape[0] != count:
                raise InvalidData(
                    f"{name} has {rows.shape[0]} samples but {last} has {count} ({split} split). The first dimension "
                    "of both is the sample."
                )
        for name, rows in named.items():
            if 0 in rows.shape:
                raise InvalidData(f"{name} is empty: its shape is {rows.shape} ({split} split).")


def _column(stored: Rows, name: str) -> StoredColumn:
    """float32, int64 for token ids, or uint8 for bytes; a single column becomes (samples, 1)."""
    kind = stored.dtype.kind
    if stored.dtype.name in {"uint8", "bool"}:
        return StoredColumn(stored, torch.uint8)
    if kind in "US":
        raise InvalidData(f"{name} holds text. Turn it into token ids (int64), padded to one length.")
    if (kind in "iu" and stored.dtype.itemsize > 1) or stored.dtype == np.int8:
        if stored.dtype.str[1:] == "u8" and max(chunk.max() for _, chunk in raw_chunks(stored)) >= 1 << 63:
            raise InvalidData(f"{name} holds integers beyond int64.")
        return StoredColumn(stored, torch.int64)
    if kind != "f":
        raise InvalidData(f"{name} holds {stored.dtype}, which is no plain number. Save it as float32.")
    check_finite(stored, name)
    return StoredColumn(stored, torch.float32)


def check_finite(stored: Rows, name: str) -> None:
    """Raises InvalidData unless every number is finite in float32."""
    bad, first, value = 0, "", None
    for begin, chunk in raw_chunks(stored):
        with np.errstate(over="ignore"):
            finite = np.isfinite(chunk.astype(np.float32, copy=False))
        if finite.all():
            continue
        if not bad:
            where = np.argwhere(~finite)[0]
            value = chunk[tuple(where)]
            first = ", ".join(str(index) for index in (where[0] + begin, *where[1:]))
        bad += int(finite.size - np.count_nonzero(finite))
    if bad:
        raise InvalidData(
            f"{name} has {bad:,} entries that are NaN, infinite or too large for float32; the first is {value} at "
            f"[{first}]. Replace them, or leave those samples out."
        )


# -- preprocessing ------------------------------------------------------------------------------


def scalings(columns: Sequence[Column], preprocess: Preprocess) -> list[Scaling]:
    """How each input is scaled, mean and std along dim 1; token ids are not.

    Raises:
        InvalidData: there is nothing to scale, or mean and std do not fit.
    """
    if preprocess == Preprocess(max_length=preprocess.max_length):
        return []
    if all(column.dtype == torch.int64 for column in columns):
        raise InvalidData("`preprocess` scales numbers, but this data set holds token ids only: leave it out.")
    return [Scaling() if column.dtype == torch.int64 else _scaling(column, preprocess) for column in columns]


def _scaling(column: Column, preprocess: Preprocess) -> Scaling:
    along: dict[str, Tensor] = {}
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if values is None:
            continue
        if len(values) not in {1, column.shape[1]}:
            raise InvalidData(
                f"preprocess.{name} has {len(values)} entries, but the inputs {tuple(column.shape)} have "
                f"{column.shape[1]} channels (dimension 1)."
            )
        along[name] = torch.tensor(values).reshape(1, -1, *[1] * (len(column.shape) - 2))
    return Scaling(preprocess.scale, along.get("mean"), along.get("std"))


def held(
    inputs: Mapping[Split, Sequence[StoredColumn]],
    targets: Mapping[Split, Column],
    scaling: Sequence[Scaling],
    room: int,
) -> tuple[dict[Split, list[Column]], dict[Split, Column]]:
    """Inputs and targets in memory, where all together take at most `room` bytes; numbers are then scaled, for good."""
    total = sum(column.nbytes for split in inputs for column in [*inputs[split], targets[split]])
    if total > room:
        return {split: list(columns) for split, columns in inputs.items()}, dict(targets)
    tensors: dict[Split, list[Column]] = {}
    for split, columns in inputs.items():
        tensors[split] = [in_memory(column) for column in columns]
        for index, tensor in enumerate(tensors[split]):
            if scaling and isinstance(tensor, Tensor) and tensor.is_floating_point():
                scaling[index](tensor)
    return tensors, {split: in_memory(column) for split, column in targets.items()}


def finite_float32(array: Array, name: str) -> Array:
    """The array in float32, if every number is finite there."""
    check_finite(array, name)
    return array.astype(np.float32)


def described_inputs(columns: Sequence[Column], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Shape of one sample and type of each input, with its name where it has one."""
    return [
        {"shape": list(column.shape[1:]), "dtype": dtype_name(column)}
        | ({} if names is None else {"name": names[index]})
        for index, column in enumerate(columns)
    ]
