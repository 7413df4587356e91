"""Owns long polling: `Prefer: wait=…` (RFC 7240), and reading again once something has changed or the time is up."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TypeVar

from fastapi import Request

from pared.errors import Unauthorized
from service.admission import Follower
from service.changes import LOOK_S
from service.dependencies import Parts, known_caller

MAX_WAIT_S = 60.0
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", re.IGNORECASE)

View = TypeVar("View")


async def wait_until(
    request: Request,
    parts: Parts,
    key: str,
    read: Callable[[], Awaitable[View]],
    done: Callable[[View], bool],
    wait_s: float,
    *,
    any_change: bool = False,
) -> View:
    """What `read` gives: once it is `done`, after `wait_s`, or when the client has left.

    A request that waits is counted as open; where as many streams and polls are open as may be, nothing is waited for.

    Args:
        key: the id of what is read.
        any_change: read again at each change; otherwise only when the status is another.

    Raises:
        Unauthorized: the key that the request came with works no more.
        OverLimit: the owner has as many streams and polls open as one may have.
    """
    if wait_s <= 0 or parts.changes.full:
        return await read()
    deadline = time.monotonic() + wait_s
    with ExitStack() as stack:
        if not hasattr(request.state, "follower"):
            request.state.follower = stack.enter_context(parts.admission.following(await known_caller(request)))
        channel = stack.enter_context(parts.changes.watching(key))
        while True:
            seen = channel.row if any_change else channel.status
            view = await read()
            if done(view):
                return view
            while (channel.row if any_change else channel.status) == seen:
                if cut_off(request):
                    raise Unauthorized("This API key was revoked or has expired.")
                left_s = deadline - time.monotonic()
                if left_s <= 0 or await request.is_disconnected():
                    return view
                try:
                    async with asyncio.timeout(min(left_s, LOOK_S)):
                        await channel.changed.wait()
                except TimeoutError:
                    continue


def cut_off(request: Request) -> bool:
    """Whether the key that this request came with, which waits for something, works no more."""
    follower: Follower | None = getattr(request.state, "follower", None)
    return follower is not None and follower.cut_off


def requested_wait_s(request: Request, *, otherwise_s: float = 0.0) -> float:
    """Seconds of `Prefer: wait=…`, at most a minute; without it, those that the route itself waits."""
    preferred = request.headers.get("prefer")
    match = _WAIT.search(preferred) if preferred else None
    return min(float(match.group(1)), MAX_WAIT_S) if match else otherwise_s


def wait_headers(wait_s: float) -> dict[str, str]:
    """The headers that tell the client how long its request was allowed to wait."""
    return {"Preference-Applied": f"wait={wait_s:.0f}", "Vary": "Prefer"} if wait_s else {}
