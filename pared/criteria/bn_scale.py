"""Batch-norm scale, also called network slimming: a channel that its batch norm scales down says little."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pared.criteria.base import Channels, Criterion
from pared.errors import NothingToPrune

if TYPE_CHECKING:
    from torch import Tensor


def _scales(channels: Channels) -> Tensor:
    if not channels.has_batch_norm:
        raise NothingToPrune(
            f"The criterion bn_scale needs a batch norm after every layer that loses channels; there is none after "
            f"{', '.join(channels.layers)}. Exclude these layers, or use another criterion."
        )
    return channels.batch_norm_sums(lambda scale: scale.values.abs())


CRITERION = Criterion(
    name="bn_scale",
    title="batch-norm scale",
    formula="Σ|γ| over the batch norms that scale the channel",
    paper="Liu et al. 2017, arXiv:1708.06519",
    phrase="batch-norm scale",
    position=50,
    needs=frozenset({"batch norms"}),
    channels=_scales,
)
