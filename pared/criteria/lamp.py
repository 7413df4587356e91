"""LAMP (layer-adaptive magnitude pruning): squares as shares of the larger ones, so that layers compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pared.criteria.base import Criterion

if TYPE_CHECKING:
    from torch import Tensor


def share_of_larger(squares: Tensor) -> Tensor:
    """Each entry over the sum of all that are no smaller; the largest is 1. Zeros stay zero."""
    import torch

    ordered, order = squares.flatten().sort(stable=True)
    rest = ordered.double().flip(0).cumsum(0).flip(0)
    shares = torch.empty_like(rest)
    shares[order] = torch.where(ordered > 0, ordered.double() / rest, 0.0)
    return shares.reshape(squares.shape)


CRITERION = Criterion(
    name="lamp",
    title="LAMP",
    formula="Σw² over the Σw² of all channels of the group that are no smaller",
    paper="Lee et al. 2021, arXiv:2010.07611",
    phrase="share of larger ones",
    position=30,
    channels=lambda channels: share_of_larger(channels.sums(lambda weight: weight.values.square())),
    weights=lambda weight: share_of_larger(weight.values.float().cpu().square()),
)
