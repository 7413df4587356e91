"""Turns stored arrays into checked tensors in three splits: numbers, labels, preprocessing, held-out samples."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pared.compression.data.reading import read_dataset
from pared.compression.data.samples import Data, Scaling, Split
from pared.compression.data.stored import Array, Stored
from pared.compression.work import DatasetFile
from pared.errors import InvalidData
from pared.reports import DatasetInspection
from pared.specs import Preprocess, Task

HELD_OUT = 0.15
"""Share of the samples that validation and test each get where the data set brings no split of its own."""
MIN_SAMPLES = 10
MAX_CLASSES = 1 << 16
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def load_dataset(file: DatasetFile, *, task: Task, preprocess: Preprocess | None, seed: int) -> Data:
    """Read, check and split a data set.

    Integers stay int64 token ids; bytes (uint8) are pixels, which become float32 when they are taken; all other
    numbers become float32. Splits that the file brings are kept; what it lacks is drawn from its training samples by
    `seed` alone, for classes in equal proportions.

    Raises:
        UnsupportedDataset: not a format we read.
        InvalidData: NaN, labels that are no classes, too few samples, …: the text says where and what to do.
    """
    stored = read_dataset(file)
    notes = list(stored.notes)
    _check_lengths(stored)
    inputs = {
        split: [_input(array, f"{_input_name(i, arrays)}, {split}") for i, array in enumerate(arrays)]
        for split, arrays in stored.inputs.items()
    }
    _check_same_shapes(inputs)
    class_names = stored.class_names
    if task == "classification":
        targets, class_names = _classes(stored.targets, class_names, notes)
        classes = 1 + max(int(labels.max()) for labels in targets.values())
    else:
        if class_names is not None:
            raise InvalidData("Images in class folders have no numbers to regress on: use task=classification.")
        targets = {split: _numbers(array, split) for split, array in stored.targets.items()}
        classes = None
    scaling = [] if preprocess is None else _preprocess(inputs, preprocess)
    has_test = "test" in targets
    _draw_missing(inputs, targets, task, seed)
    return Data(
        inputs=inputs,
        targets=targets,
        task=task,
        classes=classes,
        splits="given" if has_test else "by_seed",
        format=stored.format,
        class_names=class_names,
        warnings=notes,
        scaling=scaling,
    )


def inspect_dataset(file: DatasetFile) -> DatasetInspection:
    """Describe a data set, after the same checks as for a job; the task is guessed from the targets.

    Raises:
        UnsupportedDataset, InvalidData: as `load_dataset`.
    """
    data = load_dataset(file, task=_likely_task(file), preprocess=None, seed=0)
    target = data.targets["train"]
    described: dict[str, Any] = {"dtype": _dtype(target), "shape": list(target.shape[1:])}
    if data.classes is not None:
        described["classes"] = data.classes
    if data.class_names is not None:
        described["class_names"] = data.class_names[:1000]
    return DatasetInspection(
        format=data.format,
        inputs=[{"shape": list(tensor.shape[1:]), "dtype": _dtype(tensor)} for tensor in data.inputs["train"]],
        samples={split: data.samples(split) for split in SPLITS},
        splits=data.splits,
        target=described,
        warnings=data.warnings,
    )


def _likely_task(file: DatasetFile) -> Task:
    targets = read_dataset(file).targets["train"]
    if targets.dtype.kind not in "fc":
        return "classification"
    one_number = targets.ndim == 1 or targets.shape[1:] == (1,)
    whole = one_number and np.isfinite(targets).all() and (targets == np.floor(targets)).all() and (targets >= 0).all()
    return "classification" if whole and targets.max(initial=0) < min(1000, len(targets)) else "regression"


# -- inputs -------------------------------------------------------------------------------------


def _check_lengths(stored: Stored) -> None:
    for split, arrays in stored.inputs.items():
        targets = stored.targets[split]
        for index, array in enumerate(arrays):
            if array.ndim == 0 or targets.ndim == 0:
                raise InvalidData("Inputs and targets must be arrays with one entry a sample, not single numbers.")
            if len(array) != len(targets):
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
    return torch.from_numpy(_finite(array, name))


def _finite(array: Array, name: str) -> Array:
    """The array in float32, if every number is finite there."""
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(numbers).all():
        bad = np.argwhere(~np.isfinite(numbers))
        where = ", ".join(str(index) for index in bad[0])
        value = array[tuple(bad[0])]
        raise InvalidData(
            f"{name} has {len(bad):,} entries that are NaN, infinite or too large for float32; the first is {value} at "
            f"[{where}]. Replace them, or leave those samples out."
        )
    return numbers


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


# -- targets ------------------------------------------------------------------------------------


def _classes(
    stored: dict[Split, Array], class_names: list[str] | None, notes: list[str]
) -> tuple[dict[Split, Tensor], list[str] | None]:
    """Class indices (samples,) of every split, and the classes' names where targets were words."""
    arrays = {split: _one_label_each(array, split, notes) for split, array in stored.items()}
    if any(array.dtype.kind in "US" for array in arrays.values()):
        words, numbered = np.unique(np.concatenate([a.astype(str) for a in arrays.values()]), return_inverse=True)
        ends = np.cumsum([len(array) for array in arrays.values()])[:-1]
        arrays = dict(zip(arrays, np.split(numbered, ends), strict=True))
        class_names = words.tolist()
    targets = {split: torch.from_numpy(_whole(array, split)) for split, array in arrays.items()}
    present = torch.cat(list(targets.values())).unique()  # type: ignore[no-untyped-call]
    if len(present) < 2:
        raise InvalidData(
            f"All samples have the label {int(present[0])}: there is nothing to tell apart. Give at least two classes, "
            "or task=regression."
        )
    if int(present[-1]) >= MAX_CLASSES:
        raise InvalidData(
            f"The labels go up to {int(present[-1]):,}, too many classes. Number them from 0, or use task=regression."
        )
    unused = int(present[-1]) + 1 - len(present)
    if unused:
        notes.append(f"{unused} of the classes 0 to {int(present[-1])} never occur.")
    return targets, class_names


