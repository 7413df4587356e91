"""Makes masks of single weights: chosen by importance one by one, n of m neighbours, or in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pared.compression.names import layer_of, matching, no_match, tied_names, weight_layers
from pared.compression.pruning.importance import CalibrationStatistics, weight_scores
from pared.compression.pruning.schedules import Amounts
from pared.errors import NothingToPrune
from pared.specs import Criterion, Scope
from pared.wording import shortened


class Masks:
    """Which weights live: tensor name -> bool tensor of its shape, True where kept."""

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        self.kept = dict(kept)

    def apply(self, module: nn.Module) -> None:
        """Set every pruned weight to exactly zero."""
        with torch.no_grad():
            for name, parameter in self._of(module):
                # Filled, for a product would keep the sign of zero, and NaN; a pruned weight is +0.
                parameter.masked_fill_(~self.kept[name].to(parameter.device), 0.0)

    def lost(self, module: nn.Module) -> dict[str, Tensor]:
        """Name of each weight that is to lose something -> the weight where it does, zero elsewhere."""
        parts = {name: parameter.detach().masked_fill(self.kept[name], 0) for name, parameter in self._of(module)}
        return {name: part for name, part in parts.items() if part.any()}

    def mask_gradients(self, module: nn.Module) -> None:
        """Zero the gradients of pruned weights, so that momentum never learns of them."""
        for name, parameter in self._of(module):
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~self.kept[name].to(parameter.device), 0.0)

    def sparsity(self) -> float:
        """Share of pruned weights among those that the masks cover."""
        total = sum(mask.numel() for mask in self.kept.values())
        return self.pruned() / total if total else 0.0

    def pruned(self) -> int:
        """How many weights are pruned."""
        return sum(self.pruned_of_each())

    def pruned_of_each(self) -> tuple[int, ...]:
        """The same for each tensor."""
        return tuple(int((~mask).sum()) for mask in self.kept.values())

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return dict(self.kept)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Masks:
        """Masks from a checkpoint."""
        return cls(state)

    def _of(self, module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in module.named_parameters() if name in self.kept)


def weight_masks(module: nn.Module, *, amount: Amounts | float, regrow: float = 0.0, **choice: Any) -> Masks:
    """Masks that remove the `amount` lowest-scored single weights or blocks, exactly round(amount · n) of n.

    Args:
        regrow: as in `PrunableWeights.masks`.
        choice: as `PrunableWeights` takes it.

    Raises:
        NothingToPrune: no layer matches, or the model has no weights.
    """
    return PrunableWeights(module, **choice).masks(amount, regrow)


class PrunableWeights:
    """The weights of a module that can go, one by one or in blocks, scored once for masks of any amount.

    Biases and norms are never pruned: eligible are float tensors of two or more dimensions in layers
    that match under one of their names and are excluded under none. A pruned weight's score is 0, so a later, larger
    amount keeps what an earlier one removed.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        criterion: Criterion = "magnitude",
        scope: Scope = "global",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        left_out: Mapping[str, str] | None = None,
        allowed: Mapping[str, Tensor] | None = None,
        block: tuple[int, int] = (1, 1),
        statistics: CalibrationStatistics | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Find and score the weights.

        Args:
            left_out: layer name -> why no weights go there.
            allowed: tensor name -> where it may be other than zero at all, whatever is chosen.
            block: rows and columns of the rectangles that go together, in each weight as a matrix of its outputs by
                the rest. A block scores the mean of its weights; at the edges it may be smaller.

        Raises:
            NothingToPrune: no layer matches, or the model has no weights.
        """
        self._scope = scope
        self._names_of = tied_names(module)
        self._weights = _eligible(module, include, exclude, left_out)
        self._allowed = allowed
        self._blocks = {name: _Blocks(weight.shape, block) for name, weight in self._weights.items()}
        scores = weight_scores(_values(self._weights), criterion, statistics=statistics, generator=generator)
        self._scores = {name: self._blocks[name].means(scores[name]) for name in self._weights}

    def masks(self, amount: Amounts | float, regrow: float = 0.0) -> Masks:
        """Masks that remove the `amount` lowest-scored.

        Args:
            regrow: share of the living weights that are removed beyond `amount`, while as many removed ones with the
                steepest gradient live again, at zero. Evci et al. 2020 (RigL), arXiv:1911.11134.
        """
        amounts = amount if isinstance(amount, Amounts) else Amounts(amount)
        scores, blocks = self._scores, self._blocks
        slopes = {name: blocks[name].means(_slope(weight)) for name, weight in self._weights.items()} if regrow else {}
        kept = {}
        for names in [list(scores)] if self._scope == "global" else [[name] for name in scores]:
            pooled = np.concatenate([scores[name].ravel() for name in names])
            share = amounts.default
            if self._scope == "layer":
                share = amounts.of([layer_of(alias) for alias in self._names_of[names[0]]])
            count = round(share * len(pooled))
            back = round(regrow * (len(pooled) - count))
            alive = ~lowest(pooled, count + back)
            if back:
                steepest = np.concatenate([slopes[name].ravel() for name in names])
                alive |= lowest(np.where(alive, np.inf, -steepest), back)
            ends = np.cumsum([scores[name].size for name in names])[:-1]
            for name, part in zip(names, np.split(alive, ends), strict=True):
                kept[name] = blocks[name].spread(part.reshape(scores[name].shape))
        return _only_allowed(kept, self._allowed)


def n_m_masks(
    module: nn.Module,
    n: int,
    m: int,
    *,
    criterion: Criterion = "magnitude",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    left_out: Mapping[str, str] | None = None,
    allowed: Mapping[str, Tensor] | None = None,
    statistics: CalibrationStatistics | None = None,
    generator: torch.Generator | None = None,
) -> Masks:
    """Masks that keep the n highest-scored of every m weights that are neighbours along the layer's inputs.

    Mishra et al. 2021, arXiv:2104.08378. Inputs are the second dimension of a weight, which hardware with N:M sparsity
    multiplies along.

    Args:
        left_out, allowed: as `PrunableWeights` takes them.

    Raises:
        NothingToPrune: no layer matches, or the inputs of one that does are no multiple of m.
    """
    eligible = _eligible(module, include, exclude, left_out)
    odd = [f"{layer_of(name)} ({weight.shape[1]})" for name, weight in eligible.items() if weight.shape[1] % m]
    if odd:
        raise NothingToPrune(
            f"{n} of {m} need a layer whose inputs are a multiple of {m}. These are not: {shortened(odd, 20)}. "
            "Exclude them."
        )
    scores = weight_scores(_values(eligible), criterion, statistics=statistics, generator=generator)
    kept = {}
    for name, score in scores.items():
        neighbours = score.movedim(1, -1).contiguous()
        rows = neighbours.reshape(-1, m)
        alive = torch.ones_like(rows, dtype=torch.bool)
        alive.scatter_(1, rows.argsort(dim=1, stable=True)[:, : m - n], False)
        kept[name] = alive.reshape(neighbours.shape).movedim(-1, 1).contiguous()
    return _only_allowed(kept, allowed)


def zeros_held(module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Where those of the named parameters that the module has are not zero: name -> bool tensor."""
    parameters = dict(module.named_parameters())
    return {name: (parameters[name] != 0).cpu() for name in sorted(names) if name in parameters}


