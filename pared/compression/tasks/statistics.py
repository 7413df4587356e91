"""Intervals and tests: Wilson, McNemar, Agresti and Min, the paired t-test and the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit
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
_FEW = 4096  # samples whose resamples are kept, 32 MiB at most


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
    values = [statistic(weights) for weights in _drawn(samples)]
    low, high = torch.cat(values).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = float(statistic(torch.ones(1, samples, dtype=torch.float64)))
    return Interval(value=_finite(value), low=_finite(low), high=_finite(high))


def bootstrap_of_sums(statistics: Tensor, value: Callable[[Tensor], Tensor]) -> Interval:
    """Bootstrap of a value of sums over samples, such as a ratio.

    The quantiles lie a little further out than 2.5 and 97.5 %, by which the interval of a mean is Student's and not too
    narrow for few samples (Hesterberg 2015, arXiv:1411.5279, expanded percentiles).

    Args:
        statistics: (N, S) in double; what is drawn together, such as the tokens of a sequence, is one sample.
        value: maps sums (R, S) to (R,).
    """
    samples = len(statistics)
    if samples < 2:
        raise ValueError("an interval needs at least two samples")
    values = torch.cat([value(weights @ statistics) for weights in _drawn(samples)])
    outside = float(ndtr(-math.sqrt(samples / (samples - 1)) * float(stdtrit(samples - 1, 0.975))))
    low, high = values.quantile(torch.tensor([outside, 1 - outside], dtype=torch.float64)).tolist()
    whole = float(value(statistics.sum(0, keepdim=True)))
    return Interval(value=_finite(whole), low=_finite(low), high=_finite(high))


def jackknife_t(statistics: Tensor, value: Callable[[Tensor], Tensor]) -> float:
    """Two-sided p-value that a value of sums as far from 0 comes by chance: a t-test of the pseudo-values (Tukey 1958).

    Where the value is a mean it is the paired t-test.

    Args:
        statistics, value: as in `bootstrap_of_sums`.
    """
    samples, total = len(statistics), statistics.sum(0, keepdim=True)
    whole = value(total)
    return paired_t((samples * whole - (samples - 1) * value(total - statistics)).numpy())


@lru_cache(maxsize=1)
def _few_drawn(samples: int) -> list[Tensor]:
    return list(_resamples(samples))


def _drawn(samples: int) -> Iterable[Tensor]:
    """How often each sample is drawn, (50, N) at a time; the same each time, and kept where they are few."""
    return _few_drawn(samples) if samples <= _FEW else _resamples(samples)


def _resamples(samples: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)  # the report of one job is the same each time
    for _ in range(_RESAMPLES // 50):
        drawn = torch.randint(samples, (50, samples), generator=generator)
        yield torch.zeros(50, samples, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(50, samples, dtype=torch.float64)
        )


def _finite(value: float) -> float:
    """JSON has no infinity: what is beyond all measure is written as the largest float32. It is never NaN."""
    if math.isnan(value):
        raise ValueError("NaN is no score")
    return min(max(value, -3.4e38), 3.4e38)
