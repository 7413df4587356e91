"""Turns stored arrays into checked tensors in three splits: numbers, labels, preprocessing, held-out samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pared.compression.data.reading import read_dataset
from pared.compression.data.samples import Data, Scaling, Split
from pared.compression.data.stored import Array, Stored
from pared.compression.tasks import Match, Options, StoredLabels, make_task
from pared.compression.tasks.labels import finite
from pared.compression.work import DatasetFile
from pared.errors import InvalidData
from pared.reports import DatasetInspection
from pared.specs import Preprocess, Task

HELD_OUT = 0.15
"""Share of the samples that validation and test each get where the data set brings no split of its own."""
MIN_SAMPLES = 10
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def load_dataset(
    file: DatasetFile,
    *,
    task: Task | None,
    preprocess: Preprocess | None,
    seed: int,
    output: str | None = None,
    ignored: int | None = None,
    answer: Callable[[Data], Any] | None = None,
) -> Data:
    """Read, check and split a data set.

    Integers stay int64 token ids; bytes (uint8) are pixels, which become float32 when they are taken; all other
    numbers become float32. Splits that the file brings are kept; what it lacks is drawn from its training samples by
    `seed` alone, for classes in equal proportions.

    Args:
        task: what labels are; None: what they look like, beside what the model answers.
        output: which of several outputs of the model they belong to.
        ignored: a label that says nothing.
        answer: what the model returns for some of these samples, which have no labels yet.

    Raises:
        UnsupportedDataset: not a format we read.
        InvalidData: NaN, labels that are no classes, too few samples, …: the text says where and what to do.
        ShapeMismatch: labels fit none of the model's outputs.
    """
    stored = read_dataset(file)
    notes = list(stored.notes)
    _check_lengths(stored)
    inputs = {
        split: [_input(array, f"{_input_name(i, arrays)}, {split}") for i, array in enumerate(arrays)]
        for split, arrays in stored.inputs.items()
    }
    _check_same_shapes(inputs)
    scaling = [] if preprocess is None else _preprocess(inputs, preprocess)
    labels = StoredLabels(stored.targets, stored.class_names, {split: each[0] for split, each in inputs.items()})
    unlabelled = Data(
        inputs=inputs,
        targets=labels.without(),
        task=Match(),
        classes=None,
        splits="given" if "test" in inputs else "by_seed",
        format=stored.format,
        scaling=scaling,
    )
    answered = None if answer is None else answer(unlabelled)
    rules = make_task(Options(task, output, ignored), labels, answered)
    found = rules.labels(labels)
    targets = found.targets
    _draw_missing(inputs, targets, seed, by_class=found.by_class)
    return replace(
        unlabelled,
        targets=targets,
        task=rules,
        classes=found.classes,
        class_names=found.class_names,
        warnings=[*notes, *found.notes],
    )


def inspect_dataset(file: DatasetFile) -> DatasetInspection:
    """Describe a data set, after the same checks as for a job; the task is guessed from the targets.

    Raises:
        UnsupportedDataset, InvalidData: as `load_dataset`.
    """
    data = load_dataset(file, task=None, preprocess=None, seed=0)
    target = data.targets["train"]
    described: dict[str, Any] = {"dtype": _dtype(target), "shape": list(target.shape[1:])}
    if data.classes is not None:
        described["classes"] = data.classes
    if data.class_names is not None:
        described["class_names"] = data.class_names[:1000]
    return DatasetInspection(
        format=data.format,
        task=data.task.name,
        inputs=[{"shape": list(tensor.shape[1:]), "dtype": _dtype(tensor)} for tensor in data.inputs["train"]],
        samples={split: data.samples(split) for split in SPLITS},
        splits=data.splits,
        target=described,
        warnings=data.warnings,
    )


# -- inputs -------------------------------------------------------------------------------------


def _check_lengths(stored: Stored) -> None:
    for split, arrays in stored.inputs.items():
        targets = stored.targets.get(split)
        for index, array in enumerate(arrays):
            if array.ndim == 0 or (targets is not None and targets.ndim == 0):
                raise InvalidData("Inputs and targets must be arrays with one entry a sample, not single numbers.")
            if targets is not None and len(array) != len(targets):
                name = _input_name(index, arrays)
                raise InvalidData(
                    f"{name} has {len(array)} samples but y has {len(targets)} ({split} split). The first dimension of "
                    "both is the sample."
                )
            if array.size == 0:
                raise InvalidData(f"{_input_name(index, arrays)} is empty: its shape is {array.shape} ({split} split).")


def _input(array: Array, name: str) -> Tensor:
    """float32, int64 for token ids, or uint8 for bytes; a single column becomes (samples, 1)."""
    array = array[:, None] if array.ndim == 1 else array
    kind = array.dtype.kind
    if array.dtype.name in {"uint8", "bool"}:
        return torch.from_numpy(array.astype(np.uint8, copy=not array.flags.writeable))
    if kind in "US":
        raise InvalidData(f"{name} holds text. Turn it into token ids (int64), padded to one length.")
    if (kind in "iu" and array.dtype.itemsize > 1) or array.dtype == np.int8:
        if kind == "u" and array.max() > np.iinfo(np.int64).max:
            raise InvalidData(f"{name} holds integers beyond int64.")
        return torch.from_numpy(array.astype(np.int64))
    if kind not in "fub":
        raise InvalidData(f"{name} holds {array.dtype}, which is no plain number. Save it as float32.")
    return torch.from_numpy(finite(array, name))


def _check_same_shapes(inputs: dict[Split, list[Tensor]]) -> None:
    for split, tensors in inputs.items():
        for index, (one, first) in enumerate(zip(tensors, inputs["train"], strict=True)):
            if one.shape[1:] != first.shape[1:] or one.dtype != first.dtype:
                raise InvalidData(
                    f"{_input_name(index, tensors)} differs between splits: {_dtype(first)} {tuple(first.shape)} in "
                    f"train, {_dtype(one)} {tuple(one.shape)} in {split}."
                )


def _preprocess(inputs: dict[Split, list[Tensor]], preprocess: Preprocess) -> list[Scaling]:
    """How each input but token ids is scaled, mean and std along dim 1. Numbers are scaled now, bytes when taken."""
    if not any(_is_scaled(tensor) for tensor in inputs["train"]):
        raise InvalidData("`preprocess` scales numbers, but this data set holds token ids only: leave it out.")
    scaling = [_scaling(tensor, preprocess) if _is_scaled(tensor) else Scaling() for tensor in inputs["train"]]
    for tensors in inputs.values():
        for tensor, scale in zip(tensors, scaling, strict=True):
            if tensor.is_floating_point():
                scale(tensor)
    return scaling


def _is_scaled(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.dtype == torch.uint8


def _scaling(tensor: Tensor, preprocess: Preprocess) -> Scaling:
    along: dict[str, Tensor] = {}
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if values is None:
            continue
        if len(values) not in {1, tensor.shape[1]}:
            raise InvalidData(
                f"preprocess.{name} has {len(values)} entries, but the inputs {tuple(tensor.shape)} have "
                f"{tensor.shape[1]} channels (dimension 1)."
            )
        along[name] = torch.tensor(values).reshape(1, -1, *[1] * (tensor.dim() - 2))
    return Scaling(preprocess.scale, along.get("mean"), along.get("std"))


def _input_name(index: int, arrays: list[Any]) -> str:
    return "x" if len(arrays) == 1 else f"x{index}"


# -- splits -------------------------------------------------------------------------------------


def _draw_missing(
    inputs: dict[Split, list[Tensor]], targets: dict[Split, Tensor], seed: int, *, by_class: bool
) -> None:
    """Draw the splits that were not given from the training samples, by seed alone."""
    total = len(targets["train"])
    missing: list[Split] = [split for split in ("val", "test") if split not in targets]
    if missing:
        if total < MIN_SAMPLES:
            raise InvalidData(
                f"The data set has {total} training sample{'s' * (total != 1)}; at least {MIN_SAMPLES} are needed to "
                "hold some out for validation and test."
            )
        size = max(2, round(HELD_OUT * total))
        order = _order(targets["train"], seed, by_class=by_class)
        ends = [total - size * len(missing) + size * i for i in range(len(missing))]
        parts = torch.tensor_split(order, ends)
        kept: dict[Split, Tensor] = dict(zip(("train", *missing), parts, strict=True))
        source, labels = inputs["train"], targets["train"]
        for split, part in kept.items():
            indices = part.sort().values
            inputs[split] = [tensor[indices] for tensor in source]
            targets[split] = labels[indices]
    for split in SPLITS:
        if len(targets[split]) < 2:
            raise InvalidData(f"The {split} split has {len(targets[split])} sample: at least 2 are needed.")


def _order(targets: Tensor, seed: int, *, by_class: bool) -> Tensor:
    """A shuffle of the samples; by class, any run of it holds the classes in equal proportions."""
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    if not by_class:
        return shuffled
    labels = targets[shuffled]
    in_order = labels.argsort(stable=True)
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    rank = torch.empty(len(labels), dtype=torch.float64)
    # Sample number r of the n of its class goes to the place (r + ½) / n.
    ranks = torch.arange(len(labels)) - starts[labels[in_order]]
    rank[in_order] = (ranks.double() + 0.5) / counts[labels[in_order]]
    return shuffled[rank.argsort(stable=True)]


def _dtype(tensor: Tensor) -> Literal["float32", "int64"]:
    return "int64" if tensor.dtype == torch.int64 else "float32"  # bytes become float32
