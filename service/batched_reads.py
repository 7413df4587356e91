"""Owns reading by key for many requests at once: who asks while a read is under way is in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

from fastapi.concurrency import run_in_threadpool

MOST = 32
"""Keys in one read: each may be of a row of a megabyte."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class BatchedReads(Generic[Key, Value]):
    """Every answer is read after it was asked for; many that were asked for together cost little more than one.

    Belongs to one event loop.
    """

    def __init__(self, read: Callable[[Collection[Key]], Mapping[Key, Value]]) -> None:
        """Args: read: called in a thread, one call at a time; leaves out what is not there."""
        self._read = read
        self._keys: set[Key] = set()  # of the batch that is open
        self._open = False
        self._last: asyncio.Task[Mapping[Key, Value]] | None = None

    async def get(self, key: Key) -> Value | None:
        """What is there now; None: nothing. Raises what `read` raises."""
        if self._last is None or not self._open or len(self._keys) == MOST:
            self._keys, self._open = set(), True
            self._last = asyncio.create_task(self._read_after(self._last, self._keys))
        self._keys.add(key)
        # A client who leaves takes nobody else's answer along.
        return (await asyncio.shield(self._last)).get(key)

    async def _read_after(self, batch: asyncio.Task[Mapping[Key, Value]] | None, keys: set[Key]) -> Mapping[Key, Value]:
        if batch is not None and not batch.done():
            await asyncio.wait([batch])
        if keys is self._keys:
            self._open = False
        return await run_in_threadpool(self._read, keys)
