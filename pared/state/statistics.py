"""Owns what the database says of the whole service in numbers: jobs, workers and bytes, by a few aggregated queries."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from sqlalchemy import func, literal, select, union_all
from sqlalchemy.orm import Session, defer

from pared.state.session import batches
from pared.state.tables import Dataset, Job, JobEvent, Model, Outbox, PartialUpload, db_now, first_job_id
from pared.state.turns import Lane, lane_of
from pared.state.workers import living
from pared.statuses import ENDED, HELD, JobStatus, Stage

OPEN: tuple[JobStatus, ...] = ("queued", *HELD)
_STAGES = frozenset(get_args(Stage))
_CLOCKS_S = 60.0
"""So far the clocks of the processes that make ids may be apart."""
_GAP_S = 3600.0
"""After so long without a look, jobs that ended meanwhile are not looked for."""


@dataclass
class Waiting:
    """The jobs that wait for the same thing."""

    count: int = 0
    oldest_s: float = 0.0
    """How long the one waits that has waited longest."""


@dataclass(frozen=True)
class WorkerNow:
    """A worker that lives, and what it does."""

    name: str
    device: str
    devices: Sequence[str]
    sandbox: str
    device_problem: bool
    sandbox_problem: bool
    holds: Counter[Lane]
    """Jobs of each lane that it holds."""


@dataclass(frozen=True)
class Statistics:
    """What one look at the database shows."""

    jobs: dict[tuple[str, str], int]
    """Type and status -> how many there are."""
    waiting: dict[tuple[Lane, str], Waiting]
    """Lane, and device that is asked for -> the queued jobs."""
    stages: Counter[tuple[str, str]]
    """Type and stage -> the jobs that are in it."""
    workers: Sequence[WorkerNow]
    stored_bytes: dict[str, int]
    """What it is -> bytes, as rows count them: of two uploads of one file each counts."""
    outbox: int
    """Messages that the broker does not have yet."""


@dataclass(frozen=True)
class Ended:
    """A job that has ended."""

    type: str
    status: str
    device: str
    waited_s: float | None
    """From its making to its first start; None: it never started."""
    seconds: float | None
    """From its first start to its end."""
    stages: Sequence[tuple[str, float]]
    """Each time that a stage was entered, and how long it lasted."""


def read_statistics(session: Session) -> Statistics:
    """Look at the whole database, at rows of jobs by an index."""
    kinds = session.execute(select(Job.type, Job.status, func.count()).group_by(Job.status, Job.type)).all()
    waiting: dict[tuple[Lane, str], Waiting] = {}
    since = func.min(Job.updated_at)  # a queued row was written last when it was queued
    queued = select(Job.type, Job.device, func.count(), db_now() - since).where(Job.status == "queued")
    for job_type, device, count, oldest_s in session.execute(queued.group_by(Job.type, Job.device)):
        group = waiting.setdefault((lane_of(job_type), device), Waiting())
        group.count += count
        group.oldest_s = max(group.oldest_s, oldest_s)
    held = session.execute(select(Job.type, Job.stage, Job.lease_owner).where(Job.status.in_(HELD))).all()
    holds: dict[str | None, Counter[Lane]] = {}
    for row in held:
        holds.setdefault(row.lease_owner, Counter())[lane_of(row.type)] += 1
    workers = [
        WorkerNow(
            row.name,
            row.device,
            row.devices,
            row.sandbox,
            row.device_problem is not None,
            row.sandbox_problem is not None,
            holds.get(row.name, Counter()),
        )
        for row in living(session)
    ]
    return Statistics(
        jobs={(row[0], row[1]): row[2] for row in kinds},
        waiting=waiting,
        stages=Counter((row.type, _stage(row.stage)) for row in held),
        workers=workers,
        stored_bytes=_stored_bytes(session),
        outbox=session.scalar(select(func.count()).select_from(Outbox)) or 0,
    )


@dataclass(frozen=True)
class Failures:
    """The jobs that have failed since some time."""

    counts: Sequence[tuple[str, str, int]]
    """Type, code of the error, how many; the most first."""
    latest: Sequence[Job]


def read_failures(session: Session, within_s: float, most: int) -> Failures:
    """The jobs made within so many seconds that have failed, those that the API makes for itself too.

    Args:
        most: how many of the latest are told one by one.
    """
    failed = (Job.status == "failed", Job.id > first_job_id(time.time() - within_s))
    code = Job.error["code"].as_string()
    counts = session.execute(
        select(Job.type, code, func.count()).where(*failed).group_by(Job.type, code).order_by(func.count().desc())
    ).all()
    latest = session.scalars(
        select(Job).where(*failed).options(defer(Job.report), defer(Job.spec)).order_by(Job.id.desc()).limit(most)
    ).all()
    return Failures([(row[0], row[1] or "?", row[2]) for row in counts], latest)


def _stored_bytes(session: Session) -> dict[str, int]:
    unfinished = (PartialUpload.result_id.is_(None), PartialUpload.expires_at >= db_now())
    sums = (
        select(literal("models"), func.sum(Model.size_bytes)).where(Model.deleted_at.is_(None)),
        select(literal("datasets"), func.sum(Dataset.size_bytes)).where(Dataset.deleted_at.is_(None)),
        select(literal("results"), func.sum(Job.result_bytes)),
        select(literal("unfinished_uploads"), func.sum(PartialUpload.received_bytes)).where(*unfinished),
    )
    return {kind: int(size or 0) for kind, size in session.execute(union_all(*sums))}


def _stage(name: str | None) -> str:
    """A stage by its name; what a job's own process calls it, where it is none, becomes no label."""
    return "none" if name is None else name if name in _STAGES else "other"


