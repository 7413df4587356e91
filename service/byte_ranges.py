"""Owns HTTP's byte ranges: `Range` and `If-Range`, as RFC 9110 reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastapi import Request

from pared.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@dataclass(frozen=True)
class ByteRange:
    """Bytes from `start` up to, not including, `end`."""

    start: int
    end: int


def requested_range(request: Request, tag: str, size: int) -> ByteRange | None:
    """The one range asked for; None for the whole file, also when `If-Range` names another version.

    Raises:
        RangeNotSatisfiable: the range begins past the end.
    """
    condition = request.headers.get("if-range")
    if condition is not None and condition.strip() != tag:
        return None
    match = _RANGE.fullmatch(request.headers.get("range", "").strip().lower())
    if match is None or match.group(1) == match.group(2) == "":
        return None  # none, several, or not understood: RFC 9110 lets us send the whole
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= size:
        raise RangeNotSatisfiable(f"The file has {size:,} bytes.")
    return ByteRange(start, end)