def _one_label_each(array: Array, split: Split, notes: list[str]) -> Array:
    if array.ndim == 1:
        return array
    flat = array.reshape(len(array), -1)
    if flat.shape[1] == 1:
        return flat[:, 0]
    if (
        array.ndim == 2
        and array.dtype.kind in "biuf"
        and ((flat == 0) | (flat == 1)).all()
        and (flat.sum(1) == 1).all()
    ):
        if split == "train":
            notes.append("The targets were one-hot; the index of the 1 is the class.")
        labels: Array = flat.argmax(1)
        return labels
    raise InvalidData(
        f"y has the shape {array.shape} ({split} split), but classification needs one class a sample: (samples,). For "
        "several numbers a sample, use task=regression."
    )


def _whole(labels: Array, split: Split) -> Array:
    if labels.dtype.kind == "f":
        odd = np.flatnonzero(~np.isfinite(labels) | (labels != np.floor(labels)))
        if len(odd):
            raise InvalidData(
                f"{len(odd):,} labels are no whole numbers (the first, at index {odd[0]} of the {split} split, is "
                f"{labels[odd[0]]}). Number the classes 0, 1, 2, …, or use task=regression."
            )
    elif labels.dtype.kind not in "biu":
        raise InvalidData(f"y holds {labels.dtype}, which cannot be a class. Number the classes 0, 1, 2, …")
    negative = np.flatnonzero(labels < 0)
    if len(negative):
        raise InvalidData(
            f"{len(negative):,} labels are negative (the first, at index {negative[0]} of the {split} split, is "
            f"{labels[negative[0]]}). Number the classes from 0."
        )
    if labels.max() > 1 << 40:
        raise InvalidData(f"The labels go up to {labels.max()}. Number the classes from 0, or use task=regression.")
    return labels.astype(np.int64)


def _numbers(array: Array, split: Split) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise InvalidData(f"y holds {array.dtype}, but regression needs numbers. Use task=classification for classes.")
    return torch.from_numpy(_finite(array[:, None] if array.ndim == 1 else array, f"y, {split}"))


# -- splits -------------------------------------------------------------------------------------


def _draw_missing(inputs: dict[Split, list[Tensor]], targets: dict[Split, Tensor], task: Task, seed: int) -> None:
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
        order = _order(targets["train"], task, seed)
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


def _order(targets: Tensor, task: Task, seed: int) -> Tensor:
    """A shuffle of the samples any run of which holds the classes in equal proportions."""
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    if task == "regression":
        return shuffled
    labels = targets[shuffled]
    by_class = labels.argsort(stable=True)
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    rank = torch.empty(len(labels), dtype=torch.float64)
    # Sample number r of the n of its class goes to the place (r + ½) / n.
    ranks = torch.arange(len(labels)) - starts[labels[by_class]]
    rank[by_class] = (ranks.double() + 0.5) / counts[labels[by_class]]
    return shuffled[rank.argsort(stable=True)]


def _dtype(tensor: Tensor) -> Literal["float32", "int64"]:
    return "int64" if tensor.dtype == torch.int64 else "float32"  # bytes become float32
