"""Owns how processes log: JSON lines on standard output, from a level on, with what is bound to the work under way."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime
from functools import lru_cache

import structlog
from pydantic_core import PydanticSerializationError, to_json
from structlog.typing import EventDict

_PLAIN = {str, int, float, bool, type(None)}


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
            _add_time,
            structlog.processors.format_exc_info,
            _as_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Output(),
        cache_logger_on_first_use=True,
    )


def _add_time(_: object, __: str, event: EventDict) -> EventDict:
    """ISO 8601 in UTC, to the microsecond."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    event["timestamp"] = f"{_second(seconds)}.{microseconds:06d}Z"
    return event


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _as_json(_: object, __: str, event: EventDict) -> str:
    """ASCII alone, so that nothing in a line steers the terminal that shows it."""
    if _PLAIN.issuperset(map(type, event.values())):  # most lines: quicker, and the same but for how text is written
        with suppress(PydanticSerializationError):  # half a surrogate
            line = to_json(event, inf_nan_mode="constants")
            if line.isascii():
                return line.decode()
    return json.dumps(event, default=repr, separators=(",", ":"))


class _Output(structlog.WriteLogger):
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
