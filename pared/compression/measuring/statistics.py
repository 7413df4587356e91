"""Student's paired t-test, of what scipy loads in a tenth of the time that its statistics take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr


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