@dataclass
class EndedJobs:
    """Finds the jobs that ended since the last look, each once; those from before the first look are left out.

    Such a job was open at the last look, or was made since, so its row is found by its id.
    """

    _open: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)
    _looked_at: float | None = None

    @classmethod
    def of(cls, state: str) -> EndedJobs:
        """One that goes on after what `state` of another has seen; empty: after nothing."""
        if not state:
            return cls()
        of_jobs, told, looked_at = json.loads(state)
        return cls(set(of_jobs), set(told), looked_at)

    @property
    def state(self) -> str:
        """What it has seen."""
        return json.dumps([sorted(self._open), sorted(self._told), self._looked_at])

    def read(self, session: Session) -> list[Ended]:
        """Those that ended since the last look; none at the first one, or after an hour without any."""
        now = time.time()
        begins = self._looked_at is None or now - self._looked_at > _GAP_S
        # Before the open ones are looked at: one that is made and ends in between is found the next time.
        since = first_job_id((now if begins or self._looked_at is None else self._looked_at) - _CLOCKS_S)
        still_open = set(session.scalars(select(Job.id).where(Job.status.in_(OPEN))))
        young = set(session.scalars(select(Job.id).where(Job.id > since, Job.status.in_(ENDED))))
        found = set() if begins else (self._open - still_open | young) - self._told
        ended = [each for ids in batches(sorted(found)) for each in _ended(session, ids)]
        self._open, self._looked_at = still_open, now
        self._told = {job_id for job_id in self._told | found | young if job_id > first_job_id(now - 2 * _CLOCKS_S)}
        return ended


def _ended(session: Session, ids: Sequence[str]) -> list[Ended]:
    of_status = (JobEvent.job_id.in_(ids), JobEvent.kind == "status")
    events = select(JobEvent.job_id, JobEvent.created_at, JobEvent.data).where(*of_status)
    stages: dict[str, list[tuple[str, float]]] = {}
    before: tuple[str, float, str] | None = None
    for job_id, at, data in session.execute(events.order_by(JobEvent.job_id, JobEvent.seq)):
        if before is not None and before[0] == job_id:
            stages.setdefault(job_id, []).append((before[2], max(0.0, at - before[1])))
        name = data.get("stage")
        before = (job_id, at, _stage(name)) if isinstance(name, str) else None
    rows = session.execute(
        select(Job.id, Job.type, Job.status, Job.device, Job.created_at, Job.started_at, Job.finished_at).where(
            Job.id.in_(ids), Job.status.in_(ENDED)
        )
    )
    return [
        Ended(
            row.type,
            row.status,
            row.device,
            None if row.started_at is None else max(0.0, row.started_at - row.created_at),
            None if row.started_at is None or row.finished_at is None else max(0.0, row.finished_at - row.started_at),
            stages.get(row.id, []),
        )
        for row in rows
    ]
