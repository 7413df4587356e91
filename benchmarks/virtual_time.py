"""A PostgreSQL database whose clock is set from here, and what each operation on it cost.

`db_now()` is the only clock of the state code, and on PostgreSQL it asks `clock_timestamp()`. In a database of the
simulation a function of that name stands before PostgreSQL's own in the search path, so that statements run as they
are. What it takes to set the clock is counted to no operation.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, text

from pared.state.session import Sessions, make_engine, make_sessions

# random() keeps it volatile, as PostgreSQL's own is, so that the planner treats it alike; as one expression it is
# written into the statement, and costs a fraction of a microsecond.
_CLOCK = """
create schema virtual;
create function virtual.clock_timestamp() returns timestamptz language sql volatile as
$$ select to_timestamp(current_setting('pared.now')::double precision + 0 * random()) $$;
"""
SEARCH_PATH = "virtual, pg_catalog, public"


def install_clock(engine: Engine) -> None:
    """Put the function there; once, after the tables were made."""
    with engine.begin() as connection:
        connection.execute(text(_CLOCK))


@dataclass
class Cost:
    """What the operations of one name took."""

    seconds: list[float] = field(default_factory=list)
    server_s: list[float] = field(default_factory=list)
    """On the processor, of PostgreSQL's process for the connection."""
    statements: list[int] = field(default_factory=list)

    def quantile_ms(self, q: float) -> float:
        """Of the seconds."""
        if len(self.seconds) < 2:
            return 1000 * self.seconds[0]
        return 1000 * statistics.quantiles(self.seconds, n=1000, method="inclusive")[round(q * 1000) - 1]

    @property
    def server_ms(self) -> float:
        """The mean."""
        return 1000 * statistics.fmean(self.server_s)


class VirtualDatabase:
    """Sessions on one connection, under a clock that stands still until `now` is set."""

    def __init__(self, url: str, now: float) -> None:
        """Args: url: of a database with the clock."""
        self.now = now
        self.costs: dict[str, Cost] = defaultdict(Cost)
        self._engine = make_engine(url)
        self.sessions: Sessions = make_sessions(self._engine)
        self._statements, self._set_s, self._set_server_s = 0, 0.0, 0.0
        self._backends: set[Path] = set()
        event.listen(self._engine, "connect", self._connected)
        event.listen(self._engine, "checkout", self._checked_out)
        event.listen(self._engine, "before_cursor_execute", self._count)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Count what is done inside as one operation."""
        statements, set_s, set_server_s = self._statements, self._set_s, self._set_server_s
        server_s, begun = self._server_s(), time.perf_counter()
        yield
        cost = self.costs[name]
        cost.seconds.append(time.perf_counter() - begun - (self._set_s - set_s))
        cost.server_s.append(self._server_s() - server_s - (self._set_server_s - set_server_s))
        cost.statements.append(self._statements - statements)

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    def _connected(self, connection: Any, record: Any) -> None:
        pid = connection.info.backend_pid
        self._backends.add(Path(f"/proc/{pid}/schedstat"))
        with _autocommit(connection):
            connection.execute(f"set search_path = {SEARCH_PATH}")

    def _checked_out(self, connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.get("now") == self.now:
            return
        server_s, begun = self._server_s(), time.perf_counter()
        with _autocommit(connection):
            connection.execute(f"set pared.now = '{self.now!r}'")
        record.info["now"] = self.now
        self._set_s += time.perf_counter() - begun
        self._set_server_s += self._server_s() - server_s

    def _count(self, *_: Any) -> None:
        self._statements += 1

    def _server_s(self) -> float:
        return sum(int(path.read_text().split()[0]) for path in self._backends if path.exists()) / 1e9


@contextmanager
def _autocommit(connection: Any) -> Iterator[None]:
    before = connection.autocommit
    connection.autocommit = True
    yield
    connection.autocommit = before
