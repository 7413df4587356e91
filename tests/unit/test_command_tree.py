"""Every command takes `--json` and `--quiet`, but for those named here with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from pared.cli.app import app

SERVERS = {"up", "api"}
"""They run until they are stopped, and write a log of JSON lines."""
FOR_WHAT_THEY_PRINT = SERVERS | {
    *("jobs show", "jobs logs", "models show", "datasets show", "limits", "audit"),
    *("keys add", "keys rotate", "webhooks add"),  # a secret that is shown this once
    "owners add",  # the id alone
}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, set[str]]]:
    """Each command below this one, with its options."""
    for name, below in getattr(command, "commands", {}).items():
        if hasattr(below, "commands"):
            yield from commands(below, (*path, name))
        else:
            yield " ".join((*path, name)), {option for parameter in below.params for option in parameter.opts}


OPTIONS = dict(commands(get_command(app)))


def test_every_command_prints_json_on_request() -> None:
    assert {name for name, options in OPTIONS.items() if "--json" not in options} == SERVERS


def test_every_command_that_does_something_can_be_quiet() -> None:
    assert {name for name, options in OPTIONS.items() if "--quiet" not in options} == FOR_WHAT_THEY_PRINT
