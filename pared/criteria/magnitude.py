"""Magnitude, or L1 norm: what has small weights matters little."""

from __future__ import annotations

from pared.criteria.base import Criterion

CRITERION = Criterion(
    name="magnitude",
    title="magnitude (L1)",
    formula="Σ|w|",
    paper="Li et al. 2017, arXiv:1608.08710",
    phrase="Σ|w|",
    position=10,
    channels=lambda channels: channels.sums(lambda weight: weight.values.abs()),
    weights=lambda weight: weight.values.abs().float(),
    residual_blocks=lambda block: block.layer_mean(lambda values: values.abs().mean()),
)
