"""Exit codes of the command line, and how what goes wrong becomes one message and an exit code."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pydantic
import typer

from pared.cli.rendering import err, say
from pared.client import APIError, DigestMismatch, JobFailed, ServerUnreachable, UntrustedAnswer, UploadRejected
from pared.errors import ParedError

DONE, FAILED, USAGE, INCOMPLETE, DETACHED = 0, 1, 2, 4, 130


def run_command(app: Callable[[], object]) -> None:
    """Run a command; what goes wrong becomes one message and an exit code."""
    try:
        app()
    except APIError as error:
        say(f"{error}")
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
        err.print(traceback.format_exc(), soft_wrap=True)
        sys.exit(FAILED)


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
