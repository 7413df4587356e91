"""Checks stored labels, and turns them into tensors: classes, one a sample or one a position, and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pared.compression.tasks.base import Array, OtherTask
from pared.errors import InvalidData

MAX_CLASSES = 1 << 16
IGNORED = -100
"""What a position without a label has in targets, as in torch's own losses."""
_VOID = (255, -100, -1)  # how data sets mark positions without a label


# -- one class a sample -------------------------------------------------------------------------


def classes(
    stored: Mapping[Any, Array], class_names: list[str] | None, notes: list[str]
) -> tuple[dict[Any, Tensor], list[str] | None]:
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
        raise OtherTask(
            f"All samples have the label {int(present[0])}: there is nothing to tell apart. Give at least two classes, "
            "or task=regression."
        )
    if int(present[-1]) >= MAX_CLASSES:
        raise OtherTask(
            f"The labels go up to {int(present[-1]):,}, too many classes. Number them from 0, or use task=regression."
        )
    unused = int(present[-1]) + 1 - len(present)
    if unused:
        notes.append(f"{unused} of the classes 0 to {int(present[-1])} never occur.")
    return targets, class_names


def _one_label_each(array: Array, split: str, notes: list[str]) -> Array:
    if array.ndim == 1:
        return array
    flat = array.reshape(len(array), -1)
    if flat.shape[1] == 1:
        return flat[:, 0]
    if array.ndim == 2 and is_one_hot(array):
        if split == "train":
            notes.append("The targets were one-hot; the index of the 1 is the class.")
        labels: Array = flat.argmax(1)
        return labels
    raise InvalidData(
        f"y has the shape {array.shape} ({split} split), but classification needs one class a sample: (samples,). "
        f"{_task_of_many(array)}"
    )


def _task_of_many(array: Array) -> str:
    """What several labels a sample may be, as a sentence."""
    several = "For several numbers a sample, use task=regression"
    if array.ndim == 2 and is_zero_one(array):
        return f"For labels of which several may hold, use task=multilabel. {several}."
    if array.dtype.kind in "biu" and array.ndim == 2:
        return f"For a label for each token, use task=token_classification or task=language_modeling. {several}."
    if array.dtype.kind in "biu":
        return f"For a class for each pixel, use task=segmentation. {several}."
    return f"{several}."


def is_zero_one(array: Array) -> bool:
    """Whether all numbers are 0 or 1."""
    return array.dtype.kind in "biuf" and bool(((array == 0) | (array == 1)).all())


def is_one_hot(array: Array) -> bool:
    """Whether each row (samples, classes) holds a single 1, and else 0."""
    return is_zero_one(array) and bool((array.reshape(len(array), -1).sum(1) == 1).all())


def is_whole(array: Array) -> bool:
    """Whether the labels can be classes: words, whole numbers, or floats that are whole."""
    return array.dtype.kind in "biuUS" or (
        array.dtype.kind == "f" and bool(np.isfinite(array).all() and (array == np.floor(array)).all())
    )


def _whole(labels: Array, split: str) -> Array:
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
        raise OtherTask(f"The labels go up to {labels.max()}. Number the classes from 0, or use task=regression.")
    return labels.astype(np.int64)


# -- one class a position -----------------------------------------------------------------------


def dense_classes(
    stored: Mapping[Any, Array], *, ignored: int | None, what: str, notes: list[str]
) -> tuple[dict[Any, Tensor], int]:
    """Classes (samples, …) of every split, and how many there are; `IGNORED` where a position has no label.

    Args:
        ignored: a further value that says nothing.
        what: what a position is, such as `pixels`.
    """
    arrays = {split: _whole_numbers(array, split, what) for split, array in stored.items()}
    present = np.unique(np.concatenate([_present(array) for array in arrays.values()]))
    if set(present.tolist()) == {0, 255} and ignored is None:
        notes.append("The masks hold 0 and 255 alone: 255 is the class 1.")
        arrays = {split: array // 255 for split, array in arrays.items()}
        present = np.array([0, 1])
    # 255 is a class where its neighbour is one too, as in 256 classes of bytes.
    void = {value for value in _VOID if value < 0 or 254 not in present} | ({ignored} if ignored is not None else set())
    said = sorted(void & set(present.tolist()))
    if said:
        notes.append(f"{what.capitalize()} with the label {' or '.join(map(str, said))} are ignored.")
    labels = [value for value in present.tolist() if value not in void]
    if not labels:
        raise OtherTask(f"All {what} are ignored: y holds {', '.join(map(str, said))} alone. Give labels from 0.")
    if labels[0] < 0:
        raise InvalidData(
            f"Some {what} have the label {labels[0]}. Number the classes from 0; {', '.join(map(str, _VOID))} mark "
            f"{what} without a label, and `ignore_index` names another such mark."
        )
    if len(labels) < 2:
        raise OtherTask(
            f"All {what} that have a label have the label {labels[0]}: there is nothing to tell apart. Give at least "
            "two classes, or use task=match, which needs no labels."
        )
    if labels[-1] >= MAX_CLASSES:
        raise InvalidData(f"The labels go up to {labels[-1]:,}, too many classes. Number them from 0.")
    targets = {}
    for split, array in arrays.items():
        target = torch.from_numpy(array.astype(np.int64))
        for value in said:
            target[target == value] = IGNORED
        if bool((target == IGNORED).all()):
            raise OtherTask(f"All {what} of the {split} split are ignored, so that nothing can be learned or scored.")
        targets[split] = target
    return targets, 1 + labels[-1]


def _present(array: Array) -> Array:
    """The numbers that occur, sorted; without sorting all of them where they are few."""
    low, high = int(array.min()), int(array.max())
    if high - low > MAX_CLASSES:
        return np.unique(array)
    return np.flatnonzero(np.bincount(array.ravel() - low)) + low


def _whole_numbers(array: Array, split: str, what: str) -> Array:
    if not is_whole(array) or array.dtype.kind in "US":
        raise InvalidData(
            f"y holds {array.dtype} numbers that are no classes ({split} split), but a class is wanted for each of the "
            f"{what}. Number the classes 0, 1, 2, …; for numbers, use task=regression."
        )
    return array.astype(np.int64)


# -- numbers ------------------------------------------------------------------------------------


def numbers(array: Array, split: str) -> Tensor:
    """float32 (samples, …); one number each becomes (samples, 1)."""
    if array.dtype.kind not in "biuf":
        raise InvalidData(f"y holds {array.dtype}, but regression needs numbers. Use task=classification for classes.")
    return torch.from_numpy(finite(array[:, None] if array.ndim == 1 else array, f"y, {split}"))


def finite(array: Array, name: str) -> Array:
    """The array in float32, if every number is finite there."""
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))
        where = ", ".join(str(index) for index in bad[0])
        value = array[tuple(bad[0])]
        raise InvalidData(
            f"{name} has {len(bad):,} entries that are NaN, infinite or too large for float32; the first is {value} at "
            f"[{where}]. Replace them, or leave those samples out."
        )
    return values
