"""Criteria: how much each channel, or each single weight, matters. The lowest go first.

A criterion turns a group of channels into one score for each, shape (units,), from the group's incoming weights: all
weights of the layers that make its channels. Some also look at how the loss changes with the weights, which takes data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pared.compression.coupling import ChannelGroup
from pared.errors import ModelFailed, NothingToPrune
from pared.specs import Criterion

Weights = Mapping[str, Tensor]
"""Name -> tensor, of a model's parameters or of their gradients."""


@dataclass(frozen=True)
class Evidence:
    """What training samples say of the weights; gathered only where a criterion asks.

    `gradients`: of the loss, one mapping for each of some batches. `input_norms`: weight name -> ‖x‖ of what each of
    its entries multiplies. `inputs`: of the model, those of each of some batches.
    """

    gradients: Callable[[], Iterable[Weights]]
    input_norms: Callable[[], Weights]
    inputs: Callable[[], Iterable[Sequence[Tensor]]] = tuple


# -- channels -----------------------------------------------------------------------------------


def channel_scores(
    groups: Sequence[ChannelGroup],
    criterion: Criterion,
    weights: Weights,
    *,
    scales: Iterable[str] = (),
    evidence: Evidence | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """For each group the scores of its channels, float64 of shape (units,).

    Args:
        scales: names of the scales of batch norms, for `bn_scale`.
        evidence: for `activation`, `taylor` and `hessian`.
        generator: for `random`.

    Raises:
        NothingToPrune: `bn_scale` finds a group without a batch norm, or `activation` a weight of unknown inputs.
        ModelFailed: a score is NaN.
    """
    scores = _channel_scores(groups, criterion, weights, scales, evidence, generator)
    for group, found in zip(groups, scores, strict=True):
        _refuse_nan(found, criterion, ", ".join(group.layers))
    return scores


def _refuse_nan(scores: Tensor, criterion: Criterion, where: str) -> None:
    """What has no rank can be neither kept nor removed by it."""
    if bool(scores.isnan().any()):
        raise ModelFailed(
            f"The criterion {criterion} comes to NaN for {where}: its weights, or the gradients or activations that "
            "the data gives them, are no finite numbers. Exclude it, or use the criterion magnitude."
        )


def _channel_scores(
    groups: Sequence[ChannelGroup],
    criterion: Criterion,
    weights: Weights,
    scales: Iterable[str],
    evidence: Evidence | None,
    generator: torch.Generator | None,
) -> list[Tensor]:
    if criterion == "random":
        return [torch.rand(group.units, generator=generator) for group in groups]
    if criterion == "bn_scale":
        return [bn_scale(group, weights, scales) for group in groups]
    if criterion in _FROM_WEIGHTS:
        return [_FROM_WEIGHTS[criterion](group, weights) for group in groups]
    assert evidence is not None  # noqa: S101 - the spec asks for data
    if criterion == "activation":
        norms = evidence.input_norms()
        return [activation(group, weights, norms) for group in groups]
    totals = [torch.zeros(group.units, dtype=torch.float64) for group in groups]
    batches = 0
    for gradient in evidence.gradients():
        batches += 1
        for index, group in enumerate(groups):
            totals[index] += _FROM_GRADIENTS[criterion](group, weights, gradient)
    return [total / max(batches, 1) for total in totals]


def magnitude(group: ChannelGroup, weights: Weights) -> Tensor:
    """s = Σ |w|. Li et al. 2017, arXiv:1608.08710."""
    return _summed(group, lambda name: weights[name].abs())


def l2(group: ChannelGroup, weights: Weights) -> Tensor:
    """s = √Σ w². He et al. 2018, arXiv:1808.06866."""
    return _squares(group, weights).sqrt()


def lamp(group: ChannelGroup, weights: Weights) -> Tensor:
    """s = Σw² over the Σw² of all channels of the group that are no smaller. Lee et al. 2021, arXiv:2010.07611."""
    return share_of_larger(_squares(group, weights))


def geometric_median(group: ChannelGroup, weights: Weights) -> Tensor:
    """s = Σ_j ‖w − w_j‖ over the group: what the others say too goes. He et al. 2019, arXiv:1811.00250."""
    rows = torch.cat([_rows(group, name, dim, weights[name]) for name, dim in group.out_axes], dim=1)
    return torch.cdist(rows, rows).sum(dim=1)


def bn_scale(group: ChannelGroup, weights: Weights, scales: Iterable[str]) -> Tensor:
    """s = Σ |γ| over the batch norms that scale the channel. Liu et al. 2017, arXiv:1708.06519."""
    axes = [(name, 0) for name in scales if (name, 0) in group.members]
    if not axes:
        raise NothingToPrune(
            f"The criterion bn_scale needs a batch norm after every layer that loses channels; there is none after "
            f"{', '.join(group.layers)}. Exclude these layers, or use another criterion."
        )
    return _summed(group, lambda name: weights[name].abs(), axes)


def activation(group: ChannelGroup, weights: Weights, norms: Weights) -> Tensor:
    """s = Σ |w|·‖x‖, x what the weight multiplies. Sun et al. 2024 (Wanda), arXiv:2306.11695."""
    return _summed(group, lambda name: weights[name].abs() * _norm(norms, name))


def taylor(group: ChannelGroup, weights: Weights, gradient: Weights) -> Tensor:
    """s = (Σ g·w)², of a batch: how the loss changes without it. Molchanov et al. 2019, arXiv:1906.10771."""
    return _summed(group, lambda name: gradient[name] * weights[name]).square()


def hessian(group: ChannelGroup, weights: Weights, gradient: Weights) -> Tensor:
    """s = ½ Σ h·w², h the diagonal of the Hessian. LeCun et al. 1989 (Optimal Brain Damage); h ≈ g², of a batch."""
    return _summed(group, lambda name: (gradient[name] * weights[name]).square()) / 2


_FROM_WEIGHTS: dict[str, Callable[[ChannelGroup, Weights], Tensor]] = {
    "magnitude": magnitude,
    "l2": l2,
    "lamp": lamp,
    "geometric_median": geometric_median,
}
_FROM_GRADIENTS: dict[str, Callable[[ChannelGroup, Weights, Weights], Tensor]] = {"taylor": taylor, "hessian": hessian}
GRADIENT_CRITERIA = tuple(_FROM_GRADIENTS)
"""Those that look at gradients."""


def _norm(norms: Weights, name: str) -> Tensor:
    if name not in norms:
        raise NothingToPrune(
            f"The criterion activation needs to see what a layer multiplies, which is known of linear layers and "
            f"convolutions; {name} is of another kind. Exclude its layer, or use another criterion."
        )
    return norms[name]


def _squares(group: ChannelGroup, weights: Weights) -> Tensor:
    return _summed(group, lambda name: weights[name].square())


def _summed(
    group: ChannelGroup, value: Callable[[str], Tensor], axes: Sequence[tuple[str, int]] | None = None
) -> Tensor:
    """For each channel the sum of a tensor's entries over its incoming weights, in all layers that make it."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for name, dim in axes or group.out_axes:
        tensor = value(name).detach().double().cpu()
        per_index = tensor.sum(dim=[d for d in range(tensor.dim()) if d != dim]) if tensor.dim() > 1 else tensor
        unit_of = torch.from_numpy(group.members[name, dim])
        total.index_add_(0, unit_of[unit_of >= 0], per_index[unit_of >= 0])
    return total


def _rows(group: ChannelGroup, name: str, dim: int, tensor: Tensor) -> Tensor:
    """Each channel's incoming weights in a row, shape (units, weights); several indices of a channel in their order."""
    unit_of = torch.from_numpy(group.members[name, dim])
    indices = torch.argsort(unit_of, stable=True)[int((unit_of < 0).sum()) :]
    return tensor.detach().double().cpu().movedim(dim, 0)[indices].reshape(group.units, -1)


# -- single weights -----------------------------------------------------------------------------


def weight_scores(
    weights: Weights,
    criterion: Criterion,
    *,
    evidence: Evidence | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Name -> score of each weight, of the tensor's shape; already pruned weights (exact zeros) come first.

    `magnitude` and `l2` are |w|, `lamp` is of w² within its tensor, `activation` is |w|·‖x‖, `taylor` and `hessian` are
    the sum of (g·w)², of each batch or of the slopes of the training that runs.

    Raises:
        NothingToPrune: `activation` finds a weight of unknown inputs.
        ModelFailed: a score is NaN.
    """
    scores = _weight_scores(weights, criterion, evidence, generator)
    for name, found in scores.items():
        _refuse_nan(found, criterion, name)
    return scores


def _weight_scores(
    weights: Weights, criterion: Criterion, evidence: Evidence | None, generator: torch.Generator | None
) -> dict[str, Tensor]:
    if criterion in ("magnitude", "l2"):
        return {name: weight.abs().float().cpu() for name, weight in weights.items()}
    if criterion == "lamp":
        return {name: share_of_larger(weight.float().cpu().square()) for name, weight in weights.items()}
    if criterion == "random":
        return {
            name: torch.rand(weight.shape, generator=generator).add_(1e-6).masked_fill_(weight.cpu() == 0, 0.0)
            for name, weight in weights.items()
        }
    assert evidence is not None  # noqa: S101 - the spec asks for data
    if criterion == "activation":
        norms = evidence.input_norms()
        return {name: (weight.abs().cpu() * _norm(norms, name)).float() for name, weight in weights.items()}
    scores = {name: torch.zeros(weight.shape) for name, weight in weights.items()}
    for gradient in evidence.gradients():
        for name, weight in weights.items():
            scores[name] += (gradient[name].to(weight.device) * weight).square().float().cpu()
    return scores


def share_of_larger(squares: Tensor) -> Tensor:
    """Each entry over the sum of all that are no smaller (LAMP); the largest is 1. Zeros stay zero."""
    ordered, order = squares.flatten().sort(stable=True)
    rest = ordered.double().flip(0).cumsum(0).flip(0)
    shares = torch.empty_like(rest)
    shares[order] = torch.where(ordered > 0, ordered.double() / rest, 0.0)
    return shares.reshape(squares.shape)
