"""Owns the sweep: what keeps jobs moving and the store clean, whichever process died. Safe to run in many at once."""

from __future__ import annotations

import random
import time
from typing import Any

import structlog
from celery import Celery
from sqlalchemy import exists, func, select

from pared.errors import OutOfAttempts
from pared.state import lifecycle
from pared.state.events import add_event
from pared.state.job_spans import record_lost
from pared.state.objects import ObjectStore, open_store
from pared.state.queue import relay, send_again
from pared.state.retention import collect
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.tables import Job, JobEvent, Outbox, by_id_of_few, db_now
from pared.state.workers import waits_for

_RELAY_AFTER_S = 2.0  # the API sends the messages of its own jobs at once; the sweep only those it did not manage
_EXPLAIN_AFTER_S = 60.0
AT_ONCE = 4
"""Of many processes so many sweep in each round, on average: else a thousand would ask the same a thousand times. That
none does in a round happens once in fifty."""
# Most rounds find nothing, and ask no more than this. Made once: to build a query takes longer than to run it.
_NOW = select(db_now())
_ANYTHING_LOST = select(db_now(), exists().where(lifecycle.lost()))
_ANYTHING_TO_DO = select(
    exists(select(Outbox.id)),
    # Not whether there is one: PostgreSQL looks for that in the table, from its beginning.
    select(func.min(Job.run_after)).where(Job.status == "queued").scalar_subquery() <= db_now(),
)

log = structlog.get_logger()


class Sweep:
    """One process's sweep: call it every `settings.sweep_s`."""

    def __init__(
        self, sessions: Sessions, settings: Settings, *, store: ObjectStore | None = None, queue: Celery | None = None
    ) -> None:
        """Args: store, queue: those of the process, where it has them already."""
        self._sessions = sessions
        self._settings = settings
        self._store = store or open_store(settings)
        self._queue = queue
        self._looked_at: float | None = None
        self._patient_until = 0.0
        self._collect_at = time.monotonic()

    def __call__(self, processes: int = 1) -> None:
        """Requeue lost jobs, send messages again where they are lost and, now and then, delete what nobody needs.

        Args:
            processes: that sweep, this one included; of many, some do in each round.
        """
        if not _chosen_of(processes):
            with self._sessions() as session:
                now = session.scalars(_NOW).one()
            self._workers_may_have_been_cut_off(now)  # a round without a look would pass for an outage
            return
        self.expire()
        with self._sessions() as session:
            owed, waiting = session.execute(_ANYTHING_TO_DO).one()
        if owed:
            relay(self._sessions, older_than_s=_RELAY_AFTER_S, queue=self._queue)
        if waiting:
            send_again(self._sessions, self._settings.ring_again_s, queue=self._queue)
            self.explain_waiting()
        if time.monotonic() >= self._collect_at:
            self._collect_at = time.monotonic() + min(600.0, max(self._settings.keep_unreferenced_s / 4, 1.0))
            if _chosen_of(processes):  # it lists the whole store
                self.collect()

    def expire(self) -> list[str]:
        """Requeue, cancel or fail jobs whose lease ran out. Returns their ids."""
        with self._sessions() as session:
            now, lost = session.execute(_ANYTHING_LOST).one()
        if self._workers_may_have_been_cut_off(now) or not lost:
            return []
        settings = self._settings
        out_of_attempts = OutOfAttempts(
            f"The worker running this job was lost {settings.max_lost_attempts} times. "
            "Ask whoever runs this server to look at the workers' log, then submit the job again."
        ).as_job_error()
        with self._sessions.begin() as session:
            expired = lifecycle.expire(session, settings.max_lost_attempts, out_of_attempts)
        if expired:
            log.warning("leases_ran_out", jobs=expired)
            record_lost(self._sessions, expired)
        return expired

    def explain_waiting(self) -> None:
        """Say in the log of a job that it waits for a worker which is not there; once, until there is another event."""
        with self._sessions() as session:
            waits = (Job.status == "queued", Job.run_after <= db_now(), Job.updated_at < db_now() - _EXPLAIN_AFTER_S)
            devices = session.scalars(select(Job.device).where(*waits).distinct()).all()
            reasons = {device: why for device in devices if (why := waits_for(session, device)) is not None}
            owed = session.execute(
                select(Job.id, Job.device)
                .where(*waits, Job.device.in_(reasons), ~_explained())
                .order_by(by_id_of_few())
                .limit(100)
            ).all()
        for job_id, device in owed:
            with self._sessions.begin() as session:
                # Of several sweeps, one says it.
                session.execute(select(Job.id).where(Job.id == job_id).with_for_update())
                if session.scalar(select(Job.id).where(Job.id == job_id, *waits, ~_explained())):
                    add_event(session, job_id, "log", {"text": reasons[device]})

    def collect(self) -> None:
        """Delete what is past its age, unreferenced objects, and what dead processes left."""
        gone = collect(self._sessions, self._store, self._settings)
        if gone.jobs or gone.uploads or gone.partial_uploads:
            counts = {"jobs": len(gone.jobs), "uploads": len(gone.uploads), "partial_uploads": gone.partial_uploads}
            log.info("rows_collected", **counts)
        if gone.objects:
            log.info("objects_collected", objects=gone.objects)

    def _workers_may_have_been_cut_off(self, now: float) -> bool:
        """After a pause of the database (or of the whole machine) give living workers one lease to renew theirs."""
        # Longer than between two sweeps, and shorter than what a lease that was just renewed outlives.
        most = (self._settings.sweep_s + self._settings.lease_s - self._settings.heartbeat_s) / 2
        if self._looked_at is not None and now - self._looked_at > most:
            self._patient_until = now + self._settings.lease_s
            log.warning("sweep_was_interrupted", seconds=round(now - self._looked_at, 1))
        self._looked_at = now
        return now < self._patient_until


def _chosen_of(processes: int) -> bool:
    return random.random() * processes < AT_ONCE


def _explained() -> Any:
    """WHERE clause: the newest event of a queued job is a line of the log, and no longer that it is queued."""
    newest = select(func.max(JobEvent.seq)).where(JobEvent.job_id == Job.id).correlate(Job).scalar_subquery()
    return exists().where(JobEvent.job_id == Job.id, JobEvent.seq == newest, JobEvent.kind == "log")
