"""Owns a look at the server itself: whether it answers, which version it is, what the key may do, and its clock."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx

from pared.client.base import ClientBase

_TIMEOUT_S = 10.0
_MAX_BYTES = 16 << 20
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!-]{0,39}")


@dataclass
class ServerSeen:
    """What a server showed; None: it did not say."""

    url: str
    unreachable: str | None = None
    """Why no pared server answers there, with what to do; nothing else is known then."""
    version: str | None = None
    clock_ahead_s: float | None = None
    """How far the server's clock is before this machine's."""
    not_ready: str | None = None
    """Why it can do no work."""
    scopes: list[str] | None = None
    """What the key that was sent may do, or a request without one."""
    refused: str | None = None
    """Why the key is not taken."""


def look_at_server() -> ServerSeen:
    """Ask the server that `PARED_URL` and `PARED_API_KEY` name; nothing there is changed.

    Raises:
        httpx.InvalidURL: the address is none of a server.
    """
    base = ClientBase()
    seen = ServerSeen(base.url)
    with httpx.Client(**base._options, timeout=_TIMEOUT_S) as http:
        try:
            sent = time.time()
            alive = _ask(http, "/healthz")
            if alive.status != 200 or alive.told.get("status") != "ok":
                seen.unreachable = f"what answers at {base.url} is no pared server (HTTP {alive.status})"
                return seen
            seen.clock_ahead_s = _ahead_s(alive.date, sent)
            info = _ask(http, "/openapi.json").told.get("info")
            version = info.get("version") if isinstance(info, dict) else None
            seen.version = version if isinstance(version, str) and _VERSION.fullmatch(version) else None
            ready = _ask(http, "/readyz")
            seen.not_ready = str(ready.told.get("detail")) if ready.status == 503 else None
            limits = _ask(http, "/v1/limits")
        except httpx.TransportError as error:
            failure = base._failure(error)
            seen.unreachable = str(failure) or f"{base.url}: {type(failure).__name__}"
            return seen
    if limits.status == 200:
        scopes = limits.told.get("scopes")
        seen.scopes = [str(each) for each in scopes] if isinstance(scopes, list) else []
    else:
        seen.refused = str(limits.told.get("detail") or f"HTTP {limits.status}")
    return seen


def recent(kind: Literal["jobs", "models", "datasets"], timeout_s: float = 1.0) -> list[dict[str, Any]]:
    """The newest rows of a list, for completion in a shell; none where the server does not answer soon."""
    with suppress(httpx.HTTPError, httpx.InvalidURL):
        base = ClientBase()
        with httpx.Client(**base._options, timeout=timeout_s) as http:
            rows = _ask(http, f"/v1/{kind}?limit=50", timeout_s).told.get("data")
            return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return []


@dataclass(frozen=True)
class _Answer:
    status: int
    date: str
    told: dict[str, Any]
    """The JSON object that came; empty where it was none, too long or too slow."""


def _ask(http: httpx.Client, path: str, timeout_s: float = _TIMEOUT_S) -> _Answer:
    """Ask for a JSON object, and read no more and no longer than one may have."""
    until = time.monotonic() + timeout_s
    content = bytearray()
    with http.stream("GET", path) as answer:
        for piece in answer.iter_bytes():
            content += piece
            if len(content) > _MAX_BYTES or time.monotonic() > until:
                content.clear()
                break
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        told = {}
    return _Answer(answer.status_code, answer.headers.get("date", ""), told if isinstance(told, dict) else {})


def _ahead_s(date: str, sent: float) -> float | None:
    try:
        told = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    # It has whole seconds, and was written at some time while the request was under way.
    return told - sent if told < sent - 1 else max(0.0, told - time.time())
