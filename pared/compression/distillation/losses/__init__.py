"""The losses of distillation as pure functions: of answers, and of inner layers."""

from pared.compression.distillation.losses.features import activity, attention, cosine, hint, relational
from pared.compression.distillation.losses.outputs import (
    decoupled,
    dist,
    knowledge,
    output_mse,
    softened_kl,
    with_labels,
)

__all__ = [
    "activity",
    "attention",
    "cosine",
    "decoupled",
    "dist",
    "hint",
    "knowledge",
    "output_mse",
    "relational",
    "softened_kl",
    "with_labels",
]
