"""How a length of time is typed: 90d, 24h, 30m."""

from __future__ import annotations

import re

import typer

_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86_400.0}


def duration(text: str) -> float:
    """Seconds."""
    match = re.fullmatch(r"(\d{1,5}(?:\.\d+)?)([mhd])", text)
    if not match:
        raise typer.BadParameter(f"{text} is no length of time; write 90d, 24h or 30m")
    return float(match[1]) * _SECONDS[match[2]]
