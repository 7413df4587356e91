"""Regression: numbers (N,) or (N, K) for each sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pared.compression.tasks.base import TaskRules
from pared.compression.tasks.statistics import bootstrap, paired_t
from pared.errors import ModelFailed
from pared.reports import Comparison, Interval


class Regression(TaskRules):
    """The mean squared error and R². Samples that the upload does not answer are left out of all scores."""

    metric = "r2"
    score_name = "R²"
    output = "predictions (N,) or (N, K)"
    output_dims = (1, 2)
    unanswered = "left out of all scores"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean squared error."""
        return functional.mse_loss(output, target.to(output.dtype).reshape(output.shape))

    def answered(self, outputs: Tensor) -> Tensor:
        """Those of finite numbers alone."""
        return outputs.isfinite().reshape(len(outputs), -1).all(1)

    def scored(self, outputs: Tensor) -> Tensor:
        """Those that are answered."""
        return self.answered(outputs)

    def counted(self, outputs: Tensor) -> Tensor:
        """Those that are answered, if any."""
        counted = self.answered(outputs)
        if not bool(counted.any()):
            raise ModelFailed(
                "The model answers no sample with finite numbers alone, so that there is nothing to score. Look for "
                "NaN among its weights, and whether the data must be scaled (`preprocess`)."
            )
        return counted

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """R², over all samples and outputs."""
        values = targets.double().reshape(len(outputs), -1)
        total = float((values - values.mean(0)).square().sum())
        residual = float(_squared_errors(outputs, targets).sum())
        if total == 0:  # a constant target: all or nothing
            return 1.0 if residual == 0 else 0.0
        return 1 - residual / total

    def interval(self, outputs: Tensor, targets: Tensor) -> Interval:
        """Of the bootstrap."""
        return bootstrap(lambda weights: _weighted_r2(outputs, targets, weights), len(targets))

    def compare(self, before: Tensor, after: Tensor, targets: Tensor) -> Comparison:
        """A paired t-test of the squared errors."""
        errors = [_squared_errors(outputs, targets).sum(1).numpy() for outputs in (before, after)]
        return Comparison(
            quality_difference=bootstrap(
                lambda weights: _weighted_r2(after, targets, weights) - _weighted_r2(before, targets, weights),
                len(targets),
            ),
            p_value=paired_t(errors[1] - errors[0]),
            test="paired_t",
        )


def _squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, K) in double."""
    return (outputs.double() - targets.double().reshape(outputs.shape)).square().reshape(len(outputs), -1)


def _weighted_r2(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """R² of every resample. weights: (R, N) -> (R,)."""
    values = targets.double().reshape(len(outputs), -1)
    # Around the overall mean, which changes nothing but keeps the subtraction of squares from cancelling.
    values = values - values.mean(0)
    residual = weights @ _squared_errors(outputs, targets).sum(1)
    total = weights @ values.square().sum(1) - (weights @ values).square().sum(1) / weights.sum(1)
    total = total.clamp(min=0)
    return torch.where(total > 0, 1 - residual / total.clamp(min=1e-300), (residual == 0).double())
