"""Processes that do one thing each as fast as they can, for what PostgreSQL sustains."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

from sqlalchemy import text
from virtual_time import VirtualDatabase

from pared.specs import PruneSpec
from pared.state import lifecycle
from pared.state.jobs import submit
from pared.state.limits import most_running
from pared.state.session import make_engine
from pared.state.settings import Settings
from pared.state.sweep import Sweep
from pared.state.turns import next_in_turn

_COLUMNS = """
insert into jobs (id, owner, type, status, spec, created_at, updated_at, attempt, crash_count, fence, held_s, run_after,
  lease_owner, lease_expires_at)
"""
_OF = "(cast(:owners as text[]))[1 + n % :many]"
_NOW = "cast(:now as double precision)"
_HELD = f"""{_COLUMNS}
select 'job_1' || lpad(n::text, 25, '0'), {_OF}, 'prune', 'running', '{{}}', {_NOW}, {_NOW}, 1, 0, 1, 0, 0,
  'host:' || n, {_NOW} + 1000000
from generate_series(1, 1000) as n returning id, fence
"""
_WAITING = f"""{_COLUMNS}
select 'job_2' || lpad(n::text, 25, '0'), {_OF}, 'prune', 'queued', '{{}}', {_NOW}, {_NOW}, 0, 0, 0, 0, 0, null, null
from generate_series(1, 10000) as n
"""
KINDS = ("renew", "look for a cancel", "write progress", "submit, choose, claim and end", "look for what was lost")


def prepare(url: str, now: float, owners: list[str]) -> tuple[list[tuple[str, int]], int]:
    """A thousand jobs that are held, and ten thousand that wait. Returns those, and how many wait."""
    engine = make_engine(url)
    given = {"now": now, "owners": owners, "many": len(owners)}
    with engine.begin() as connection:
        rows = connection.execute(text(_HELD), given).all()
        waiting = connection.execute(text(_WAITING), given).rowcount
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("analyze"))
    engine.dispose()
    return [(row.id, row.fence) for row in rows], waiting


def client(
    kind: str,
    url: str,
    now: float,
    settings: Settings,
    owners: list[str],
    held: list[tuple[str, int]],
    begins_at: float,
    seconds: float,
) -> float:
    """Do it from a moment on. Returns how often a second."""
    database = VirtualDatabase(url, now)
    acts = _acts(kind, database, settings, owners, held)
    next(acts)
    time.sleep(max(0.0, begins_at - time.time()))
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        next(acts)
        done += 1
    rate = done / (time.perf_counter() - begun)
    database.close()
    return rate


def _acts(kind: str, database: VirtualDatabase, settings: Settings, owners: list[str], held: Any) -> Any:
    sessions, numbers = database.sessions, random.Random()
    sweep = Sweep(sessions, settings) if kind == "look for what was lost" else None
    for job_id, fence in itertools.cycle(held):
        if kind == "renew":
            with sessions.begin() as session:
                assert lifecycle.renew(session, job_id, fence, 1e6) is False
        elif kind == "look for a cancel":
            with sessions() as session:
                assert lifecycle.cancel_requested(session, job_id, fence) is False
        elif kind == "write progress":
            with sessions.begin() as session:
                assert lifecycle.advance(session, job_id, fence, {}, [("progress", {"fraction": 0.5})])
        elif sweep is not None:
            assert sweep.expire() == []
        else:
            number = numbers.randrange(len(owners))
            submit(sessions, owners[number], _spec(number), settings=settings)
            with sessions() as session:
                most_held, by = most_running(session, settings, ["cpu"])
                chosen = next_in_turn(session, "jobs", ["cpu"], asked_for="auto", most_held=most_held, held_by=by)
            assert chosen is not None
            with sessions.begin() as session:
                job = lifecycle.claim(session, chosen, "load", 1e6, ["cpu"], most_held=most_held, held_by=by)
            if job is not None:  # another process may have been first
                with sessions.begin() as session:
                    assert lifecycle.succeed(session, chosen, job.fence, {"verdict": "smaller"})
        yield


def _spec(number: int) -> PruneSpec:
    return PruneSpec(type="prune", model=f"mdl_{number:026d}", dataset=f"dst_{number:026d}", amount=0.5)
