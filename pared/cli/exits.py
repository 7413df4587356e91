"""Exit codes of the command line, and how what goes wrong becomes one message and an exit code."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import httpx
import pydantic
import typer

from pared.cli.rendering import say
from pared.client import APIError, DigestMismatch, JobFailed, ServerUnreachable, UntrustedAnswer, UploadRejected
from pared.errors import ParedError

DONE, FAILED, USAGE, MISSED, INCOMPLETE, DETACHED = 0, 1, 2, 3, 4, 130
"""MISSED: done, but the goal was not met; INCOMPLETE: done, but a format could not be written."""

_ID = re.compile(r"(?:job|mdl|dst)_\w+")
_LISTS = {"job": "jobs", "mdl": "models", "dst": "datasets"}
_NEXT = {401: "export PARED_API_KEY=pared_…", 429: "pared limits", 503: "pared doctor"}


def run_command(app: Callable[[], object]) -> None:
    """Run a command; what goes wrong becomes one message and an exit code."""
    try:
        app()
    except APIError as error:
        line = _next_line(error, sys.argv[1:])
        say(f"{error}\n  next: {line}" if line else f"{error}")
        sys.exit(USAGE if error.status in (404, 422) else FAILED)
    except (ServerUnreachable, UntrustedAnswer, UploadRejected, JobFailed, DigestMismatch, ParedError) as error:
        say(str(error))
        sys.exit(FAILED)
    except (OSError, json.JSONDecodeError, httpx.InvalidURL) as error:
        say(str(error))
        sys.exit(USAGE)
    except pydantic.ValidationError as error:
        for each in error.errors():
            name = ".".join(map(str, each["loc"]))
            # Settings come from the environment, all else from a server's answers.
            name = f"PARED_{name.upper()}" if error.title == "Settings" else f"{error.title}.{name}"
            say(f"{name}: {each['msg']}")
        sys.exit(USAGE)
    except Exception:  # noqa: BLE001 - a bug, whose traceback may quote what a server sent
        say(traceback.format_exc())
        sys.exit(FAILED)


def _next_line(error: APIError, typed: Sequence[str]) -> str | None:
    """What to type after the service refused what was typed; None: its own words say all."""
    named = next((word for word in typed if _ID.fullmatch(word)), None)
    if error.status == 404 and named:
        return f"pared {_LISTS[named[:3]]} ls"
    if error.type.endswith("/not-ready") and named:
        return f"pared jobs watch {named}"
    return _NEXT.get(error.status)


@contextmanager
def needs_extras(*names: str) -> Iterator[None]:
    """Put this around imports that the base install lacks: it says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("pared", "service", "worker", "migrations"):
            raise
        say(f"this command needs more than the client: pip install 'pared[{','.join(names)}]'  ({error})")
        raise typer.Exit(USAGE) from None
