"""Owns long polling: `Prefer: wait=…` (RFC 7240), and reading again until something has changed or the time is up."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from pared.errors import Unauthorized
from service.admission import Follower

POLL_S = 0.25
MAX_WAIT_S = 60.0

View = TypeVar("View")


async def wait_until(request: Request, read: Callable[[], View], done: Callable[[View], bool], wait_s: float) -> View:
    """What `read`, called in a thread, returns: once it is `done`, after `wait_s`, or when the client has left.

    Raises:
        Unauthorized: the key that the request came with works no more.
    """
    deadline = time.monotonic() + wait_s
    pause_s = POLL_S / 4
    while True:
        if cut_off(request):
            raise Unauthorized("This API key was revoked or has expired.")
        view = await run_in_threadpool(read)
        left_s = deadline - time.monotonic()
        if done(view) or left_s <= 0 or await request.is_disconnected():
            return view
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 2, POLL_S)


def cut_off(request: Request) -> bool:
    """Whether the key that this request came with, which waits for something, works no more."""
    follower: Follower | None = getattr(request.state, "follower", None)
    return follower is not None and follower.cut_off


def requested_wait_s(request: Request, *, otherwise_s: float = 0.0) -> float:
    """Seconds of `Prefer: wait=…`, at most a minute; without it, those that the route itself waits."""
    match = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", request.headers.get("prefer", ""), re.IGNORECASE)
    return min(float(match.group(1)), MAX_WAIT_S) if match else otherwise_s


def wait_headers(wait_s: float) -> dict[str, str]:
    """The headers that tell the client how long its request was allowed to wait."""
    return {"Preference-Applied": f"wait={wait_s:.0f}", "Vary": "Prefer"} if wait_s else {}
