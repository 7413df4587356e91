"""Owns doing for many requests at once what each asks for: who asks while a batch is under way is in the next one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

MOST = 32
"""Requests in one batch: each may be about a row of a megabyte."""
KEPT, KEPT_S = 128, 1.0
"""So many answers are given again while the database is as it was, and for so long: some change as time goes by."""
LANES_AT_ONCE = 8
GATHER_S = 0.0005
"""How long a batch that follows another waits for more. Without it, a busy loop fills it with the one or two requests
that came while the last one ran, and gives a batch to each of them."""

Asked = TypeVar("Asked", bound=Hashable)
Answer = TypeVar("Answer")


@dataclass
class _Lane(Generic[Asked, Answer]):
    last: asyncio.Task[None] | None = None
    """The newest batch."""
    open: dict[Asked, list[asyncio.Future[Answer | None]]] | None = None
    """Who waits for what of it, in the order in which it was asked for, until it begins."""


class Batches(Generic[Asked, Answer]):
    """What is asked for together costs little more than one, and all of it is done after it was asked for.

    Belongs to one event loop. Who asks the same as another in the batch gets the same answer.
    """

    def __init__(
        self,
        do: Callable[[Collection[Asked]], Mapping[Asked, Answer]],
        *,
        lane_of: Callable[[Asked], Hashable] = lambda _: None,
        version: Callable[[], int | None] = lambda: None,
        keep: Callable[[Answer], bool] = lambda _: True,
    ) -> None:
        """Make it.

        Args:
            do: called in a thread, for a slow disk must not stop all others; leaves out what has no answer.
            lane_of: batches of one lane come after each other, and nothing of another lane is in them.
            version: a number of what the answers are of, called in the event loop. While it is the same an answer is
                given again; None: it may have changed.
            keep: whether an answer is small enough to be kept for that.
        """
        self._do, self._lane_of = do, lane_of
        # To get to one of these takes two thirds of the time that it takes to get to one of FastAPI's.
        self._threads = ThreadPoolExecutor(LANES_AT_ONCE, thread_name_prefix="batches")
        self._lanes: dict[Hashable, _Lane[Asked, Answer]] = {}
        self._version, self._keep = version, keep
        self._kept: dict[Asked, Answer] = {}
        self._kept_of: int | None = None
        self._kept_until = 0.0

    async def get(self, asked: Asked) -> Answer | None:
        """The answer; None: there is none. Raises what `do` raises."""
        name = self._lane_of(asked)
        known = self._unchanged().get(asked)
        if known is not None:
            under_way = self._lanes.get(name)
            if under_way is not None and under_way.last is not None:
                # SQLite's driver gives the interpreter up at each row, and a loop that went on answering would have it
                # nearly always: whoever waits for the batch would wait for tens of milliseconds.
                await asyncio.wait([under_way.last])
            return known
        lane = self._lanes.setdefault(name, _Lane())
        if lane.last is None or lane.open is None or len(lane.open) == MOST:
            lane.open = {}
            lane.last = asyncio.create_task(self._do_after(lane.last, lane, lane.open))
            lane.last.add_done_callback(lambda task: self._end(name, task))
        # Of its own: a client who leaves takes nobody else's answer along.
        answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        lane.open.setdefault(asked, []).append(answer)
        return await answer

    async def _do_after(
        self,
        before: asyncio.Task[None] | None,
        lane: _Lane[Asked, Answer],
        waiting: dict[Asked, list[asyncio.Future[Answer | None]]],
    ) -> None:
        if before is not None and not before.done():
            await asyncio.wait([before])
            await asyncio.sleep(GATHER_S)
        if waiting is lane.open:
            lane.open = None
        kept, failure = self._unchanged(), None
        answers: Mapping[Asked, Answer] = {}
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._threads, self._do, waiting.keys())
        except Exception as error:  # noqa: BLE001 - it is theirs who asked
            failure = error
        for asked, future in ((asked, future) for asked, futures in waiting.items() for future in futures):
            if future.done():  # its client has left
                continue
            if failure is None:
                future.set_result(answers.get(asked))
            else:
                future.set_exception(failure)
        if kept is self._unchanged():
            kept.update(
                islice(((key, answer) for key, answer in answers.items() if self._keep(answer)), KEPT - len(kept))
            )

    def _unchanged(self) -> dict[Asked, Answer]:
        """What was answered since the version is what it is now: the same dictionary as long as it is that one."""
        version, now = self._version(), time.monotonic()
        if version is None or version != self._kept_of or now >= self._kept_until:
            self._kept, self._kept_of, self._kept_until = {}, version, now + KEPT_S
        return self._kept

    def _end(self, name: Hashable, task: asyncio.Task[None]) -> None:
        if self._lanes[name].last is task:
            del self._lanes[name]
