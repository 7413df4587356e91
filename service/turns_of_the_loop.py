"""Owns asking for something at most once in each turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Found = TypeVar("Found")


class OncePerTurn(Generic[Found]):
    """A function that is called once for all who ask in the same turn of the event loop.

    A turn begins with a look at which sockets have something to read. What is served in it had come before, so that
    what was found since is no older than what asks for it.
    """

    def __init__(self, find: Callable[[], Found]) -> None:
        """Args: find: called in the event loop."""
        self._find = find
        self._found: list[Found] = []

    def __call__(self) -> Found:
        """What was found in this turn."""
        if not self._found:
            self._found.append(self._find())
            # Before all that begins in the next turn, for that is put behind it.
            asyncio.get_running_loop().call_soon(self._found.clear)
        return self._found[0]
