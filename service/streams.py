"""Owns answers that are sent piece by piece."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from typing import Any

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class Stream(StreamingResponse):
    """Ends what it sends from when the answer ends, however that is.

    Of a client that leaves while a piece is being sent, the generator would be left to the collector of garbage: its
    file would stay open, and its place among the open streams taken, for minutes.
    """

    def __init__(self, pieces: AsyncGenerator[bytes], *args: Any, **options: Any) -> None:
        """Args: pieces: what is sent; all else as for any response."""
        super().__init__(pieces, *args, **options)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, unless the client leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()


async def read_ahead(pieces: Generator[bytes, None, None]) -> AsyncGenerator[bytes]:
    """The pieces that a thread reads, of which the next is read while one is sent."""
    in_use = threading.Lock()  # a read that was canceled goes on in its thread, and until then nobody may close

    def read() -> bytes | None:
        with in_use:
            return next(pieces, None)

    def close() -> None:
        with in_use:
            pieces.close()

    coming = asyncio.create_task(run_in_threadpool(read))
    try:
        while (piece := await coming) is not None:
            coming = asyncio.create_task(run_in_threadpool(read))
            yield piece
    finally:
        asyncio.get_running_loop().run_in_executor(None, close)
