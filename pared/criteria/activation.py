"""Activation, for single weights known as Wanda: a weight matters as much as what it multiplies is large."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pared.criteria.base import Criterion, WeightTensor
from pared.errors import NothingToPrune

if TYPE_CHECKING:
    from torch import Tensor


def _product(weight: WeightTensor) -> Tensor:
    if weight.input_norms is None:
        raise NothingToPrune(
            f"The criterion activation needs to see what a layer multiplies, which is known of linear layers and "
            f"convolutions; {weight.name} is of another kind. Exclude its layer, or use another criterion."
        )
    return weight.values.abs().cpu() * weight.input_norms


CRITERION = Criterion(
    name="activation",
    title="activation (Wanda)",
    formula="Σ|w|·‖x‖, x what the weight multiplies",
    paper="Sun et al. 2024, arXiv:2306.11695",
    phrase="Σ|w|·‖x‖",
    position=60,
    needs=frozenset({"layer inputs"}),
    channels=lambda channels: channels.sums(_product),
    weights=lambda weight: _product(weight).float(),
    residual_blocks=lambda block: block.contribution(),
)
