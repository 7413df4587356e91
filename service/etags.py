"""Owns HTTP's conditions: entity tags, byte ranges and preferences, as RFC 9110 and RFC 7240 read them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from fastapi import Request, Response
from pydantic import BaseModel

from pared.errors import RangeNotSatisfiable

MAX_WAIT_S = 60.0
_TAG = re.compile(r'(?:W/)?"[^"]*"')
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def json_with_tag(request: Request, view: BaseModel, headers: dict[str, str]) -> Response:
    """The view as JSON with a weak ETag, or 304 if the client has it."""
    content = view.model_dump_json().encode()
    headers = {"ETag": weak_tag(content), "Cache-Control": "no-cache", **headers}
    if client_has(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)


def weak_tag(content: bytes) -> str:
    """An ETag for a representation that is made anew each time."""
    return f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'


def client_has(request: Request, tag: str) -> bool:
    """Whether `If-None-Match` names this tag (compared weakly) or any."""
    header = request.headers.get("if-none-match")
    if header is None:
        return False
    return header.strip() == "*" or tag.removeprefix("W/") in {one.removeprefix("W/") for one in _TAG.findall(header)}


def demands_other(request: Request, tag: str) -> bool:
    """Whether `If-Match` is there and does not name this tag (compared strongly)."""
    header = request.headers.get("if-match")
    return header is not None and header.strip() != "*" and tag not in _TAG.findall(header)


@dataclass(frozen=True)
class ByteRange:
    """Bytes from `start` up to, not including, `end`."""

    start: int
    end: int


def wanted_range(request: Request, tag: str, size: int) -> ByteRange | None:
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


def wanted_wait_s(request: Request, *, otherwise_s: float = 0.0) -> float:
    """Seconds of `Prefer: wait=…`, at most a minute; without it, those that the route itself waits."""
    match = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", request.headers.get("prefer", ""), re.IGNORECASE)
    return min(float(match.group(1)), MAX_WAIT_S) if match else otherwise_s


def wait_headers(wait_s: float) -> dict[str, str]:
    """What to answer to a preference that was honoured."""
    return {"Preference-Applied": f"wait={wait_s:.0f}", "Vary": "Prefer"} if wait_s else {}
