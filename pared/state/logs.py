"""Owns how processes log: JSON lines on standard output, from a level on, with what is bound to the work under way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context

import structlog


def configure_logging(level: str = "info") -> None:
    """For a process to call once at its start; structlog's own default is a coloured console.

    No line holds the values of local variables.

    Args:
        level: `PARED_LOG_LEVEL`; lines below it are not written.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Output(),
        cache_logger_on_first_use=True,
    )


class _Output(structlog.PrintLogger):
    """Standard output. Where it takes nothing, as a file on a full disk, the line is lost and not what is logged of."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    # Aliases there too, and those are of the method that this one replaces.
    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def level_of_servers(level: str) -> str:
    """The level for the plain lines of uvicorn and Celery: as ours, but what they write for debugging stays out."""
    return "info" if level == "debug" else level


def thread_with_context(target: Callable[[], object], name: str) -> threading.Thread:
    """A daemon thread, not started yet, whose log lines carry what is bound here, such as a job and its request id."""
    return threading.Thread(target=copy_context().run, args=(target,), name=name, daemon=True)
