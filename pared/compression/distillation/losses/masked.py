"""Means over the rows that count, and numbers in the place of the −inf by which a teacher masks classes."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = -1e9  # of a masked logit: e^(z / T) is 0 in every type, and differences stay finite


def mean_of(rows: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of the rows (P,) that count, (P,) bool; 0 where none does. None: all count."""
    if counted is None:
        return rows.mean()
    return torch.where(counted, rows, 0.0).sum() / counted.sum().clamp_min(1)


def known_of(teacher: Tensor) -> Tensor:
    """Which numbers the teacher says something with, bool: all but −inf, by which it masks classes."""
    return teacher != -torch.inf


def with_zeros(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with 0 where the teacher masks, so that their distance has nothing there, not even a gradient."""
    masked = ~known_of(teacher)
    return student.masked_fill(masked, 0.0), teacher.masked_fill(masked, 0.0)


def with_least(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of which the softmax is the same, with finite logarithms: of a masked class its probability is 0 still.

    A finite logit of the student stays, for it learns to give such a class nothing.
    """
    masked = ~known_of(teacher)
    return student.masked_fill(masked & (student == -torch.inf), _LEAST), teacher.masked_fill(masked, _LEAST)


def any_known(teacher: Tensor) -> Tensor:
    """Which rows (P, …) -> (P,) bool hold a number: the others say nothing, and are left out."""
    return known_of(teacher).reshape(len(teacher), -1).any(1)


def both(counted: Tensor | None, also: Tensor) -> Tensor:
    """Which rows count for two reasons."""
    return also if counted is None else counted & also
