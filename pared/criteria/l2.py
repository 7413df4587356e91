"""L2 norm: as magnitude, but large weights count for more."""

from __future__ import annotations

from pared.criteria.base import Criterion

CRITERION = Criterion(
    name="l2",
    title="L2 norm",
    formula="√Σw²",
    paper="He et al. 2018, arXiv:1808.06866",
    phrase="√Σw²",
    position=20,
    channels=lambda channels: channels.sums(lambda weight: weight.values.square()).sqrt(),
    weights=lambda weight: weight.values.abs().float(),
    residual_blocks=lambda block: block.layer_mean(lambda values: values.square().mean().sqrt()),
)
