"""Turns what is stored into checked columns in three splits: numbers, labels, preprocessing, held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pared.compression.data.class_names import as_the_model
from pared.compression.data.columns import Column, StoredColumn, in_memory, whole
from pared.compression.data.images import mask_labels
from pared.compression.data.inputs import checked_inputs, described_inputs, held, scalings
from pared.compression.data.preview import write_preview
from pared.compression.data.reading import read_dataset
from pared.compression.data.room import room_for
from pared.compression.data.samples import SPLITS, Data, Split
from pared.compression.data.splits import draw_missing
from pared.compression.data.stored import Stored
from pared.compression.data.text import ANY_WORDS, NeedsTokenizer, cut, next_tokens
from pared.compression.tasks import Labels, Match, Options, StoredLabels, TaskRules, make_task
from pared.compression.tasks.base import OtherTask
from pared.compression.tasks.dense import Segmentation, TokenClassification
from pared.compression.work import DatasetFile
from pared.reports import DatasetInspection
from pared.specs import Preprocess, Task

_SOME_MASKS = 64  # that tell which task they are for


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
    `seed` alone, for classes in equal proportions. What does not fit into a share of the job's memory stays in its
    file, from which batches are read.

    Args:
        task: what labels are; None: what they look like, beside what the model answers.
        output: which of several outputs of the model they belong to.
        ignored: a label that says nothing.
        answer: what the model returns for some of these samples, which have no labels yet.

    Raises:
        UnsupportedDataset: not a format we read.
        InvalidData: NaN, labels that are no classes, too few samples, …: the text says where and what to do.
        ShapeMismatch: labels fit none of the model's outputs.
        StorageFull: the disk has no room to unpack it.
    """
    stored = cut(read_dataset(file), preprocess)
    if task == "language_modeling" and not stored.targets and stored.padding is not None:
        stored = next_tokens(stored)
    inputs = checked_inputs(stored)
    scaling = [] if preprocess is None else scalings(inputs["train"], preprocess)
    labels = _labels(stored, inputs)
    unlabelled = Data(
        inputs={split: list(columns) for split, columns in inputs.items()},
        targets=dict(labels.without()),
        task=Match(),
        classes=None,
        splits="given" if "test" in inputs else "by_seed",
        format=stored.format,
        padding=stored.padding,
        vocabulary=stored.vocabulary,
        names=stored.names,
        scaling=scaling,
        warnings=list(stored.notes),
    )
    answered = None if answer is None else answer(replace(unlabelled))
    rules = make_task(Options(task, output, ignored), labels, answered)
    targets, found = _checked_labels(rules, stored, labels)
    words = stored.class_names if isinstance(rules, TokenClassification) else found.class_names
    renumbered = as_the_model(found.targets, words, file.classes) if words and file.classes else None
    if renumbered is not None:
        targets, words = dict(renumbered), list(file.classes)
    draw_missing(inputs, targets, seed, by_class=found.by_class)
    columns, targets = held(inputs, targets, scaling, room_for(file).held)
    data = replace(
        unlabelled,
        inputs=columns,
        targets=targets,
        task=rules,
        classes=found.classes if renumbered is None else len(file.classes),
        labelled=bool(stored.targets) and not rules.has_references,
        class_names=words,
        warnings=[*stored.notes, *found.notes],
    )
    return data if file.most is None else data.some(file.most)


def _labels(stored: Stored, inputs: Mapping[Split, Sequence[StoredColumn]]) -> StoredLabels:
    """What a task looks at to tell which it is: masks by some of them, inputs that are no tokens by their shape."""
    rows: slice | None = slice(0, _SOME_MASKS) if stored.format == "image_masks" else None
    first = {
        split: in_memory(columns[0])
        if columns[0].dtype == torch.int64
        else torch.empty(columns[0].shape, dtype=torch.float32, device="meta")
        for split, columns in inputs.items()
    }
    arrays = {split: whole(each) if rows is None else each[rows] for split, each in stored.targets.items()}
    return StoredLabels(arrays, stored.class_names, first)


