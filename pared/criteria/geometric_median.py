"""Geometric median: a channel close to all others can be replaced by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pared.criteria.base import Channels, Criterion

if TYPE_CHECKING:
    from torch import Tensor


def _distances(channels: Channels) -> Tensor:
    import torch

    rows = channels.rows()
    return torch.cdist(rows, rows).sum(dim=1)


CRITERION = Criterion(
    name="geometric_median",
    title="geometric median (FPGM)",
    formula="Σ_j ‖w − w_j‖ over the channels j of the group",
    paper="He et al. 2019, arXiv:1811.00250",
    phrase="distance from the others",
    position=40,
    channels=_distances,
)
