"""Importance of channels and single weights: runs a criterion over them, with what it needs of training samples.

What a criterion computes is in `pared.criteria`. Scores are on the CPU; the lowest go first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pared.compression.coupling import ChannelGroup
from pared.criteria import CRITERIA, Criterion, WeightTensor
from pared.errors import ModelFailed

Weights = Mapping[str, Tensor]
"""Name -> tensor, of a model's parameters or of their gradients."""
TensorOf = Callable[[str], WeightTensor]
"""The weights of this name, with what a batch says of them."""


@dataclass(frozen=True)
class CalibrationStatistics:
    """What training samples say of the weights; computed only where a criterion asks.

    `gradients`: of the loss, one mapping for each of some batches. `input_norms`: weight name -> ‖x‖ of what each of
    its entries multiplies. `inputs`: of the model, those of each of some batches.
    """

    gradients: Callable[[], Iterable[Weights]]
    input_norms: Callable[[], Weights]
    inputs: Callable[[], Iterable[Sequence[Tensor]]] = tuple


def channel_scores(
    groups: Sequence[ChannelGroup],
    criterion: str,
    weights: Weights,
    *,
    scales: Iterable[str] = (),
    statistics: CalibrationStatistics | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """For each group the scores of its channels, float64 of shape (units,); by gradients, the mean over the batches.

    Args:
        criterion: the name of one that scores channels.
        scales: names of the scales of batch norms, for `bn_scale`.
        statistics: for criteria that need data.
        generator: for `random`.

    Raises:
        NothingToPrune: `bn_scale` finds a group without a batch norm, or `activation` a weight of unknown inputs.
        ModelFailed: a score is NaN.
    """
    chosen, scales = CRITERIA[criterion], list(scales)
    assert chosen.channels is not None  # noqa: S101 - the spec refuses a criterion that does not score them
    totals, batches = [torch.zeros(group.units, dtype=torch.float64) for group in groups], 0
    for tensor_of in tensors_of_batches(chosen, weights, statistics, generator):
        batches += 1
        for index, group in enumerate(groups):
            totals[index] += chosen.channels(_Channels(group, tensor_of, scales, generator))
    scores = [total / max(batches, 1) for total in totals]
    for group, of_group in zip(groups, scores, strict=True):
        _refuse_nan(of_group, criterion, ", ".join(group.layers))
    return scores


def weight_scores(
    weights: Weights,
    criterion: str,
    *,
    statistics: CalibrationStatistics | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Name -> score of each weight, of the tensor's shape; already pruned weights (exact zeros) come first.

    By gradients, it is the sum over the batches, or over the slopes of the training that runs.

    Raises:
        NothingToPrune: `activation` finds a weight of unknown inputs.
        ModelFailed: a score is NaN.
    """
    chosen = CRITERIA[criterion]
    assert chosen.weights is not None  # noqa: S101 - the spec refuses a criterion that does not score them
    scores: dict[str, Tensor] = {}
    for tensor_of in tensors_of_batches(chosen, weights, statistics, generator):
        for name in weights:
            of_batch = chosen.weights(tensor_of(name)).cpu()
            scores[name] = scores[name] + of_batch if name in scores else of_batch
    for name, of_tensor in scores.items():
        _refuse_nan(of_tensor, criterion, name)
    return scores or {name: torch.zeros(weight.shape) for name, weight in weights.items()}


def tensors_of_batches(
    criterion: Criterion,
    weights: Weights,
    statistics: CalibrationStatistics | None,
    generator: torch.Generator | None,
) -> Iterator[TensorOf]:
    """The weights with the gradients of each batch where the criterion needs gradients, else once without any."""
    assert statistics is not None or not criterion.needs_data  # noqa: S101 - the spec asks for data
    norms = dict if statistics is None else cache(statistics.input_norms)
    batches = statistics.gradients() if statistics is not None and criterion.needs_gradients else [{}]
    for gradients in batches:
        yield _tensor_of(weights, gradients, norms, generator)


def _tensor_of(
    weights: Weights, gradients: Weights, norms: Callable[[], Weights], generator: torch.Generator | None
) -> TensorOf:
    return lambda name: WeightTensor(name, weights[name].detach(), gradients, norms, generator)


def _refuse_nan(scores: Tensor, criterion: str, where: str) -> None:
    """What has no rank can be neither kept nor removed by it."""
    if bool(scores.isnan().any()):
        raise ModelFailed(
            f"The criterion {criterion} comes to NaN for {where}: its weights, or the gradients or activations that "
            "the data gives them, are no finite numbers. Exclude it, or use the criterion magnitude."
        )


class _Channels:
    """A group of channels as a criterion sees it (`pared.criteria.Channels`)."""

    def __init__(
        self, group: ChannelGroup, tensor_of: TensorOf, scales: Iterable[str], generator: torch.Generator | None
    ) -> None:
        self.units, self.layers, self.generator = group.units, group.layers, generator
        self._group, self._tensor_of = group, tensor_of
        self._scales = [(name, 0) for name in scales if (name, 0) in group.members]
        self.has_batch_norm = bool(self._scales)

    def sums(self, value: Callable[[WeightTensor], Tensor]) -> Tensor:
        return self._sums(value, self._group.out_axes)

    def batch_norm_sums(self, value: Callable[[WeightTensor], Tensor]) -> Tensor:
        return self._sums(value, self._scales)

    def _sums(self, value: Callable[[WeightTensor], Tensor], axes: Sequence[tuple[str, int]]) -> Tensor:
        total = torch.zeros(self.units, dtype=torch.float64)
        for name, dim in axes:
            tensor = value(self._tensor_of(name)).double().cpu()
            per_index = tensor.sum(dim=[d for d in range(tensor.dim()) if d != dim]) if tensor.dim() > 1 else tensor
            unit_of = torch.from_numpy(self._group.members[name, dim])
            total.index_add_(0, unit_of[unit_of >= 0], per_index[unit_of >= 0])
        return total

    def rows(self) -> Tensor:
        return torch.cat([self._rows(name, dim) for name, dim in self._group.out_axes], dim=1)

    def _rows(self, name: str, dim: int) -> Tensor:
        """Of one tensor; several indices of a channel in their order."""
        unit_of = torch.from_numpy(self._group.members[name, dim])
        indices = torch.argsort(unit_of, stable=True)[int((unit_of < 0).sum()) :]
        return self._tensor_of(name).values.double().cpu().movedim(dim, 0)[indices].reshape(self.units, -1)
