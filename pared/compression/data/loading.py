"""Turns what is stored into checked columns in three splits: numbers, labels, preprocessing, held-out samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pared.compression.data.columns import Array, Column, StoredColumn, whole
from pared.compression.data.images import mask_targets
from pared.compression.data.inputs import (
    checked_inputs,
    described_inputs,
    finite_float32,
    held,
    scalings,
)
from pared.compression.data.preview import write_preview
from pared.compression.data.reading import read_dataset
from pared.compression.data.room import room_for
from pared.compression.data.samples import Data, Split
from pared.compression.data.splits import SPLITS, draw_missing
from pared.compression.data.stored import Stored
from pared.compression.data.text import cut
from pared.compression.work import DatasetFile
from pared.errors import InvalidData
from pared.reports import DatasetInspection
from pared.specs import Preprocess, Task

MAX_CLASSES = 1 << 16


def load_dataset(file: DatasetFile, *, task: Task, preprocess: Preprocess | None, seed: int) -> Data:
    """Read, check and split a data set.

    Integers stay int64 token ids; bytes (uint8) are pixels, which become float32 when they are taken; all other
    numbers become float32. Splits that the file brings are kept; what it lacks is drawn from its training samples by
    `seed` alone, for classes in equal proportions. What does not fit into a share of the job's memory stays in its
    file, from which batches are read.

    Raises:
        UnsupportedDataset: not a format we read.
        InvalidData: NaN, labels that are no classes, too few samples, …: the text says where and what to do.
        StorageFull: the disk has no room to unpack it.
    """
    stored = read_dataset(file)
    if not stored.targets:
        raise InvalidData(
            f"This data set has no labels, and task={task} learns from labels: add y with one for each sample."
        )
    if stored.format == "image_masks":
        raise InvalidData(f"This data set has a mask for each image, which task={task} cannot learn from.")
    return _loaded(file, stored, task, preprocess, seed)


def _loaded(file: DatasetFile, stored: Stored, task: Task, preprocess: Preprocess | None, seed: int) -> Data:
    """The data set that is stored; without targets, whatever the task."""
    stored = cut(stored, preprocess)
    notes = list(stored.notes)
    inputs = checked_inputs(stored)
    class_names, classes = stored.class_names, None
    targets: dict[Split, Column] = {}
    if not stored.targets:
        targets |= {split: torch.empty(len(columns[0]), 0) for split, columns in inputs.items()}
    elif stored.format == "image_masks":
        targets, classes = mask_targets(stored.targets)
    elif task == "classification":
        labels, class_names = _classes(
            {split: whole(rows) for split, rows in stored.targets.items()}, class_names, notes
        )
        targets |= labels
        classes = 1 + max(int(each.max()) for each in labels.values())
    else:
        if class_names is not None:
            raise InvalidData("Images in class folders have no numbers to regress on: use task=classification.")
        targets |= {split: _numbers(whole(rows), split) for split, rows in stored.targets.items()}
    scaling = [] if preprocess is None else scalings(inputs["train"], preprocess)
    has_test = "test" in targets
    draw_missing(inputs, targets, seed, by_class=classes is not None and len(targets["train"].shape) == 1)
    columns, targets = held(inputs, targets, scaling, room_for(file).held)
    return Data(
        inputs=columns,
        targets=targets,
        task=task,
        classes=classes,
        splits="given" if has_test else "by_seed",
        format=stored.format,
        labelled=bool(stored.targets),
        padding=stored.padding,
        vocabulary=stored.vocabulary,
        names=stored.names,
        class_names=class_names,
        warnings=notes,
        scaling=scaling,
    )


def inspect_dataset(file: DatasetFile, directory: Path | None = None) -> DatasetInspection:
    """Describe a data set, after the same checks as for a job; the task is guessed from the targets.

    Args:
        directory: where a preview of its samples is left, `preview.png` or `preview.json`.

    Raises:
        UnsupportedDataset, InvalidData, StorageFull: as `load_dataset`.
    """
    stored = read_dataset(file)
    data = _loaded(file, stored, _likely_task(stored), preprocess=None, seed=0)
    target = data.targets["train"]
    whole_numbers = data.classes is not None
    described: dict[str, Any] = {
        "dtype": "int64" if whole_numbers else "float32",
        "shape": list(target.shape[1:]),
    }
    if data.classes is not None:
        described["classes"] = data.classes
    if data.class_names is not None:
        described["class_names"] = data.class_names[:1000]
    notes = ([] if data.labelled else [UNLABELLED]) + _try_images(data)
    if directory is not None:
        write_preview(data, directory)
    return DatasetInspection(
        format=data.format,
        inputs=described_inputs(data.inputs["train"][: None if data.padding is None else 1], data.names),
        samples={split: data.samples(split) for split in SPLITS},
        splits=data.splits,
        labelled=data.labelled,
        target=described if data.labelled else None,
        warnings=[*notes, *data.warnings],
    )


def _try_images(data: Data) -> list[str]:
    """Decode images that are not decoded yet, evenly spaced where there are many, and say how many were not."""
    tried = total = 0
    for split in SPLITS:
        columns = [each for each in data.columns(split) if isinstance(each, StoredColumn) and each.is_decoded]
        if columns:
            count = data.samples(split)
            rows = torch.linspace(0, count - 1, min(count, TRIED)).round().long()
            for part in torch.split(rows, 64):
                for column in columns:
                    column.index_select(0, part)
            tried, total = tried + len(rows), total + count
    if tried == total:
        return []
    return [f"Images are decoded as they are needed; {tried:,} of {total:,} were tried now, and all of them opened."]


TRIED = 500
"""Images of a split that an inspection decodes where they do not fit into memory."""

UNLABELLED = (
    "The data set has no labels. A job on it has the task match: the answers of the uploaded model are the reference."
)


def _likely_task(stored: Stored) -> Task:
    if not stored.targets:
        return "regression"
    targets = whole(stored.targets["train"])
    if targets.dtype.kind not in "fc":
        return "classification"
    one_number = targets.ndim == 1 or targets.shape[1:] == (1,)
    whole_numbers = (
        one_number and np.isfinite(targets).all() and (targets == np.floor(targets)).all() and (targets >= 0).all()
    )
    return "classification" if whole_numbers and targets.max(initial=0) < min(1000, len(targets)) else "regression"


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
    return torch.from_numpy(finite_float32(array[:, None] if array.ndim == 1 else array, f"y, {split}"))
