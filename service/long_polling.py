"""Owns long polling: looking again, in a thread, until there is something to tell or the time is up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

POLL_S = 0.25

View = TypeVar("View")


async def wait_until(request: Request, look: Callable[[], View], done: Callable[[View], bool], wait_s: float) -> View:
    """What `look` sees once it is `done`, or after `wait_s` seconds, or when the client has left."""
    deadline = time.monotonic() + wait_s
    pause_s = POLL_S / 4
    while True:
        seen = await run_in_threadpool(look)
        left_s = deadline - time.monotonic()
        if done(seen) or left_s <= 0 or await request.is_disconnected():
            return seen
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 2, POLL_S)
