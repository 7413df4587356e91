"""Owns what a training exchanges between ranks: the start, each step's gradients, and the weights after each epoch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from pared.compression.ranks import Ranks


def mean_gradients(ranks: Ranks, learned: Sequence[nn.Parameter], value: Tensor | None, weight: float) -> Tensor:
    """Turn the gradients of each rank's share of a batch into those of the whole batch. Returns the loss of that.

    L = Σ w_r · L_r / Σ w_r over ranks r. A parameter has no gradient where it has none on any rank.

    Args:
        value: the mean loss over this rank's share; None: it has none.
        weight: what that is a mean over: samples, or what else the loss counts.
    """
    kind = torch.float64 if any(each.dtype in _DOUBLE for each in learned) else torch.float32
    sizes = [_real(each).numel() for each in learned]
    count = sum(sizes)
    numbers = torch.zeros(count + len(learned) + 2, dtype=kind)
    pieces, there = torch.split(numbers[:count], sizes), numbers[count:-2]
    for index, (piece, parameter) in enumerate(zip(pieces, learned, strict=True)):
        if value is not None and parameter.grad is not None:
            there[index] = 1
            if weight:  # the mean over nothing may be NaN
                piece.copy_(_real(parameter.grad).reshape(-1))
    numbers[:count].mul_(weight)
    if value is not None and weight:
        numbers[-2], numbers[-1] = value.double() * weight, weight
    ranks.sum_(numbers)
    whole = max(float(numbers[-1]), 1e-12)  # of a batch in which nothing has a label
    numbers[:count].div_(whole)
    for piece, parameter, ranks_with in zip(pieces, learned, there.tolist(), strict=True):
        if not ranks_with:
            parameter.grad = None
            continue
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        real = _real(parameter.grad)
        real.copy_(piece.view(real.shape))
    return numbers[-2] / whole


_DOUBLE = (torch.float64, torch.complex128)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


class RanksInStep:
    """Keeps what all ranks train the same."""

    def __init__(self, ranks: Ranks, modules: Sequence[nn.Module], what: Hashable, batch_size: int) -> None:
        """Begin together, with the first rank's weights.

        Args:
            modules: that are trained, with their companions.
            what: which training this is.

        Raises:
            RuntimeError: the ranks have come to different trainings.
        """
        self._ranks, self._parts = ranks, ranks.parts(batch_size)
        self._tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self._statistics = [each for module in modules for each in module.buffers() if each.is_floating_point()]
        described = (what, [(str(each.dtype), tuple(each.shape)) for each in self._tensors])
        if ranks.agreed(described) != described:
            raise RuntimeError(f"process {ranks.rank + 1} of {ranks.count} came to another training than the first")
        ranks.copy_first_(self._tensors)
        self._before = self._flat()

    def end_epoch(self) -> None:
        """Give all ranks the weights of the first, and the means over ranks of what each counted in its batches.

        Running means and variances of batch norms move by a share of each batch's, so the mean of where they got to is
        where they get with the means of the shares' statistics in every step.
        """
        if self._ranks.alone:
            return
        moved = self._flat() - self._before
        if self._ranks.rank >= self._parts:  # it had no share
            moved.zero_()
        self._ranks.sum_(moved)
        after = self._before + moved / self._parts
        for tensor, piece in zip(
            self._statistics, torch.split(after, [each.numel() for each in self._statistics]), strict=True
        ):
            tensor.copy_(piece.view(tensor.shape))
        self._ranks.copy_first_(self._tensors)
        self._before = self._flat()

    def _flat(self) -> Tensor:
        flat = [each.detach().double().cpu().reshape(-1) for each in self._statistics]
        return torch.cat(flat) if flat else torch.empty(0, dtype=torch.float64)
