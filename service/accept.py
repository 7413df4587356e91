"""Owns what `Accept` asks for, as RFC 9110 reads it, where an answer has more than one form."""

from __future__ import annotations

import re

from fastapi import Request

_QUALITY = re.compile(r"\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*", re.IGNORECASE)


def prefers(request: Request, media_type: str, default: str) -> bool:
    """Whether the request would rather have this media type than the default; of equals it gets the default."""
    header = ",".join(request.headers.getlist("accept"))
    return _wish(header, media_type) > _wish(header, default)


def _wish(header: str, media_type: str) -> float:
    """How much a media type is wanted, 0 to 1: by the entry that names it most closely."""
    if not header.strip():
        return 1.0
    ranges = ("*/*", f"{media_type.partition('/')[0]}/*", media_type)  # the closer, the later
    found = (-1, 0.0)
    for entry in header.split(","):
        name, *parameters = entry.split(";")
        name = name.strip().lower()
        if name in ranges:
            qualities = [match[1] for parameter in parameters if (match := _QUALITY.fullmatch(parameter))]
            found = max(found, (ranges.index(name), float(qualities[0]) if qualities else 1.0))
    return found[1]
