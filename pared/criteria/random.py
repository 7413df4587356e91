"""Random: the baseline that every other criterion has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pared.criteria.base import Channels, Criterion, ResidualBlock, WeightTensor

if TYPE_CHECKING:
    from torch import Tensor


def _of_channels(channels: Channels) -> Tensor:
    import torch

    return torch.rand(channels.units, generator=channels.generator)


def _of_weights(weight: WeightTensor) -> Tensor:
    import torch

    drawn = torch.rand(weight.values.shape, generator=weight.generator).add_(1e-6)  # a living weight scores above 0
    return drawn.masked_fill_(weight.values.cpu() == 0, 0.0)


def _of_block(block: ResidualBlock) -> Tensor:
    import torch

    return torch.rand((), generator=block.generator, dtype=torch.float64)


CRITERION = Criterion(
    name="random",
    title="random",
    formula="drawn from [0, 1) by the job's seed",
    phrase="any",
    position=90,
    channels=_of_channels,
    weights=_of_weights,
    residual_blocks=_of_block,
)
