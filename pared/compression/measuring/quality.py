"""Measures how well a model answers, with a 95 % interval, and compares a result with its upload."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pared.compression.data.samples import Inputs, Split
from pared.compression.measuring.finite import hold_finite_on_samples
from pared.compression.measuring.running import EVALUATION_BATCH, Samples, predict
from pared.compression.tasks import TaskRules
from pared.reports import Comparison, Quality


@dataclass(frozen=True)
class Assessment:
    """What is kept of a model's answers on the test and validation splits, and how good they are.

    `counted`: which test samples the scores are over, and `counted_validation` those of validation. All of them in
    classification; in regression those to which the upload answers finite numbers.
    """

    outputs: Tensor
    targets: Tensor
    validation: Tensor
    counted: Tensor
    counted_validation: Tensor
    task: TaskRules
    quality: Quality


def assess(
    module: nn.Module,
    data: Samples,
    task: TaskRules,
    *,
    upload: Assessment | None = None,
    role: str = "The result",
    device: str = "cpu",
    tick: Callable[[], None] = lambda: None,
) -> Assessment:
    """Score a model on the test split, for the report alone, and on validation.

    Args:
        upload: what the model is a result of; None for an upload itself.
        role: what to call the model in errors.

    Raises:
        NotFinite: it answers NaN or infinity where the upload does not.
        ModelFailed: an upload answers no sample with finite numbers.
    """
    validation, validation_targets = verified_outputs(
        module, data, "val", task, upload=upload, role=role, device=device, tick=tick
    )
    outputs, targets = verified_outputs(module, data, "test", task, upload=upload, role=role, device=device, tick=tick)
    if upload is not None:
        counted, counted_validation = upload.counted, upload.counted_validation
    else:
        counted, counted_validation = (task.counted(each) for each in (outputs, validation))
    scored, wanted = outputs[counted], targets[counted]
    loss = task.mean_loss(scored, wanted)
    quality = Quality(
        metric=task.metric,
        test=task.interval(scored, wanted),
        validation=task.score(validation[counted_validation], validation_targets[counted_validation]),
        loss=loss if math.isfinite(loss) else None,
        samples=len(wanted),
        beside=task.beside(scored, wanted),
    )
    return Assessment(outputs, targets, validation, counted, counted_validation, task, quality)


def verified_outputs(
    module: nn.Module,
    data: Samples,
    split: Literal["val", "test"],
    task: TaskRules,
    *,
    upload: Assessment | None,
    role: str = "The result",
    device: str = "cpu",
    tick: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """`predict`, held against the upload's answers.

    Raises:
        NotFinite: the model answers NaN or infinity where the upload does not.
    """
    outputs, targets = predict(module, data, split, task, device=device, tick=tick)
    if upload is not None:
        expected = upload.outputs if split == "test" else upload.validation
        name = "validation" if split == "val" else split
        hold_finite_on_samples(expected, outputs, name, module, lambda index: _sample(data, split, index), role)
    return outputs, targets


def validation_score(
    module: nn.Module, data: Samples, upload: Assessment, *, device: str, tick: Callable[[], None]
) -> float:
    """The score of a result on the validation split.

    Raises:
        NotFinite: it answers NaN or infinity where the upload does not.
    """
    outputs, targets = verified_outputs(module, data, "val", upload.task, upload=upload, device=device, tick=tick)
    return upload.task.score(outputs[upload.counted_validation], targets[upload.counted_validation])


def _sample(data: Samples, split: Split, index: int) -> Inputs:
    """The inputs of one sample, as a batch of one."""
    for inputs, _ in data.batches(split, EVALUATION_BATCH):
        if index < len(inputs[0]):
            return tuple(tensor[index : index + 1] for tensor in inputs)
        index -= len(inputs[0])
    raise IndexError(index)


def compare(before: Assessment, after: Assessment) -> Comparison:
    """The result against the baseline on the same test samples."""
    counted = before.counted
    return before.task.compare(before.outputs[counted], after.outputs[counted], before.targets[counted])
