"""Regression: numbers for each sample, (N,), (N, K) or of any shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pared.compression.tasks.base import Labels, StoredLabels, TaskRules, hold_labelled
from pared.compression.tasks.labels import numbers
from pared.compression.tasks.statistics import bootstrap, paired_t
from pared.compression.tasks.sums import broken
from pared.errors import InvalidData, ShapeMismatch
from pared.reports import Comparison, Interval


class Regression(TaskRules):
    """The mean squared error and R². Samples that the upload does not answer are left out of all scores.

    Of outputs with more than two dimensions, such as images, the squared error of each sample is kept, not the outputs.
    """

    name = "regression"
    metric = "r2"
    wanted = "predictions (N,), (N, K) or (N, …)"
    unanswered = "left out of all scores"
    softens = False

    def labels(self, stored: StoredLabels) -> Labels:
        """Numbers (samples, …)."""
        hold_labelled(stored, self.name)
        if stored.class_names is not None:
            raise InvalidData("Images in class folders have no numbers to regress on: use task=classification.")
        return Labels({split: numbers(array, split) for split, array in stored.arrays.items()})

    def fitted(self, labels: Mapping[Any, Tensor], output: Tensor) -> dict[Any, Tensor]:
        """In the shape of the model's output, where only dimensions of 1 differ."""
        return {split: _matched(target, output) for split, target in labels.items()}

    def takes(self, output: Tensor) -> bool:
        """Any."""
        return output.dim() >= 1

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean squared error."""
        return functional.mse_loss(output, target.to(output.dtype).reshape(output.shape))

    def rows(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, K); of images (N, K, …) the numbers of each place, (P, K)."""
        if output.dim() <= 2:
            return super().rows(output, target)
        return output.movedim(1, -1).reshape(-1, output.shape[1]), None

    def condensed(self, output: Tensor, target: Tensor) -> Tensor:
        """The outputs, or of those with more than two dimensions (N, 4): broken or not, Σ (ŷ − y)², and its count."""
        if output.dim() <= 2:
            return output
        errors = (output - target.to(output.dtype).reshape(output.shape)).square().reshape(len(output), -1)
        count = torch.full((len(output), 1), float(errors.shape[1]), device=output.device)
        return torch.cat([broken(output), errors.sum(1, keepdim=True), count], 1)[:, :, None]

    def mean_loss(self, condensed: Tensor, targets: Tensor) -> float:
        """The mean squared error."""
        if condensed.dim() <= 2:
            return float(self.loss(condensed, targets))
        return float(condensed[:, 2].double().sum() / condensed[:, 3].double().sum())

    def answered(self, condensed: Tensor) -> Tensor:
        """Those of finite numbers alone."""
        return condensed.isfinite().reshape(len(condensed), -1).all(1)

    def scored(self, condensed: Tensor) -> Tensor:
        """Those that are answered."""
        return self.answered(condensed)

    def score(self, condensed: Tensor, targets: Tensor) -> float:
        """R², over all samples and outputs."""
        values = targets.double().reshape(len(condensed), -1)
        total = float((values - values.mean(0)).square().sum())
        residual = float(_squared_errors(condensed, targets).sum())
        if total == 0:  # a constant target: all or nothing
            return 1.0 if residual == 0 else 0.0
        return 1 - residual / total

    def interval(self, condensed: Tensor, targets: Tensor) -> Interval:
        """Of the bootstrap."""
        return bootstrap(_weighted_r2(condensed, targets), len(targets))

    def compare(self, before: Tensor, after: Tensor, targets: Tensor) -> Comparison:
        """A paired t-test of the squared errors."""
        errors = [_squared_errors(each, targets).sum(1).numpy() for each in (before, after)]
        first, second = (_weighted_r2(each, targets) for each in (before, after))
        return Comparison(
            quality_difference=bootstrap(lambda weights: second(weights) - first(weights), len(targets)),
            p_value=paired_t(errors[1] - errors[0]),
            test="paired_t",
        )


def _matched(target: Tensor, output: Tensor) -> Tensor:
    if target[0].numel() != output[0].numel() or _without_ones(target) != _without_ones(output):
        raise ShapeMismatch(
            f"The model gives {tuple(output.shape[1:])} numbers a sample; the data set's targets have "
            f"{tuple(target.shape[1:])}."
        )
    return target.reshape(-1, *output.shape[1:])


def _without_ones(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape[1:] if size != 1]


def _squared_errors(condensed: Tensor, targets: Tensor) -> Tensor:
    """(N, K) in double, or (N, 1) where only sums are left."""
    if condensed.dim() > 2:
        return condensed[:, 2].double()
    return (condensed.double() - targets.double().reshape(condensed.shape)).square().reshape(len(condensed), -1)


def _weighted_r2(condensed: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """R² of every resample: weights (R, N) -> (R,)."""
    values = targets.double().reshape(len(condensed), -1)
    # Around the overall mean, which changes nothing but keeps the subtraction of squares from cancelling.
    values = values - values.mean(0)
    errors, squares = _squared_errors(condensed, targets).sum(1), values.square().sum(1)

    def r2(weights: Tensor) -> Tensor:
        residual = weights @ errors
        total = weights @ squares
        if condensed.dim() <= 2:  # of images the mean of each place is taken as known, which saves most of the work
            total -= (weights @ values).square().sum(1) / weights.sum(1)
        total = total.clamp(min=0)
        return torch.where(total > 0, 1 - residual / total.clamp(min=1e-300), (residual == 0).double())

    return r2
