"""Owns what one API process counts of each owner: requests a second, and who follows jobs; and cuts off keys that end.

The counts are in memory, so each process counts for itself; limits of what is stored are in `pared.state.limits`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from sqlalchemy.exc import SQLAlchemyError

from pared.state.keys import Caller, working
from pared.state.limits import BYTES_STORED, REQUESTS, STREAMS, over
from pared.state.session import Sessions
from pared.state.settings import Settings

BURST_S = 20.0
"""An owner who was quiet for so long may send the requests of so many seconds at once."""
WATCH_S = 1.0
"""How often the keys of those who follow jobs are looked at."""
MAX_BUCKETS = 10_000

log = structlog.get_logger()


@dataclass
class Follower:
    """One event stream or long poll that is open."""

    caller: Caller
    cut_off: bool = False
    """Its key works no more: whoever serves it ends it."""


@dataclass
class _Bucket:
    tokens: float
    at: float = field(default_factory=time.monotonic)


class Admission:
    """The counts of one process. All methods may be called by several threads at once."""

    def __init__(self, sessions: Sessions, settings: Settings) -> None:
        """Args: settings: with the limits."""
        self._sessions = sessions
        self._rate, self._most_streams = settings.max_requests_per_s, settings.max_streams
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}
        self._followers: dict[int, Follower] = {}
        self._incoming: Counter[str] = Counter()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def stop(self) -> None:
        """End the thread that watches keys."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def count_request(self, owner: str) -> None:
        """Take one of the requests that the owner may send now. Raises OverLimit."""
        if not self._rate:
            return
        most = max(1.0, self._rate * BURST_S)
        with self._lock:
            now = time.monotonic()
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.clear()
            bucket = self._buckets.setdefault(owner, _Bucket(most, now))
            bucket.tokens = min(most, bucket.tokens + (now - bucket.at) * self._rate)
            bucket.at = now
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                return
        raise over(
            REQUESTS, f"You may send {self._rate:g} requests a second on average. Wait for jobs with `Prefer: wait=30`."
        )

    @contextmanager
    def following(self, caller: Caller) -> Iterator[Follower]:
        """Count an event stream or long poll while it is open, and watch its key. Raises OverLimit."""
        follower = Follower(caller)
        with self._lock:
            open_now = sum(each.caller.owner == caller.owner for each in self._followers.values())
            if self._most_streams and open_now >= self._most_streams:
                raise over(
                    STREAMS,
                    f"{open_now} event streams and long polls of yours are open, and no more than {self._most_streams} "
                    "may be. Close some.",
                )
            self._followers[id(follower)] = follower
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="keys", daemon=True)
                self._thread.start()
        try:
            yield follower
        finally:
            with self._lock:
                del self._followers[id(follower)]

    @contextmanager
    def receiving(self, owner: str, most: int, left: int | None) -> Iterator[None]:
        """Set aside room for an upload while its bytes come, so that many at once take up no more than one may.

        Args:
            most: how many bytes may come.
            left: how many more bytes the owner may store; None: any number.

        Raises:
            OverLimit: there is not so much room.
        """
        with self._lock:
            room = None if left is None else left - self._incoming[owner]
            if room is not None and room < most:
                raise over(
                    BYTES_STORED,
                    f"{max(room, 0):,} more bytes may be stored for you beside what is coming now, and this upload may "
                    f"have {most:,}. Delete models or data sets, or send Content-Length if it has fewer.",
                )
            self._incoming[owner] += most
        try:
            yield
        finally:
            with self._lock:
                self._incoming[owner] -= most
                if not self._incoming[owner]:
                    del self._incoming[owner]

    def _watch(self) -> None:
        while not self._stopped.wait(WATCH_S):
            with self._lock:
                followers = [each for each in self._followers.values() if each.caller.key_id is not None]
            keys = {each.caller.key_id for each in followers if each.caller.key_id is not None}
            if not keys:
                continue
            try:
                with self._sessions() as session:
                    good = working(session, keys)
            except SQLAlchemyError as error:
                log.warning("database_away", reason=str(error))
                continue
            for follower in followers:
                follower.cut_off = follower.caller.key_id not in good
