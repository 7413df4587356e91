"""Pruning schedules: which share (the pruning ratio) is removed after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from pared.specs import PruneSpec


def step_amounts(spec: PruneSpec) -> list[Amounts]:
    """The shares removed in all after each step, the last of which are those that the spec asks for.

    `iterative` removes the same share of what is left each time. `cubic` takes its steps for channels only; for single
    weights each is a ramp that training climbs.
    """
    assert spec.amount is not None  # noqa: S101 - a target has become an amount before this
    asked = Amounts(spec.amount, spec.amounts)
    if spec.schedule == "iterative":
        early = [asked.each(_geometric(step / spec.steps)) for step in range(1, spec.steps)]
        return [*early, asked]
    reached = [*map(Amounts, spec.stages), asked]
    if spec.schedule == "one_shot" or spec.ramps:
        return reached
    steps: list[Amounts] = []
    for begin, end in zip([0.0, *spec.stages], reached, strict=True):
        steps += [end.each(_cubic(begin, step / spec.steps)) for step in range(1, spec.steps)]
        steps.append(end)
    return steps


def _geometric(progress: float) -> Callable[[float], float]:
    return lambda share: 1 - (1 - share) ** progress


def _cubic(begin: float, progress: float) -> Callable[[float], float]:
    return lambda end: cubic(begin, end, progress)


def cubic(begin: float, end: float, progress: float) -> float:
    """s = s_e + (s_b − s_e)(1 − t)³, of a progress t from 0 to 1. Zhu and Gupta 2017, arXiv:1710.01878."""
    return end + (begin - end) * (1 - progress) ** 3


@dataclass(frozen=True)
class Amounts:
    """The shares to remove: `default`, or a layer's own, by the first pattern that one of its names matches."""

    default: float
    by_pattern: Mapping[str, float] = field(default_factory=dict)

    def of(self, names: Sequence[str]) -> float:
        """The share that is removed from a layer with these names."""
        shares = (share for pattern, share in self.by_pattern.items() if any(fnmatchcase(n, pattern) for n in names))
        return next(shares, self.default)

    def each(self, change: Callable[[float], float]) -> Amounts:
        """The same amounts, each changed."""
        return Amounts(change(self.default), {pattern: change(share) for pattern, share in self.by_pattern.items()})
