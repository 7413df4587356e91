"""Hessian (Optimal Brain Damage): how the loss changes without a channel, by its curvature."""

from __future__ import annotations

from pared.criteria.base import Criterion

CRITERION = Criterion(
    name="hessian",
    title="diagonal Hessian (Optimal Brain Damage)",
    formula="½ Σ h·w², h ≈ g² the diagonal of the Hessian; the mean over batches",
    paper="LeCun et al. 1989, NIPS 2",
    phrase="change of the loss by its curvature",
    position=80,
    needs=frozenset({"gradients"}),
    channels=lambda channels: channels.sums(lambda weight: weight.loss_change.square()) / 2,
    weights=lambda weight: weight.loss_change.square().float(),
    residual_blocks=lambda block: block.entries(lambda weight: weight.loss_change).square().sum() / 2,
)