def zero_share(
    module: nn.Module,
    *,
    scope: Scope = "global",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    left_out: Mapping[str, str] | None = None,
) -> float:
    """The share of eligible weights that are zero; with the scope `layer` that of the layer with the fewest zeros.

    Raises:
        NothingToPrune: as `weight_masks`.
    """
    eligible = _eligible(module, include, exclude, left_out).values()
    sizes = np.array([weight.numel() for weight in eligible])
    zeros = sizes - np.array([int(weight.count_nonzero()) for weight in eligible])
    return float(zeros.sum() / sizes.sum() if scope == "global" else (zeros / sizes).min())


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """True for exactly `count` of the scores (1-D), the lowest; of equal ones the first."""
    count = min(max(count, 0), len(scores))
    if not count:
        return np.zeros(len(scores), dtype=bool)
    # What was pruned before has the lowest score and may be most of it: quickly told apart, slowly partitioned.
    threshold = np.fmin.reduce(scores)
    above = scores[~(scores <= threshold)]
    rank = count - (len(scores) - len(above))
    if rank > 0:
        threshold = np.partition(above, rank - 1)[rank - 1]
    mask: np.ndarray = scores < threshold
    ties = np.flatnonzero(scores == threshold)
    mask[ties[: count - int(mask.sum())]] = True
    return mask


class _Blocks:
    """A weight of any shape as a matrix, outputs by the rest, cut into rectangles."""

    def __init__(self, shape: Sequence[int], block: tuple[int, int]) -> None:
        self._shape, self._block = tuple(shape), block
        self._matrix = shape[0], int(np.prod(shape[1:], dtype=np.int64))
        self._starts = [np.arange(0, size, step) for size, step in zip(self._matrix, block, strict=True)]

    def means(self, values: Tensor) -> np.ndarray:
        """The mean of each block, (block rows, block columns); for single weights the values themselves."""
        matrix = values.detach().cpu().reshape(self._matrix).numpy()
        if self._block == (1, 1):
            return matrix
        sums, sizes = (
            np.add.reduceat(np.add.reduceat(each, self._starts[0], axis=0), self._starts[1], axis=1)
            for each in (matrix.astype(np.float64), np.ones(self._matrix))
        )
        return np.asarray(sums / sizes)

    def spread(self, of_blocks: np.ndarray) -> Tensor:
        """A value for each weight from one for each block: a tensor of the weight's shape."""
        rows, columns = self._block
        full = np.repeat(np.repeat(of_blocks, rows, axis=0), columns, axis=1)[: self._matrix[0], : self._matrix[1]]
        return torch.from_numpy(np.ascontiguousarray(full)).reshape(self._shape)


def _only_allowed(kept: dict[str, Tensor], allowed: Mapping[str, Tensor] | None) -> Masks:
    for name, other in (allowed or {}).items():
        kept[name] = kept[name] & other if name in kept else other
    return Masks(kept)


def _eligible(
    module: nn.Module, include: Sequence[str], exclude: Sequence[str], left_out: Mapping[str, str] | None
) -> dict[str, nn.Parameter]:
    matched = {
        name: parameter
        for name, parameter in matching(module, include, exclude).items()
        if parameter.dim() >= 2 and parameter.is_floating_point()
    }
    eligible = {name: parameter for name, parameter in matched.items() if layer_of(name) not in (left_out or {})}
    if matched and not eligible:
        reasons = "; ".join(f"{layer}: {why}" for layer, why in (left_out or {}).items())
        raise NothingToPrune(
            "All weights that match are computed while the model runs, so that zeros would not stay zeros "
            f"({reasons}). Take the parametrizations off before saving the model."
        )
    if not eligible:
        names = sorted(set(weight_layers(module).values()))
        raise NothingToPrune(no_match("weights", names, include, exclude))
    return eligible


def _values(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in parameters.items()}


def _slope(parameter: nn.Parameter) -> Tensor:
    return torch.zeros(parameter.shape) if parameter.grad is None else parameter.grad.abs()
