"""Tests that are too long for every run: some rows of a table or a small count in each, the rest in the campaigns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def each_nth(rows: Iterable[Any], n: int) -> list[Any]:
    """The rows as parameters, of which each n-th is for every run."""
    return [_parameters(row, every_run=index % n == 0) for index, row in enumerate(rows)]


def one_form_each(names: Iterable[Any], forms: Sequence[Any]) -> list[Any]:
    """All pairs of a name and a form as parameters; of each name one form, by turns, is for every run."""
    return [
        _parameters((name, form), every_run=place == index % len(forms))
        for index, name in enumerate(names)
        for place, form in enumerate(forms)
    ]


def size_of(name: str, usual: int) -> int:
    """How often a campaign does what it does: `PARED_CAMPAIGN_{name}`, where somebody sets it."""
    return int(os.environ.get(f"PARED_CAMPAIGN_{name}", usual))


def counted(short: int, campaign: int, *, limit_s: float = 3600) -> Any:
    """The parameter `count` of a test: short for every run, long for the campaign, which may take so many seconds."""
    marks = [pytest.mark.campaign, pytest.mark.timeout(limit_s)]
    return pytest.mark.parametrize("count", [short, pytest.param(campaign, marks=marks)])


def _parameters(row: Any, *, every_run: bool) -> Any:
    values = row if isinstance(row, tuple) else (row,)
    return pytest.param(*values, marks=() if every_run else pytest.mark.campaign)
