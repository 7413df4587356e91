"""Owns what each error that the service can answer means, why it comes, and what to do: the pages behind `type`.

Title, status and meaning of a named error are those of its class in `pared.errors`; causes and cures stand in
`error_help.md`, and with them all about errors of HTTP itself, which have no class. Text between backticks is code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from inspect import getdoc
from pathlib import Path

from pared.errors import BY_CODE, ParedError

_FILE = Path(__file__).with_suffix(".md")


@dataclass
class ErrorHelp:
    """What is to be said about one error."""

    code: str
    group: str
    """Where the error is met, such as inside of jobs."""
    title: str = ""
    status: int = 0
    meaning: str = ""
    causes: list[str] = field(default_factory=list)
    cures: list[str] = field(default_factory=list)


@cache
def error_help() -> dict[str, ErrorHelp]:
    """Each error by its code, in the order of groups."""
    found: dict[str, ErrorHelp] = {}
    group = ""
    items: list[str] = []
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            group = line[2:]
        elif line.startswith("## "):
            one = found[line[3:]] = _of_class(line[3:], group)
        elif line in {"Causes:", "Cures:"}:
            items = one.causes if line == "Causes:" else one.cures
        elif line.startswith("- "):
            items.append(line[2:])
        elif line.startswith("  "):
            items[-1] += f" {line.strip()}"
        elif line:
            status, _, rest = line.partition(" ")
            one.status = int(status)
            one.title, _, one.meaning = rest.partition(": ")
    return found


def _of_class(code: str, group: str) -> ErrorHelp:
    kind = BY_CODE.get(code)
    if kind is None:
        return ErrorHelp(code, group)
    meaning = "Something failed that no other error names." if kind is ParedError else getdoc(kind) or ""
    return ErrorHelp(code, group, kind.title, kind.status, " ".join(meaning.split()))
