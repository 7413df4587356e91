"""Scores that are a value of sums over samples, their intervals and how they compare."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pared.compression.tasks.base import TaskRules
from pared.compression.tasks.statistics import bootstrap_of_sums, jackknife_t
from pared.reports import Comparison, Interval


class SummedScore(TaskRules):
    """A task whose score is a value of the sums of some statistics of each sample."""

    @abstractmethod
    def statistics(self, condensed: Tensor, targets: Tensor) -> Tensor:
        """(N, S) in double, on the CPU."""

    @abstractmethod
    def value(self, sums: Tensor) -> Tensor:
        """The score of sums of statistics: (R, S) -> (R,)."""

    def score(self, condensed: Tensor, targets: Tensor) -> float:
        """The value of the sums over all samples."""
        return float(self.value(self.statistics(condensed, targets).sum(0, keepdim=True)))

    def interval(self, condensed: Tensor, targets: Tensor) -> Interval:
        """Of the bootstrap, over samples."""
        return bootstrap_of_sums(self.statistics(condensed, targets), self.value)

    def compare(self, before: Tensor, after: Tensor, targets: Tensor) -> Comparison:
        """The difference by the bootstrap, over samples, and a t-test of its pseudo-values."""
        first, second = (self.statistics(each, targets) for each in (before, after))
        both, size = torch.cat([first, second], 1), first.shape[1]

        def gained(sums: Tensor) -> Tensor:
            return self.value(sums[:, size:]) - self.value(sums[:, :size])

        return Comparison(
            quality_difference=bootstrap_of_sums(both, gained), p_value=jackknife_t(both, gained), test="jackknife_t"
        )


def broken(output: Tensor, expected: Tensor | None = None) -> Tensor:
    """Two columns (N, 2): NaN where a sample's outputs hold NaN, and infinity where they hold infinity; else 0.

    Args:
        expected: what lies beside numbers that are not finite there is left out.
    """
    flat = output.reshape(len(output), -1)
    known = torch.ones_like(flat, dtype=torch.bool) if expected is None else expected.reshape(flat.shape).isfinite()
    zero = torch.zeros(len(output), dtype=torch.float32, device=output.device)
    return torch.stack(
        [
            zero.masked_fill((flat.isnan() & known).any(1), torch.nan),
            zero.masked_fill((flat.isinf() & known).any(1), torch.inf),
        ],
        1,
    )


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where there is nothing."""
    return torch.where(whole > 0, part / whole.clamp_min(1e-300), torch.zeros_like(part))
