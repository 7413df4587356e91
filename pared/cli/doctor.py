"""The command that says what works on this machine and with the server, and what to do about the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec

import typer
from rich.text import Text

from pared.cli import checks
from pared.cli.checks import Check
from pared.cli.exits import FAILED
from pared.cli.rendering import out, print_json
from pared.cli.shared_options import AsJson, Quiet

_MARKS = {"ok": ("✓", "green"), "note": ("–", "yellow"), "wrong": ("✗", "red")}


def doctor(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Say what works here and with the server, with the cure of all else; exit code 1 where one is needed."""
    found: list[Check] = []
    for look in _looks():
        for check in look():
            found.append(check)
            if not as_json:
                _print(check)
    wrong = sum(check.status == "wrong" for check in found)
    if as_json:
        print_json({"ok": not wrong, "checks": [asdict(check) for check in found]})
    else:
        out.print(f"\n{wrong} of {len(found)} need a cure" if wrong else "\nAll is well.", style="bold")
    if wrong:
        raise typer.Exit(FAILED)


def _looks() -> Iterator[Callable[[], Iterator[Check]]]:
    """What is looked at: on a machine with the client alone, only that and the server."""
    yield checks.installed
    yield checks.cards
    if find_spec("celery") and find_spec("pydantic_settings") and find_spec("alembic"):
        from pared.cli import server_checks

        yield server_checks.of_this_machine
        if find_spec("torch"):
            yield server_checks.sandbox
    yield checks.server


def _print(check: Check) -> None:
    mark, style = _MARKS[check.status]
    out.print(Text.assemble((mark, style), f" {check.name}: ", check.detail), soft_wrap=True)
    if check.cure is not None:
        out.print(f"    → {check.cure}", soft_wrap=True)
