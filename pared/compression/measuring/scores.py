"""Scores answers against labels: accuracy, R², and the loss of each task."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pared.specs import Task


def label_loss(output: Tensor, target: Tensor, task: Task) -> Tensor:
    """Cross-entropy, or the mean squared error: the mean over the batch of what the labels say."""
    if task == "classification":
        return functional.cross_entropy(output, target)
    return functional.mse_loss(output, target.to(output.dtype).reshape(output.shape))


def answered(outputs: Tensor, task: Task) -> Tensor:
    """Which samples have an answer that can be scored, (N,) bool.

    NaN is no answer. An infinity is none among predictions; among logits it is, as the −inf of a masked class.
    """
    bad = outputs.isnan() if task == "classification" else ~outputs.isfinite()
    return ~bad.reshape(len(outputs), -1).any(1)


def classes(outputs: Tensor) -> Tensor:
    """The class of each sample, (N,); −1, which is no class, where a logit is NaN."""
    return outputs.argmax(1).masked_fill(~answered(outputs, "classification"), -1)


def score(outputs: Tensor, targets: Tensor, task: Task) -> float:
    """Accuracy, or R²: higher is better. A sample without an answer is wrong; R² takes none."""
    if task == "classification":
        return float((classes(outputs) == targets).double().mean())
    return _r2(*_squares(outputs, targets))


def squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, K) in double."""
    return (outputs.double() - targets.double().reshape(outputs.shape)).square().reshape(len(outputs), -1)


def _squares(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Residual and total sum of squares, over all samples and outputs."""
    values = targets.double().reshape(len(outputs), -1)
    return float(squared_errors(outputs, targets).sum()), float((values - values.mean(0)).square().sum())


def _r2(residual: float, total: float) -> float:
    if total == 0:  # a constant target: all or nothing
        return 1.0 if residual == 0 else 0.0
    return 1 - residual / total


def weighted_r2(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """R² of every resample. weights: (R, N) -> (R,)."""
    values = targets.double().reshape(len(outputs), -1)
    # Around the overall mean, which changes nothing but keeps the subtraction of squares from cancelling.
    values = values - values.mean(0)
    residual = weights @ squared_errors(outputs, targets).sum(1)
    total = weights @ values.square().sum(1) - (weights @ values).square().sum(1) / weights.sum(1)
    total = total.clamp(min=0)
    return torch.where(total > 0, 1 - residual / total.clamp(min=1e-300), (residual == 0).double())
