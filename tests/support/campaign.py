"""Sizes of tests that are too long for every run: a short form in each, the long one in the campaign.

`make tables` runs the rest of long tables; `make campaign` attacks and faults at their full size, of which each test
prints one line that says what was counted (`report_counts` shows them together at the end).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest


def counted(short: int | None, campaign: int, *, limit_s: int = 3600) -> Any:
    """The `count` of an attack or fault: short for every run, long for the campaign, which takes at most so long.

    Without a short one it is for the campaign alone: another test shows the same in every run.
    """
    marks = [pytest.mark.campaign, pytest.mark.timeout(limit_s)]
    return pytest.mark.parametrize("count", [*[short] * (short is not None), pytest.param(campaign, marks=marks)])


def report_counts(terminal: pytest.TerminalReporter) -> None:
    """Show at the end of a campaign the last line that each of its tests printed, or that it failed."""
    terminal.section("counted")
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminal.stats.get(outcome, []):
            printed = [line for line in report.capstdout.splitlines() if line and not line.startswith("{")]  # no logs
            said = printed[-1] if printed and outcome == "passed" else ""
            terminal.line(f"{outcome}: {report.nodeid.removeprefix('tests/')}: {said}")


def each_nth(rows: Iterable[Any], n: int) -> list[Any]:
    """The rows as parameters, of which each n-th is for every run."""
    return [_parameters(row, every_run=index % n == 0) for index, row in enumerate(rows)]


def in_every_run(rows: Iterable[Any], chosen: Collection[Any]) -> list[Any]:
    """The rows as parameters, of which those chosen are for every run."""
    return [_parameters(row, every_run=row in chosen) for row in rows]


def one_form_each(names: Iterable[Any], forms: Sequence[Any], n: int = 1) -> list[Any]:
    """All pairs of a name and a form as parameters; of each n-th name one form, by turns, is for every run."""
    return [
        _parameters((name, form), every_run=index % n == 0 and place == index // n % len(forms))
        for index, name in enumerate(names)
        for place, form in enumerate(forms)
    ]


def size_of(name: str, usual: int) -> int:
    """How often a campaign does what it does: `PARED_CAMPAIGN_{name}`, where somebody sets it."""
    return int(os.environ.get(f"PARED_CAMPAIGN_{name}", usual))


def _parameters(row: Any, *, every_run: bool) -> Any:
    values = row if isinstance(row, tuple) else (row,)
    return pytest.param(*values, marks=() if every_run else pytest.mark.campaign)
