"""Times and states of jobs in words, for people; and texts that name code."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup, escape

from pared.report_page import numbers
from pared.statuses import JobStatus
from pared.terminal import printable

STATUSES: dict[JobStatus, str] = {
    "queued": "Waiting",
    "running": "Running",
    "canceling": "Stopping",
    "succeeded": "Succeeded",
    "failed": "Failed",
    "canceled": "Canceled",
}
TONES = {"succeeded": "good", "failed": "bad"}
"""The style of a state; its words say the same."""


def moment(seconds: float | None) -> str:
    """A time to the minute, UTC."""
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def clock(seconds: float) -> str:
    """The time of the day, UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S}"


def ago(seconds: float | None, now: float) -> str:
    """How long ago that was, in one unit."""
    if seconds is None:
        return "never"
    passed = max(0.0, now - seconds)
    if passed < 10:
        return "just now"
    for unit, length in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if passed >= 2 * length or (unit != "days" and passed >= length):
            return f"{passed // length:.0f}\N{NO-BREAK SPACE}{unit} ago"
    return f"{passed:.0f}\N{NO-BREAK SPACE}s ago"


def lasting(seconds: float | None) -> str:
    """How long something takes, in whole seconds where it takes some."""
    if seconds is None:
        return ""
    return f"{seconds:.0f}\N{NO-BREAK SPACE}s" if 1 <= seconds < 60 else numbers.seconds(seconds)


def with_code(text: str) -> Markup:
    """The text with what stands between backticks as code."""
    parts = (escape(part) for part in printable(text).split("`"))
    return Markup().join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))
