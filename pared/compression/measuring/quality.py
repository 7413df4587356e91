"""Measures how well a model answers, with a 95 % interval, and compares a result with its upload."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pared.compression.data.samples import Split
from pared.compression.measuring.finite import hold_finite_on_samples
from pared.compression.measuring.running import EVALUATION_BATCH, Inputs, Samples, predict
from pared.compression.measuring.scores import answered, classes, label_loss, score, squared_errors, weighted_r2
from pared.compression.measuring.statistics import bootstrap, mcnemar, paired_difference, paired_t, wilson
from pared.errors import ModelFailed
from pared.reports import Comparison, Quality
from pared.specs import Task


@dataclass(frozen=True)
class Assessment:
    """One model's answers on the test and validation splits, and how good they are.

    `counted`: which test samples the scores are over, and `counted_validation` those of validation. All of them in
    classification; in regression those to which the upload answers finite numbers.
    """

    outputs: Tensor
    targets: Tensor
    validation: Tensor
    counted: Tensor
    counted_validation: Tensor
    task: Task
    quality: Quality


def assess(
    module: nn.Module,
    data: Samples,
    task: Task,
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
        counted, counted_validation = (_counted(each, task) for each in (outputs, validation))
    scored, wanted = outputs[counted], targets[counted]
    if task == "classification":
        right = int((classes(scored) == wanted).sum())
        interval = wilson(right, len(wanted))
    else:
        interval = bootstrap(lambda weights: weighted_r2(scored, wanted, weights), len(wanted))
    loss = float(label_loss(scored, wanted, task))
    quality = Quality(
        metric="accuracy" if task == "classification" else "r2",
        test=interval,
        validation=score(validation[counted_validation], validation_targets[counted_validation], task),
        loss=loss if math.isfinite(loss) else None,
        samples=len(wanted),
    )
    return Assessment(outputs, targets, validation, counted, counted_validation, task, quality)


def verified_outputs(
    module: nn.Module,
    data: Samples,
    split: Literal["val", "test"],
    task: Task,
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
    return score(outputs[upload.counted_validation], targets[upload.counted_validation], upload.task)


def _counted(outputs: Tensor, task: Task) -> Tensor:
    if task == "classification":
        return torch.ones(len(outputs), dtype=torch.bool)
    counted = answered(outputs, task)
    if not bool(counted.any()):
        raise ModelFailed(
            "The model answers no sample with finite numbers alone, so that there is nothing to score. Look for NaN "
            "among its weights, and whether the data must be scaled (`preprocess`)."
        )
    return counted


def _sample(data: Samples, split: Split, index: int) -> Inputs:
    """The inputs of one sample, as a batch of one."""
    for inputs, _ in data.batches(split, EVALUATION_BATCH):
        if index < len(inputs[0]):
            return tuple(tensor[index : index + 1] for tensor in inputs)
        index -= len(inputs[0])
    raise IndexError(index)


def compare(before: Assessment, after: Assessment) -> Comparison:
    """The result against the baseline on the same test samples."""
    if before.task == "regression":
        return _compare_regression(before, after)
    answer_before, answer_after = classes(before.outputs), classes(after.outputs)
    right_before, right_after = answer_before == before.targets, answer_after == after.targets
    lost = int((right_before & ~right_after).sum())
    won = int((right_after & ~right_before).sum())
    per_class = []
    for label in torch.unique(before.targets).tolist():
        of_class = before.targets == label
        share_before, share_after = (
            float(right_before[of_class].double().mean()),
            float(right_after[of_class].double().mean()),
        )
        per_class.append(
            {
                "class": label,
                "samples": int(of_class.sum()),
                "before": share_before,
                "after": share_after,
                "change": share_after - share_before,
            }
        )
    return Comparison(
        quality_difference=paired_difference(lost, won, len(before.targets)),
        p_value=mcnemar(lost, won),
        test="mcnemar",
        equal_predictions=float(((answer_before == answer_after) & (answer_before >= 0)).double().mean()),
        per_class=per_class,
    )


def _compare_regression(before: Assessment, after: Assessment) -> Comparison:
    counted = before.counted
    first, second, targets = before.outputs[counted], after.outputs[counted], before.targets[counted]
    errors = [squared_errors(outputs, targets).sum(1).numpy() for outputs in (first, second)]
    return Comparison(
        quality_difference=bootstrap(
            lambda weights: weighted_r2(second, targets, weights) - weighted_r2(first, targets, weights),
            len(targets),
        ),
        p_value=paired_t(errors[1] - errors[0]),
        test="paired_t",
    )
