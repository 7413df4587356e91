"""A report warns where the upload itself does hardly better than without looking at its inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pared.compression.measuring.quality import Assessment
from pared.compression.report.parts import guessing_warning
from pared.compression.tasks.base import TaskRules
from pared.compression.tasks.classification import Classification
from pared.compression.tasks.regression import Regression
from pared.reports import Quality

CLASSES = torch.tensor([0] * 12 + [1] * 8)
AMOUNTS = torch.linspace(-1, 1, 20)[:, None]


def assessment(task: TaskRules, outputs: Tensor, targets: Tensor) -> Assessment:
    kept, counted = task.condensed(outputs, targets), torch.ones(len(targets), dtype=torch.bool)
    score = task.score(kept, targets)
    test, samples = task.interval(kept, targets), len(targets)
    quality = Quality(metric=task.metric, test=test, validation=score, loss=None, samples=samples, beside={})
    return Assessment(kept, targets, kept, counted, counted, task, quality)


def logits(classes: Tensor) -> Tensor:
    return functional.one_hot(classes, 2).float()


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "says"),
    [
        (Classification(), logits(CLASSES * 0), CLASSES, "than the commonest class: a test accuracy of 0.6000"),
        (Classification(), logits(1 - CLASSES), CLASSES, "0.0000, and 0.6000 without looking"),
        (Regression(), AMOUNTS * 0, AMOUNTS, "than the mean of the targets: a test R²"),
    ],
)
def test_an_upload_that_guesses_is_warned_of(task: TaskRules, outputs: Tensor, targets: Tensor, says: str) -> None:
    (warning,) = guessing_warning(assessment(task, outputs, targets))
    assert says in warning


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [(Classification(), logits(CLASSES), CLASSES), (Regression(), AMOUNTS * 0.9, AMOUNTS)],
)
def test_nothing_is_said_of_one_that_does_not(task: TaskRules, outputs: Tensor, targets: Tensor) -> None:
    assert guessing_warning(assessment(task, outputs, targets)) == []
    assert guessing_warning(None) == []