def _checked_labels(rules: TaskRules, stored: Stored, labels: StoredLabels) -> tuple[dict[Split, Column], Labels]:
    """The targets, and what is known of them."""
    if stored.format == "image_masks" and isinstance(rules, Segmentation):
        masks, classes, notes = mask_labels(stored.targets, rules.ignored)
        return masks, Labels({}, classes, notes=notes)
    found = rules.labels(labels)
    return dict(found.targets), found


def inspect_dataset(file: DatasetFile, directory: Path | None = None) -> DatasetInspection:
    """Describe a data set, after the same checks as for a job; the task is guessed from the targets.

    Args:
        directory: where a preview of its samples is left, `preview.png` or `preview.json`; none of texts that have no
            tokenizer yet.

    Raises:
        UnsupportedDataset, InvalidData, StorageFull: as `load_dataset`, but for labels without which the data serve.
    """
    try:
        return _inspected(file, directory)
    except NeedsTokenizer:
        found = _inspected(replace(file, tokenizer=ANY_WORDS), None)
    texts = [{"shape": [], "dtype": "text"}]
    return found.model_copy(update={"inputs": texts, "warnings": [WITHOUT_TOKENIZER, *found.warnings]})


def _inspected(file: DatasetFile, directory: Path | None) -> DatasetInspection:
    notes = []
    try:
        data = load_dataset(file, task=None, preprocess=None, seed=0)
        if not data.labelled:
            notes.append(UNLABELLED)
    except OtherTask as error:
        data = load_dataset(file, task="match", preprocess=None, seed=0)
        notes.append(f"The labels are of no use, and a job that learns them fails; task=match does not. {error.detail}")
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
    notes += [*_channels_last(data), *_try_images(data)]
    if directory is not None:
        write_preview(data, directory)
    return DatasetInspection(
        format=data.format,
        task=data.task.name,
        inputs=described_inputs(data.inputs["train"][: None if data.padding is None else 1], data.names),
        samples={split: data.samples(split) for split in SPLITS},
        splits=data.splits,
        labelled=data.labelled,
        target=described if data.labelled else None,
        warnings=[*notes, *data.warnings],
    )


def _channels_last(data: Data) -> Iterator[str]:
    """Says of samples that look like images with their channels last what models make of them."""
    columns = data.inputs["train"]
    for index, column in enumerate(columns):
        height, width, channels = (*column.shape[1:], 0, 0, 0)[:3] if len(column.shape) == 4 else (0, 0, 0)
        if channels in (1, 3, 4) and min(height, width) > max(4, channels):
            name = data.names[index] if data.names else "x" if len(columns) == 1 else f"x{index}"
            yield (
                f"The samples of {name} look like images with their channels last, ({height}, {width}, {channels}). "
                f"For a model that takes channels first, (N, {channels}, {height}, {width}), save "
                f"numpy.moveaxis({name}, -1, 1) as {name}."
            )


def _try_images(data: Data) -> list[str]:
    """Decode images that are not decoded yet, evenly spaced where there are many, and say how many were not."""
    tried = total = 0
    for split in SPLITS:
        columns = [each for each in data.columns(split) if isinstance(each, StoredColumn) and each.is_decoded]
        if columns:
            rows = data.spread(split, TRIED)
            for part in torch.split(rows, 64):
                for column in columns:
                    column.index_select(0, part)
            tried, total = tried + len(rows), total + data.samples(split)
    if tried == total:
        return []
    return [f"Images are decoded as they are needed; {tried:,} of {total:,} were tried now, and all of them opened."]


TRIED = 500
"""Images of a split that an inspection decodes where they do not fit into memory."""

WITHOUT_TOKENIZER = (
    "These texts came without a tokenizer: a job reads them with that of a Hugging Face model folder. For any other "
    "model upload a zip of this file and the model's tokenizer.json."
)
UNLABELLED = (
    "The data set has no labels. A job on it has the task match: the answers of the uploaded model are the reference."
)
