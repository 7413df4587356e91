"""Owns the spans of a job that are told from its events: the time it was queued, and attempts lost with a worker."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, defer

from pared.state import tracing
from pared.state.session import Sessions
from pared.state.tables import Job, JobEvent
from pared.statuses import HELD

QUEUED, ATTEMPT = "queued", "attempt"
"""Names of spans; those of stages are named as the stages."""
LOST = "worker-lost"
"""The error of an attempt whose worker is gone."""

log = structlog.get_logger()


def attributes_of(job_id: str, job_type: str, owner: str, attempt: int) -> dict[str, str | int]:
    """What the spans of a job have in common."""
    return {"pared.job.id": job_id, "pared.job.type": job_type, "pared.owner.id": owner, "pared.attempt": attempt}


def queued_at(sessions: Sessions, job_id: str) -> float | None:
    """When a job that was just claimed was last queued; None: the database does not answer."""
    try:
        with sessions() as session:
            return _last_queued(_statuses(session, job_id))
    except SQLAlchemyError as error:
        log.warning("spans_not_recorded", job=job_id, reason=str(error))
        return None


def record_lost(sessions: Sessions, job_ids: Sequence[str]) -> None:
    """The spans of attempts that have just been found lost with their worker: nobody else is left to tell of them."""
    if not tracing.on():
        return
    for job_id in job_ids:
        try:
            with sessions() as session:
                job = session.get(Job, job_id, options=[defer(Job.report), defer(Job.spec)])
                if job is not None and job.traceparent is not None:
                    _record_lost(job, _statuses(session, job_id))
        except SQLAlchemyError as error:
            log.warning("spans_not_recorded", job=job_id, reason=str(error))


def _record_lost(job: Job, statuses: Sequence[JobEvent]) -> None:
    """From the claim, over the stages that were written down, to the event that the lease has run out."""
    # Another worker may have claimed the job since.
    ended = next((event for event in reversed(statuses) if event.data["status"] not in HELD), None)
    its = [event for event in statuses if ended is not None and event.seq < ended.seq]
    claimed = next(
        (event for event in reversed(its) if event.data["status"] == "running" and "stage" not in event.data), None
    )
    if ended is None or claimed is None:
        return
    attributes = attributes_of(job.id, job.type, job.owner, claimed.data["attempt"])
    if (queued := _last_queued([event for event in its if event.seq < claimed.seq])) is not None:
        tracing.begin(QUEUED, job.traceparent, attributes, at=queued).end(claimed.created_at)
    attempt = tracing.begin(ATTEMPT, job.traceparent, attributes, at=claimed.created_at)
    stages = [event for event in its if event.seq > claimed.seq and "stage" in event.data]
    for event, after in pairwise([*stages, ended]):
        span = attempt.begin(event.data["stage"], attributes, at=event.created_at)
        if after is ended:
            span.fail(LOST)
        span.end(after.created_at)
    attempt.fail(LOST)
    attempt.end(ended.created_at)


def _last_queued(statuses: Sequence[JobEvent]) -> float | None:
    return next((event.created_at for event in reversed(statuses) if event.data["status"] == "queued"), None)


def _statuses(session: Session, job_id: str) -> Sequence[JobEvent]:
    events = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.kind == "status")
    return session.scalars(events.order_by(JobEvent.seq)).all()
