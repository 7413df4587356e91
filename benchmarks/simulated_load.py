"""Processes that do one thing each as fast as they can, for what PostgreSQL sustains."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

from virtual_time import VirtualDatabase

from pared.specs import PruneSpec
from pared.state import lifecycle
from pared.state.jobs import submit
from pared.state.limits import most_running
from pared.state.settings import Settings
from pared.state.sweep import Sweep
from pared.state.turns import next_in_turn

KINDS = ("renew", "look for a cancel", "write progress", "submit, choose, claim and end", "look for what was lost")


def prepare(database: VirtualDatabase, settings: Settings, owners: list[str]) -> tuple[list[tuple[str, int]], int]:
    """A thousand jobs that are held, and as many that wait as owners may have. Returns those, and how many wait."""
    held, waiting = [], 0
    for n in range(1000):
        with database.sessions.begin() as session:
            job = lifecycle.create(session, owners[n % len(owners)], _spec(n % len(owners)))
            claimed = lifecycle.claim(session, job.id, f"load:{n}", 1e6, ["cpu"])
            assert claimed is not None
            held.append((claimed.id, claimed.fence))
    for n in range(100 * len(owners)):
        with database.sessions.begin() as session:
            lifecycle.create(session, owners[n % len(owners)], _spec(n % len(owners)))
        waiting += 1
    return held, waiting


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
