"""Owns a look at the server itself: whether it answers, which version it is, what the key may do, and its clock."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx

from pared.client.base import ClientBase

_TIMEOUT_S = 10.0


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
            answer = http.get("/healthz")
            seen.clock_ahead_s = _ahead_s(answer)
            if answer.status_code != 200 or _json(answer).get("status") != "ok":
                seen.unreachable = f"what answers at {base.url} is no pared server (HTTP {answer.status_code})"
                return seen
            seen.version = _json(http.get("/openapi.json")).get("info", {}).get("version")
            ready = http.get("/readyz")
            if ready.status_code == 503:
                seen.not_ready = str(_json(ready).get("detail"))
            limits = http.get("/v1/limits")
        except httpx.TransportError as error:
            failure = base._failure(error)
            seen.unreachable = str(failure) or f"{base.url}: {type(failure).__name__}"
            return seen
    told = _json(limits)
    if limits.status_code == 200:
        seen.scopes = [str(each) for each in told.get("scopes", [])]
    else:
        seen.refused = str(told.get("detail") or f"HTTP {limits.status_code}")
    return seen


def recent(kind: Literal["jobs", "models", "datasets"], timeout_s: float = 1.0) -> list[dict[str, Any]]:
    """The newest rows of a list, for completion in a shell; none where the server does not answer soon."""
    with suppress(httpx.HTTPError, httpx.InvalidURL):
        base = ClientBase()
        with httpx.Client(**base._options, timeout=timeout_s) as http:
            rows = _json(http.get(f"/v1/{kind}", params={"limit": 50})).get("data")
            return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return []


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _ahead_s(answer: httpx.Response) -> float | None:
    try:
        told = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return None
    # The header has whole seconds, and was written at some time while the request was under way.
    sent = time.time() - answer.elapsed.total_seconds()
    return told - sent if told < sent - 1 else max(0.0, told - time.time())
