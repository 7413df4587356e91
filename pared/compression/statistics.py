"""Student's paired t-test, written out: scipy's takes most of a second to import, which each child would do anew."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def paired_t(differences: NDArray[np.floating[Any]]) -> float:
    """Two-sided p-value (Student 1908) that a mean difference as large comes by chance.

    Args:
        differences: of the pairs, (N,). Without any, and with some that are not finite, there is no evidence: 1.
    """
    n = len(differences) - 1
    if n < 1 or not differences.any() or not np.isfinite(differences).all():
        return 1.0
    error = float(differences.std(ddof=1)) / math.sqrt(n + 1)
    t = float(differences.mean()) / error if error else math.inf
    square = t * t
    if not square or math.isnan(square):
        return 1.0
    if math.isinf(square):
        return 0.0
    # Both tails of the t distribution with n degrees of freedom: I_x(n/2, 1/2).
    a, b, x, y = n / 2, 0.5, n / (n + square), square / (n + square)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, y) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), evaluated forwards (Lentz 1976)."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            c, d = 1 + term / c, 1 / (1 + term * d)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
