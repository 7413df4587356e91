"""Taylor: how the loss changes without a channel, by its slope."""

from __future__ import annotations

from pared.criteria.base import Criterion

CRITERION = Criterion(
    name="taylor",
    title="first-order Taylor expansion",
    formula="(Σ g·w)², g the gradient of the loss; the mean over batches",
    paper="Molchanov et al. 2019, arXiv:1906.10771",
    phrase="change of the loss by its slope",
    position=70,
    needs=frozenset({"gradients"}),
    channels=lambda channels: channels.sums(lambda weight: weight.loss_change).square(),
    weights=lambda weight: weight.loss_change.square().float(),
    residual_blocks=lambda block: block.entries(lambda weight: weight.loss_change).sum().square(),
)
