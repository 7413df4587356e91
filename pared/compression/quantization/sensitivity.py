"""Finds which layers to leave out of int8, so that no more quality is lost than may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pared.compression.coupling.verify import flat_tensors
from pared.compression.data.samples import Inputs
from pared.reports import Precision

Precisions = Mapping[str, Precision]
"""Layer -> what it computes in."""


@dataclass(frozen=True)
class Choice:
    """The precisions that were chosen, and what they were chosen by.

    Attributes:
        errors: layer -> relative error of the answers where it alone has the precision that it had at first.
        tried: how many choices were scored.
    """

    precisions: dict[str, Precision]
    errors: dict[str, float] = field(default_factory=dict)
    tried: int = 1


def least_left_out(
    usual: Precisions,
    error: Callable[[str, Precision], float],
    lost: Callable[[Precisions], float],
    most: float,
) -> Choice:
    """The precisions with the fewest layers left out of int8 with which no more is lost than may be.

    A layer goes from `int8` to `int8_weights`, and when all have, from there to `float32`; those first whose error is
    largest. How many have to go is found by doubling and halving, for more left out loses less.

    Args:
        usual: the precisions to begin with.
        error: of the answers where one layer alone has a precision; asked only where `usual` loses too much.
        lost: the quality that some precisions lose.
        most: that may be lost.
    """
    if lost(usual) <= most:
        return Choice(dict(usual))
    steps: list[tuple[str, Precision]] = []
    errors: dict[str, float] = {}
    for precision, coarser in _COARSER.items():
        found = {name: error(name, precision) for name, its in usual.items() if its in (precision, *_FINER[precision])}
        errors = {**found, **errors}
        steps += [(name, coarser) for name in sorted(found, key=lambda name: -found[name])]
    tried = 1

    def loses(count: int) -> bool:
        nonlocal tried
        tried += 1
        return lost(_after(usual, steps[:count])) > most

    low, high = 0, 1  # `low` steps lose too much
    while high < len(steps) and loses(high):
        low, high = high, 2 * high
    high = min(high, len(steps))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if loses(middle) else (low, middle)
    return Choice(_after(usual, steps[:high]), errors, tried)


_COARSER: dict[Precision, Precision] = {"int8": "int8_weights", "int8_weights": "float32"}
_FINER: dict[Precision, tuple[Precision, ...]] = {"int8": (), "int8_weights": ("int8",)}


def _after(usual: Precisions, steps: Sequence[tuple[str, Precision]]) -> dict[str, Precision]:
    return {**usual, **dict(steps)}


def relative_error(module: nn.Module, reference: Sequence[Tensor], batches: Sequence[Inputs]) -> float:
    """How far a module's answers are from others: the norm of the difference over the norm.

    Args:
        reference: the floating-point tensors of the answers to all batches, as `answers_to` gives them.
    """
    found = answers_to(module, batches)
    off = sum(float((one - other).double().square().sum()) for one, other in zip(found, reference, strict=True))
    size = sum(float(other.double().square().sum()) for other in reference)
    return float((off / max(size, 1e-30)) ** 0.5)


def answers_to(module: nn.Module, batches: Sequence[Inputs]) -> list[Tensor]:
    """The floating-point tensors of a module's answers; what is not finite, as a masked score, is left out."""
    with torch.no_grad():
        tensors = [tensor for inputs in batches for tensor in flat_tensors(module(*inputs))]
    return [tensor.nan_to_num(0, 0, 0) for tensor in tensors if tensor.is_floating_point()]
