"""Owns telling open streams and long polls what has changed: one poller asks the database for all of this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy import BindParameter, and_, bindparam, func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pared.errors import Unavailable
from pared.state.events import events_after
from pared.state.session import Sessions, batches
from pared.state.tables import Dataset, Job, JobEvent, Model
from pared.state.workers import living
from pared.statuses import ENDED

POLL_S = 0.1
MAX_POLL_S = 1.0
"""Looking at hundreds of jobs takes long: the next look waits `_SHARE` times as long as the last took, up to this."""
_SHARE = 15
PING_S = 15.0
"""A stream on which nothing came for so long sends a comment, which keeps the line open."""
QUEUE_POLL_S = 1.0
"""How often places in the queue are looked at: they move with everybody's jobs."""
LOOK_S = 2.0
"""How often it is looked whether those who wait are to wait no longer: their key may work no more."""
KEPT_EVENTS = 256
"""The newest events of a job that its streams find here; who is further behind reads the database."""
_EVENTS_AT_ONCE = 2000
_READERS = 2
_IDS: BindParameter[Collection[str]] = bindparam("ids", expanding=True)
_NEWEST = select(func.max(JobEvent.seq)).where(JobEvent.job_id == Job.id).scalar_subquery()
_JOBS = select(Job.id, Job.status, Job.updated_at, _NEWEST).where(Job.id.in_(_IDS))
_UPLOADS = tuple(
    (prefix, select(table.id, table.status).where(table.id.in_(_IDS)))
    for prefix, table in (("mdl_", Model), ("dst_", Dataset))
)

log = structlog.get_logger()


@dataclass(frozen=True)
class Told:
    """One event as all streams send it, encoded once for all of them."""

    job_id: str
    seq: int
    last: bool
    content: bytes


@dataclass
class Channel:
    """What is known of one job or upload that somebody waits for."""

    watchers: int = 0
    followers: int = 0
    """Those of the watchers that want events."""
    known: bool = False
    status: str | None = None
    """None also if there is no such row any more."""
    row: tuple[Any, ...] = ()
    """Differs whenever something in the row has changed."""
    head: int = 0
    """The number of the newest event that streams may have."""
    complete: bool = False
    """The job has ended, and `head` is its last event."""
    events: deque[Told] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def after(self, seq: int) -> list[Told] | None:
        """The events after this one up to `head`; None if not all of them are kept here."""
        if not self.events or self.events[0].seq > seq + 1:
            return None
        return [event for event in self.events if event.seq > seq]

    def tell(self) -> None:
        """Wake all who wait."""
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass(frozen=True)
class _Seen:
    """What one look at the database showed."""

    rows: Mapping[str, tuple[Any, ...]]
    """Id -> status, when it was updated, the number of its newest event."""
    events: Sequence[Told]
    queue: tuple[Any, ...]


