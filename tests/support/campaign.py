"""Tables of tests that are too long for every run: some rows in each, the others in the campaign (`make tables`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def each_nth(rows: Iterable[Any], n: int) -> list[Any]:
    """The rows as parameters, of which each n-th is for every run."""
    return [_parameters(row, every_run=index % n == 0) for index, row in enumerate(rows)]


def one_form_each(names: Iterable[Any], forms: Sequence[Any], n: int = 1) -> list[Any]:
    """All pairs of a name and a form as parameters; of each n-th name one form, by turns, is for every run."""
    return [
        _parameters((name, form), every_run=index % n == 0 and place == index // n % len(forms))
        for index, name in enumerate(names)
        for place, form in enumerate(forms)
    ]


def _parameters(row: Any, *, every_run: bool) -> Any:
    values = row if isinstance(row, tuple) else (row,)
    return pytest.param(*values, marks=() if every_run else pytest.mark.campaign)
