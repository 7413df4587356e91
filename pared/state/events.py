"""Owns a job's stream of events: numbered from 1 without gaps, in the order in which they were committed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from pared.state.tables import Job, JobEvent

EventKind = Literal["status", "progress", "metric", "log", "done"]


def add_event(session: Session, job_id: str, kind: EventKind, data: dict[str, Any]) -> int:
    """Append one event in the caller's transaction. Returns its number."""
    return add_events(session, job_id, [(kind, data)])


def add_events(session: Session, job_id: str, events: Iterable[tuple[EventKind, dict[str, Any]]]) -> int:
    """Append events in order, in the caller's transaction. Returns the number of the last."""
    # Holding the job's row makes writers take turns, so no reader sees number 8 before number 7.
    session.execute(select(Job.id).where(Job.id == job_id).with_for_update())
    last = session.scalar(select(func.max(JobEvent.seq)).where(JobEvent.job_id == job_id)) or 0
    rows = [
        {"job_id": job_id, "seq": seq, "kind": kind, "data": data}
        for seq, (kind, data) in enumerate(events, start=last + 1)
    ]
    if rows:
        session.execute(insert(JobEvent), rows)
    return last + len(rows)


def begin_events(session: Session, job_ids: Iterable[str], kind: EventKind, data: dict[str, Any]) -> None:
    """The first event of each of some jobs that were made in the caller's transaction."""
    session.execute(insert(JobEvent), [{"job_id": job, "seq": 1, "kind": kind, "data": data} for job in job_ids])


def events_after(session: Session, job_id: str, seq: int, *, limit: int = 500) -> Sequence[JobEvent]:
    """The next events after number `seq`, in order."""
    return session.scalars(
        select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > seq).order_by(JobEvent.seq).limit(limit)
    ).all()
