"""Intervals and tests: Wilson, McNemar, Agresti and Min, the paired t-test and the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtr
from torch import Tensor

from pared.reports import Interval


def paired_t(differences: NDArray[np.floating[Any]]) -> float:
    """Two-sided p-value (Student 1908) that a mean difference as large comes by chance.

    Args:
        differences: of the pairs, (N,). Without any, and with some that are not finite, there is no evidence: 1.
    """
    freedom = len(differences) - 1
    if freedom < 1 or not differences.any() or not np.isfinite(differences).all():
        return 1.0
    error = float(differences.std(ddof=1)) / math.sqrt(freedom + 1)
    if not error:
        return 0.0
    return float(2 * stdtr(freedom, -abs(float(differences.mean())) / error))


_CONFIDENCE_Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval
_RESAMPLES = 1000


def wilson(right: int, samples: int) -> Interval:
    """A share with its 95 % interval (Wilson 1927), which stays inside 0 to 1 and is sound at small counts."""
    share, z2 = right / samples, _CONFIDENCE_Z**2
    centre = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = _CONFIDENCE_Z / (1 + z2 / samples) * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    return Interval(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p-value (McNemar 1947) that a difference as large comes by chance.

    Args:
        lost: samples that only the first model gets right.
        won: samples that only the second gets right.
    """
    n, term, tail = lost + won, 1, 1
    for i in range(min(lost, won)):
        term = term * (n - i) // (i + 1)  # n choose i + 1
        tail += term
    return float(min(1.0, 2 * tail / 2**n))


def paired_difference(lost: int, won: int, samples: int) -> Interval:
    """Difference of two paired shares, second − first, with the 95 % interval of Agresti and Min (2005).

    Half a sample is added to each of the four cells, so that models that never differ still have an uncertainty.
    """
    n, b, c = samples + 2, lost + 0.5, won + 0.5
    centre = (c - b) / n
    half = _CONFIDENCE_Z * math.sqrt((b + c - (c - b) ** 2 / n) / n**2)
    return Interval(value=(won - lost) / samples, low=max(-1.0, centre - half), high=min(1.0, centre + half))


def bootstrap(statistic: Callable[[Tensor], Tensor], samples: int) -> Interval:
    """Percentile bootstrap: `statistic` maps weights (R, N), how often each sample is drawn, to (R,) values."""
    generator = torch.Generator().manual_seed(0)  # the report of one job is the same each time
    values = []
    for _ in range(_RESAMPLES // 50):
        drawn = torch.randint(samples, (50, samples), generator=generator)
        weights = torch.zeros(50, samples, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(50, samples, dtype=torch.float64)
        )
        values.append(statistic(weights))
    low, high = torch.cat(values).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = float(statistic(torch.ones(1, samples, dtype=torch.float64)))
    return Interval(value=_finite(value), low=_finite(low), high=_finite(high))


def _finite(value: float) -> float:
    """JSON has no infinity: what is beyond all measure is written as the largest float32. It is never NaN."""
    if math.isnan(value):
        raise ValueError("NaN is no score")
    return min(max(value, -3.4e38), 3.4e38)
