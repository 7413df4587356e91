"""Pruning criteria, a module each: what the importance of a channel, a weight or a residual block is.

The facts about a criterion drive what specs accept, the command line's help, the API's description and the
documentation, and those load no torch. So a criterion's module imports torch where a score is computed, never at its
top; ruff holds it to that. How to add one: `CONTRIBUTING.md`.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from pared.criteria.base import SCORED_AS, Channels, Criterion, ResidualBlock, WeightTensor

__all__ = [
    "CRITERIA",
    "SCORED_AS",
    "Channels",
    "Criterion",
    "ResidualBlock",
    "WeightTensor",
    "needing_data",
    "scoring",
]


def _modules() -> list[Criterion]:
    names = [module.name for module in iter_modules(__path__) if module.name != "base"]
    criteria: list[Criterion] = [import_module(f"{__name__}.{name}").CRITERION for name in names]
    for module, criterion in zip(names, criteria, strict=True):
        if module != criterion.name:
            raise ValueError(
                f"The criterion {criterion.name} stands in {module}.py: name its module {criterion.name}.py"
            )
    return sorted(criteria, key=lambda criterion: (criterion.position, criterion.name))


CRITERIA = {criterion.name: criterion for criterion in _modules()}
"""Name -> criterion, in the order of lists."""


def needing_data() -> list[str]:
    """Names of the criteria that look at training samples."""
    return [name for name, criterion in CRITERIA.items() if criterion.needs_data]


def scoring(granularity: str) -> list[str]:
    """Names of the criteria that can score what goes at this granularity."""
    return [name for name, criterion in CRITERIA.items() if granularity in criterion.granularities]