class Changes:
    """The poller, and a channel for each thing that is watched. Used from the event loop alone."""

    def __init__(self, sessions: Sessions, max_watchers: int, tell: Callable[[int], None]) -> None:
        """Set up; starts nothing.

        Args:
            max_watchers: streams and long polls that may be open at once.
            tell: told how many are open whenever there are more or fewer.
        """
        self._sessions, self._max_watchers = sessions, max_watchers
        self._channels: dict[str, Channel] = {}
        self._watchers, self._tell = 0, tell
        self._ends: dict[object, tuple[Channel, Callable[[], bool]]] = {}
        self._ends_at = 0.0
        self._watched = asyncio.Event()
        self._queue: tuple[Any, ...] = ()
        self._queue_at = -QUEUE_POLL_S
        self._task: asyncio.Task[None] | None = None
        # A thread of its own: those that requests use may all be busy.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="changes")
        # Few: where hundreds of streams are opened at once, forty threads that read would leave the event loop no time.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="streams")

    def start(self) -> None:
        """Begin to poll, whenever something is watched. Call it in the event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the poller."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        for threads in (self._thread, self._readers):
            threads.shutdown(wait=False)

    @property
    def open_streams(self) -> int:
        """How many streams and long polls are open."""
        return self._watchers

    @property
    def full(self) -> bool:
        """Whether no more may watch."""
        return self._watchers >= self._max_watchers

    def must_have_room(self) -> None:
        """Raise Unavailable if no more may watch."""
        if self.full:
            raise Unavailable(
                f"This server keeps {self._max_watchers:,} streams open, and no more. Try again in a few seconds, or "
                "ask for the job's status instead. Whoever runs the server can raise PARED_MAX_OPEN_STREAMS."
            )

    @contextlib.contextmanager
    def watching(self, key: str, *, events: bool = False) -> Iterator[Channel]:
        """The channel of a job, model or data set, as long as the block lasts.

        Args:
            key: its id.
            events: whether the job's events are wanted too.

        Raises:
            Unavailable: as many watch as may.
        """
        self.must_have_room()
        channel = self._channels.setdefault(key, Channel())
        channel.watchers += 1
        channel.followers += events
        self._watchers += 1
        self._tell(self._watchers)
        self._watched.set()
        try:
            yield channel
        finally:
            self._watchers -= 1
            self._tell(self._watchers)
            channel.followers -= events
            channel.watchers -= 1
            if not channel.watchers:
                del self._channels[key]

    async def follow(
        self, job_id: str, last_seq: int, *, until: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[bytes]:
        """A job's event stream after this number, as it comes, until the job has ended. Raises as `watching`.

        Args:
            until: whether to end earlier, asked every two seconds and at each change.
        """
        with self.watching(job_id, events=True) as channel, self._told_when(channel, until):
            events, complete = await self._read(job_id, last_seq, until)
            while True:
                if events:
                    yield b"".join(event.content for event in events)
                    last_seq = events[-1].seq
                if complete:
                    return
                silent_since = time.monotonic()
                while not channel.known or (channel.head <= last_seq and not channel.complete):
                    if until():
                        return
                    try:
                        async with asyncio.timeout(silent_since + PING_S - time.monotonic()):
                            await channel.changed.wait()
                    except TimeoutError:
                        yield KEEPALIVE_COMMENT
                        silent_since = time.monotonic()
                if until():
                    return
                kept = channel.after(last_seq) if channel.head > last_seq else []
                if kept is None:
                    events, complete = await self._read(job_id, last_seq, until)
                else:
                    events, complete = kept, _is_last(kept, ended=channel.complete)

    @contextlib.contextmanager
    def _told_when(self, channel: Channel, until: Callable[[], bool]) -> Iterator[None]:
        """Have the poller ask this and wake the channel: hundreds of streams with timers of their own cost more."""
        key = object()
        self._ends[key] = channel, until
        try:
            yield
        finally:
            del self._ends[key]

    def _tell_those_who_end(self) -> None:
        if time.monotonic() - self._ends_at < LOOK_S:
            return
        self._ends_at = time.monotonic()
        for channel in {id(channel): channel for channel, until in self._ends.values() if until()}.values():
            channel.tell()

    async def _read(self, job_id: str, last_seq: int, until: Callable[[], bool]) -> tuple[Sequence[Told], bool]:
        """Some events after this number, and whether they are the last. Waits for a database that does not answer."""
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self._readers, self._in_database, job_id, last_seq
                )
            except (SQLAlchemyError, Unavailable):  # the answer has begun: a client would see it break off
                log.warning("changes_not_read", exc_info=True)
            if until():
                return [], False
            await asyncio.sleep(MAX_POLL_S)

    def _in_database(self, job_id: str, last_seq: int) -> tuple[Sequence[Told], bool]:
        with self._sessions() as session:
            # Status first: a job seen as ended has its last event already, for both are one transaction.
            status = session.scalar(select(Job.status).where(Job.id == job_id))
            events = [_told(event) for event in events_after(session, job_id, last_seq)]
        return events, _is_last(events, ended=status is None or status in ENDED)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._channels:
                self._watched.clear()
                await self._watched.wait()
            self._tell_those_who_end()
            looked_for = dict(self._channels)
            heads = {key: channel.head if channel.known else None for key, channel in looked_for.items()}
            followed = {key for key, channel in looked_for.items() if channel.followers}
            began = time.monotonic()
            try:
                self._deliver(looked_for, await loop.run_in_executor(self._thread, self._look, heads, followed))
                pause_s = max(POLL_S, _SHARE * (time.monotonic() - began))
            except Exception:
                log.warning("changes_not_read", exc_info=True)
                pause_s = MAX_POLL_S
            await asyncio.sleep(min(pause_s, MAX_POLL_S))

    def _look(self, heads: Mapping[str, int | None], followed: Collection[str]) -> _Seen:
        with self._sessions() as session:
            rows: dict[str, tuple[Any, ...]] = {}
            for ids in batches(key for key in heads if key.startswith("job_")):
                rows.update((key, tuple(rest)) for key, *rest in session.execute(_JOBS, {"ids": ids}))
            for prefix, query in _UPLOADS:
                for ids in batches(key for key in heads if key.startswith(prefix)):
                    rows.update((key, (status, None, None)) for key, status in session.execute(query, {"ids": ids}))
            newer = {
                key: head
                for key, head in heads.items()
                if head is not None and key in followed and key in rows and (rows[key][2] or 0) > head
            }
            events: list[Told] = []
            for ids in batches(newer):
                each = (and_(JobEvent.job_id == key, JobEvent.seq > newer[key]) for key in ids)
                ordered = select(JobEvent).where(or_(*each)).order_by(JobEvent.job_id, JobEvent.seq)
                events.extend(map(_told, session.scalars(ordered.limit(_EVENTS_AT_ONCE))))
            if any(row[0] == "queued" for row in rows.values()):
                self._look_at_queue(session)
        return _Seen(rows, events, self._queue)

    def _look_at_queue(self, session: Session) -> None:
        if time.monotonic() - self._queue_at < QUEUE_POLL_S:
            return
        self._queue_at = time.monotonic()
        waiting = session.execute(select(func.count(), func.min(Job.id)).where(Job.status == "queued")).one()
        self._queue = (*waiting, *(worker.name for worker in living(session)))

    def _deliver(self, looked_for: Mapping[str, Channel], seen: _Seen) -> None:
        """Args: looked_for: no other channel is told: of what somebody watches since, nothing was asked."""
        events: dict[str, list[Told]] = {}
        for event in seen.events:
            events.setdefault(event.job_id, []).append(event)
        for key, channel in looked_for.items():
            status, updated_at, newest = seen.rows.get(key, (None, None, None))
            row = (status, updated_at, newest, seen.queue if status == "queued" else None)
            if new := events.get(key):
                channel.events.extend(event for event in new if event.seq > channel.head)
                channel.head = max(channel.head, new[-1].seq)
            elif not channel.known or not channel.followers:
                # Nobody has asked for these events yet: who does reads them in the database.
                channel.events.clear()
                channel.head = newest or 0
            complete = (status is None or status in ENDED) and channel.head >= (newest or 0)
            if not channel.known or new or row != channel.row or complete != channel.complete:
                channel.known, channel.status, channel.row, channel.complete = True, status, row, complete
                channel.tell()


def _told(event: JobEvent) -> Told:
    content = format_sse_event(data_str=json.dumps(event.data), event=event.kind, id=str(event.seq))
    return Told(event.job_id, event.seq, event.kind == "done", content)


def _is_last(events: Sequence[Told], *, ended: bool) -> bool:
    return events[-1].last if events else ended
