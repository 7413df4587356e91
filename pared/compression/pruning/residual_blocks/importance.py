"""Importance of residual blocks: runs a criterion over them, as `pruning.importance` does over channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from pared.compression.pruning.importance import CalibrationStatistics, TensorOf, Weights, tensors_of_batches
from pared.compression.pruning.residual_blocks.blocks import ResidualBlock, ResidualBlocks
from pared.compression.pruning.residual_blocks.whole_layers import Layers
from pared.criteria import CRITERIA, WeightTensor


def block_scores(
    blocks: Sequence[ResidualBlock],
    criterion: str,
    weights: Weights,
    *,
    residual: ResidualBlocks | Layers,
    removed_before: Sequence[ResidualBlock] = (),
    statistics: CalibrationStatistics | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How much each block matters, float64 of shape (blocks,); by gradients, the mean over the batches.

    Args:
        criterion: the name of one that scores residual blocks.
        removed_before: blocks that add nothing any more.
        statistics: for criteria that need data.
        generator: for `random`.
    """
    chosen = CRITERIA[criterion]
    assert chosen.residual_blocks is not None  # noqa: S101 - the spec refuses a criterion that does not score them

    @cache  # one pass of the samples for all blocks, and none for a criterion that does not ask
    def contributions() -> Tensor:
        assert statistics is not None  # noqa: S101 - the spec asks for data
        return residual.runner.contributions(list(statistics.inputs()), blocks, removed_before, weights)

    totals, batches = torch.zeros(len(blocks), dtype=torch.float64), 0
    for tensor_of in tensors_of_batches(chosen, weights, statistics, generator):
        batches += 1
        for index, block in enumerate(blocks):
            contribution = partial(_entry, contributions, index)
            totals[index] += chosen.residual_blocks(_Block(block, tensor_of, contribution, generator))
    return totals / max(batches, 1)


def _entry(values: Callable[[], Tensor], index: int) -> float:
    return float(values()[index])


class _Block:
    """A residual block as a criterion sees it (`pared.criteria.ResidualBlock`)."""

    def __init__(
        self,
        block: ResidualBlock,
        tensor_of: TensorOf,
        contribution: Callable[[], float],
        generator: torch.Generator | None,
    ) -> None:
        self._tensors = [tensor_of(name) for name in block.tensors]
        self.contribution, self.generator = contribution, generator

    def layer_mean(self, value: Callable[[Tensor], Tensor]) -> float:
        matrices = [tensor.values.double() for tensor in self._tensors if tensor.values.dim() >= 2]
        scaled = [float(value(matrix)) * math.sqrt(matrix[0].numel()) for matrix in matrices]
        return sum(scaled) / len(matrices)

    def entries(self, value: Callable[[WeightTensor], Tensor]) -> Tensor:
        return torch.cat([value(tensor).flatten() for tensor in self._tensors]).double()
