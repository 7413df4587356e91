"""Chooses the task of a job: by name, or guessed from the labels and from what the model answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pared.compression.tasks.base import Array, StoredLabels, TaskRules
from pared.compression.tasks.classification import Binary, Classification
from pared.compression.tasks.dense import LanguageModeling, Segmentation, TokenClassification
from pared.compression.tasks.labels import IGNORED, is_one_hot, is_whole, is_zero_one
from pared.compression.tasks.multilabel import Multilabel
from pared.compression.tasks.outputs import chosen, listed_outputs, main_output, named_outputs
from pared.compression.tasks.references import Embedding, Match
from pared.compression.tasks.regression import Regression
from pared.errors import ModelFailed, ShapeMismatch
from pared.specs import Task

TASKS: Mapping[Task, type[TaskRules]] = {
    kind.name: kind
    for kind in (
        Classification,
        Binary,
        Multilabel,
        Regression,
        Segmentation,
        TokenClassification,
        LanguageModeling,
        Embedding,
        Match,
    )
}
"""The rules of each task that a spec can name."""


@dataclass(frozen=True)
class Options:
    """What a spec says of its task. `task`: None where it is to be guessed."""

    task: Task | None = None
    output: str | None = None
    ignored: int | None = None


def make_task(options: Options, stored: StoredLabels, answer: Any = None) -> TaskRules:
    """The rules of a job.

    Args:
        answer: what the model returns for some samples; None where there is no model, as for an upload of data.

    Raises:
        ShapeMismatch: none of the model's outputs fits the labels, or several do.
    """
    if isinstance(answer, Tensor) and options.output not in (None, "0"):
        raise ModelFailed(
            f"The model returns one tensor, {tuple(answer.shape)} for {len(answer)} samples, and `output` names "
            f"{options.output!r}: leave it out."
        )
    if options.task is not None:
        kind = TASKS[options.task]
        output = options.output
        if output is None and answer is not None and kind is not Match:
            output = _output_for(kind(ignored=options.ignored), answer)
        return _made(kind, output, options, stored, answer)
    if not stored.arrays:
        return Match()
    if answer is None:
        return TASKS[likely_task(stored)](output=options.output, ignored=options.ignored)
    task, output = _guess(options, stored, answer)
    return _made(TASKS[task], output, options, stored, answer)


def _made(kind: type[TaskRules], output: str | None, options: Options, stored: StoredLabels, answer: Any) -> TaskRules:
    if kind is Segmentation and answer is not None and stored.arrays:
        map_of = chosen(answer, output, Segmentation.wanted)
        flat = map_of.dim() == 3 and tuple(map_of.shape[1:]) == _sizes(stored)
        return Segmentation(output=output, ignored=options.ignored, flat=flat)
    return kind(output=output, ignored=options.ignored)


def _sizes(stored: StoredLabels) -> tuple[int, ...]:
    """Of a sample's labels, without dimensions of 1."""
    return tuple(size for size in stored.arrays["train"].shape[1:] if size != 1)


def _output_for(rules: TaskRules, answer: Any) -> str | None:
    """Which of several outputs a task takes, where one alone can be meant."""
    outputs = named_outputs(answer)
    if len(outputs) < 2:
        return None
    return main_output(
        [path for path, each in outputs if each.is_floating_point() and each.dim() and rules.takes(each)]
    )


def _guess(options: Options, stored: StoredLabels, answer: Any) -> tuple[Task, str | None]:
    outputs = named_outputs(answer)
    if options.output is not None:
        outputs = [(options.output, chosen(answer, options.output, "logits"))]
    tasks = {path: fitting_task(stored, output) for path, output in outputs}
    fitting = {path: task for path, task in tasks.items() if task is not None}
    if len(outputs) <= 1:
        # What does not fit is told by the task that its labels are most like.
        return next(iter(fitting.values()), likely_task(stored)), options.output
    path = main_output(list(fitting))
    if path is not None:
        return fitting[path], path
    array = stored.arrays["train"]
    which = f"fit {', '.join(fitting)}" if fitting else "fit none of them"
    raise ShapeMismatch(
        f"The model returns {listed_outputs(outputs)}; the labels {array.shape} {which}. Name the output that they "
        'belong to, such as {"output": "0"}, and the `task`; or use task=match, which needs no labels.'
    )


def fitting_task(stored: StoredLabels, output: Tensor) -> Task | None:
    """The task whose labels and outputs look like these, (samples, …) both; None: there is none."""
    if not output.is_floating_point() or output.dim() < 1:
        return None
    array = stored.arrays["train"]
    of_label = _sizes(stored)
    of_output = tuple(output.shape[1:])
    numbers = tuple(size for size in of_output if size != 1)
    if not of_label:
        if not numbers:
            return "binary" if _distinct(array) <= 2 and is_whole(array) else "regression" if _is_float(array) else None
        return "classification" if len(of_output) == 1 else None
    if len(of_label) == len(of_output) == 1 and of_label == of_output and is_zero_one(array):
        return "classification" if is_one_hot(array) else "multilabel"
    whole = is_whole(array) and array.dtype.kind not in "US"
    if whole and math.prod(of_label) > 1:
        tokens = of_output[:-1] == of_label and len(of_label) == 1
        positions = tuple(size for size in of_output[1:] if size != 1) == of_label
        of_ids = stored.inputs["train"].dtype == torch.int64
        if tokens and (of_ids or not positions):
            return "language_modeling" if _are_next_tokens(stored) else "token_classification"
        if len(of_label) == 2 and of_label == of_output and _is_mask(array):
            return "segmentation"
        if positions and len(of_output) >= 2:
            return "segmentation" if of_output[0] > 1 or is_zero_one(array) or _is_mask(array) else "regression"
    return "regression" if of_label == numbers and array.dtype.kind in "biuf" else None


def likely_task(stored: StoredLabels) -> Task:
    """What labels look like, without a model."""
    if not stored.arrays:
        return "match"
    array = stored.arrays["train"]
    whole, size = is_whole(array), math.prod(array.shape[1:])
    if size <= 1:
        if not _is_float(array):
            return "classification"
        few = whole and (array >= 0).all() and array.max(initial=0) < min(1000, len(array))
        return "classification" if few else "regression"
    if array.ndim == 2 and is_zero_one(array):
        return "classification" if is_one_hot(array) else "multilabel"
    if _is_float(array):
        return "regression"
    if array.ndim == 2:
        if stored.inputs["train"].dtype != torch.int64:
            return "regression" if stored.inputs["train"].dim() <= 2 else "token_classification"
        return "language_modeling" if _are_next_tokens(stored) else "token_classification"
    return "segmentation"


def _is_float(array: Array) -> bool:
    return array.dtype.kind in "fc"


def _distinct(array: Array) -> int:
    return len(np.unique(array))


def _is_mask(array: Array) -> bool:
    """Whether a mask of two classes is stored as an image of 0 and 255, or with a mark for no label."""
    return set(np.unique(array).tolist()) <= {0, 1, 255, IGNORED, -1}


def _are_next_tokens(stored: StoredLabels) -> bool:
    """Whether labels are mostly the inputs' own next tokens."""
    labels, tokens = torch.from_numpy(stored.arrays["train"].astype(np.int64)), stored.inputs["train"]
    labels = labels.reshape(len(labels), -1)
    if tokens.dim() != 2 or tokens.shape != labels.shape or labels.shape[1] < 2:
        return False
    labelled = labels[:, :-1] != IGNORED
    same = (labels[:, :-1] == tokens[:, 1:]) & labelled
    return bool(labelled.any()) and float(same.sum()) > 0.95 * float(labelled.sum())
