"""Owns how a job's status changes: each transition is one conditional UPDATE with its events, in one transaction.

    queued -> running -> succeeded | failed | canceled
    queued -> canceled; running -> canceling -> canceled
    running -> queued, when a worker releases the job or its lease runs out

Where another process was first, an UPDATE changes no row, and the function says so. `fence` rises with every claim, so
nothing that a former holder writes can match. Ended jobs never change. Whoever subscribes is told of each transition
once it is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from sqlalchemy import ColumnElement, Row, Update, and_, case, event, insert, select, update
from sqlalchemy.orm import Session

from pared.job_types import BY_NAME, type_of
from pared.specs import JobSpec
from pared.state import tracing
from pared.state.deliveries import owe
from pared.state.events import EventKind, add_event, add_events, begin_events
from pared.state.inspections import accept, reject
from pared.state.outcomes import outcome_of
from pared.state.tables import Artifact, Job, Outbox, db_now, new_id
from pared.state.turns import claimable, held_below, lane_of, lock_owner, note_served
from pared.statuses import ENDED, HELD, JobStatus

log = structlog.get_logger()


# -- who is told ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transition:
    """A job has come to another status, and this is committed."""

    job_id: str
    owner: str
    type: str
    status: JobStatus
    attempt: int
    error: dict[str, Any] | None


SUBSCRIBERS: list[Callable[[Transition], None]] = []
"""Each is called with every committed transition, by the thread that committed it: it should return at once."""

_PENDING = "pared.transitions"


@event.listens_for(Session, "after_commit")
def _tell_subscribers(session: Session) -> None:
    for transition in session.info.pop(_PENDING, ()):
        for subscriber in SUBSCRIBERS:
            try:
                subscriber(transition)
            except Exception:
                log.exception("subscriber_failed", job=transition.job_id, status=transition.status)


@event.listens_for(Session, "after_rollback")
def _forget(session: Session) -> None:
    session.info.pop(_PENDING, None)


# -- transitions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewJob:
    """A job that is to be made."""

    spec: JobSpec
    request_id: str | None = None
    """Of the HTTP request that it comes from; the worker's log lines about the job carry it."""
    key_id: str | None = None
    """Of the key that it is submitted with."""
    traceparent: str | None = None
    """Of the span that it comes from."""


def create(
    session: Session, owner: str, spec: JobSpec, *, request_id: str | None = None, key_id: str | None = None
) -> Job:
    """A queued job for the request that is being served, with the message that the broker is owed."""
    [job] = create_all(session, owner, [NewJob(spec, request_id, key_id, tracing.traceparent())])
    tracing.note_job(job.id)
    return job


def create_all(session: Session, owner: str, new: Sequence[NewJob]) -> list[Job]:
    """Queued jobs of one owner, in this order, each with the message that the broker is owed."""
    jobs = [
        Job(
            id=new_id("job"),
            owner=owner,
            type=type_of(each.spec).name,
            status="queued",
            attempt=0,
            device=each.spec.needs_device,
            spec=each.spec.model_dump(mode="json"),
            request_id=each.request_id,
            traceparent=each.traceparent,
            key_id=each.key_id,
        )
        for each in new
    ]
    session.add_all(jobs)
    session.flush()
    session.execute(insert(Outbox), [{"job_id": job.id} for job in jobs])
    begin_events(session, [job.id for job in jobs], "status", {"status": "queued", "attempt": 0})
    pending = session.info.setdefault(_PENDING, [])
    pending += [Transition(job.id, owner, job.type, "queued", 0, None) for job in jobs]
    return jobs


def claim(
    session: Session,
    job_id: str,
    worker: str,
    lease_s: float,
    devices: Sequence[str],
    sandbox: str | None = None,
    *,
    most_held: int = 0,
    held_by: Sequence[str] | None = None,
) -> Job | None:
    """queued -> running, with a lease and the next fence.

    Args:
        worker: the name of whoever claims it.
        devices: what the worker computes on; a job that asks for another one is not claimed.
        sandbox: the level that the job is held to.
        most_held: it is not claimed where its owner has so many jobs of its lane under way; 0: any number.
        held_by: where only jobs count that these workers hold, their names.

    Returns:
        The job as it is now; None: it is not there to be claimed.
    """
    found = session.execute(select(Job.owner, Job.type).where(Job.id == job_id)).first()
    if found is None:
        return None
    owner, lane = found.owner, lane_of(found.type)
    lock_owner(session, owner)
    room = [held_below(owner, lane, most_held, held_by)] if most_held else []
    statement = (
        update(Job)
        .where(Job.id == job_id, claimable(devices), *room)
        .values(
            status="running",
            fence=Job.fence + 1,
            attempt=Job.attempt + 1,
            lease_owner=worker,
            lease_expires_at=db_now() + lease_s,
            sandbox=sandbox,
            progress_at=db_now(),
            started_at=case((Job.started_at.is_(None), db_now()), else_=Job.started_at),
            updated_at=db_now(),
        )
    )
    if not _apply(session, statement):
        return None
    note_served(session, owner, lane)
    return session.get_one(Job, job_id, populate_existing=True)


def succeed(
    session: Session, job_id: str, fence: int, report: dict[str, Any], artifacts: Iterable[Artifact] = ()
) -> bool:
    """running -> succeeded, unless a cancel came first. The report and the files become the job's, or the upload's."""
    row = session.execute(select(Job.type, Job.spec).where(Job.id == job_id)).first()
    if row is None:
        return False
    inspected = _inspected(row.type, row.spec)
    files = list(artifacts)
    kept = report if inspected is None else None
    size = sum(each.size_bytes for each in files) if inspected is None else 0
    statement = _running(job_id, fence).values(
        status="succeeded", report=kept, outcome=outcome_of(kept), result_bytes=size, stage=None, **_ending()
    )
    if not _apply(session, statement):
        return False
    if inspected is None:
        session.add_all(files)
    else:
        accept(session, inspected, report, files)
    return True


def fail(session: Session, job_id: str, fence: int, error: dict[str, Any]) -> bool:
    """running -> failed with a reason (`ParedError.as_job_error()`), unless a cancel came first."""
    return bool(_apply(session, _running(job_id, fence).values(status="failed", error=error, **_ending())))


def release(
    session: Session,
    job_id: str,
    fence: int,
    *,
    charge: Literal["crash", "attempt"] | None,
    delay_s: float = 0.0,
    reason: str | None = None,
) -> bool:
    """running -> queued, unless a cancel came first.

    Args:
        charge: what it counts as: a crash of the job, or an attempt that came to nothing; None: not at all, for the
            worker stops in an orderly way.
        delay_s: before it may be claimed again.
        reason: why there is another attempt, for whoever follows.
    """
    charges = {"crash": {"crash_count": Job.crash_count + 1}, "attempt": {}, None: {"attempt": Job.attempt - 1}}
    values = _queued_again() | {"run_after": db_now() + delay_s} | charges[charge]
    return bool(_apply(session, _running(job_id, fence).values(values), reason))


def cancel(session: Session, job_id: str) -> bool:
    """queued -> canceled at once, or running -> canceling, which the worker sees at its next heartbeat."""
    at_once = (
        update(Job)
        .where(Job.id == job_id, Job.status == "queued")
        .values(status="canceled", cancel_requested_at=db_now(), **_ending())
    )
    ask = (
        update(Job)
        .where(Job.id == job_id, Job.status == "running")
        .values(status="canceling", cancel_requested_at=db_now(), updated_at=db_now())
    )
    # Twice, for a worker may release the job between the two questions.
    return any(_apply(session, statement) for statement in (at_once, ask, at_once))


def finish_cancel(session: Session, job_id: str, fence: int) -> bool:
    """canceling -> canceled, by the worker that has stopped it."""
    statement = (
        update(Job)
        .where(held(job_id, fence), Job.cancel_requested_at.is_not(None))
        .values(status="canceled", **_ending())
    )
    return bool(_apply(session, statement))


def expire(session: Session, max_lost_attempts: int, out_of_attempts: dict[str, Any]) -> list[str]:
    """What becomes of jobs whose lease ran out: canceled where that was asked for, failed after too many, else queued.

    Safe to run in many processes at once.

    Returns:
        The ids of the jobs.
    """
    # Locked in order, or two sweeps at once may each wait for a row that the other holds.
    locked = session.scalars(select(Job.id).where(lost()).order_by(Job.id).with_for_update(skip_locked=True)).all()
    these = and_(Job.id.in_(locked), lost())
    statements = (
        update(Job).where(these, Job.cancel_requested_at.is_not(None)).values(status="canceled", **_ending()),
        update(Job)
        .where(these, Job.attempt - Job.crash_count >= max_lost_attempts)
        .values(status="failed", error=out_of_attempts, **_ending()),
        update(Job).where(these).values(_queued_again() | {"run_after": 0.0}),
    )
    return [row.id for statement in statements for row in _apply(session, statement)]


# -- while a job is held --------------------------------------------------------------------------


def renew(session: Session, job_id: str, fence: int, lease_s: float) -> bool | None:
    """Keep the lease.

    Returns:
        Whether a cancel was asked for; None: the lease is lost, and the holder must stop at once.
    """
    statement = (
        update(Job)
        .where(held(job_id, fence))
        .values(
            lease_expires_at=db_now() + lease_s,
            # The lease now ends later by just the time since it was last renewed.
            held_s=Job.held_s + db_now() + lease_s - Job.lease_expires_at,
        )
    )
    row = session.execute(statement.returning(Job.cancel_requested_at)).first()
    return None if row is None else row.cancel_requested_at is not None


def cancel_requested(session: Session, job_id: str, fence: int) -> bool | None:
    """As `renew`, without renewing."""
    row = session.execute(select(Job.cancel_requested_at).where(held(job_id, fence))).first()
    return None if row is None else row.cancel_requested_at is not None


def advance(
    session: Session,
    job_id: str,
    fence: int,
    values: dict[str, Any] | None = None,
    events: Iterable[tuple[EventKind, dict[str, Any]]] = (),
) -> bool:
    """Write down how far a held job is. False: the lease is lost, and nothing was written.

    Args:
        values: columns for stage, progress or checkpoints.
        events: for whoever follows.
    """
    statement = (
        update(Job).where(held(job_id, fence)).values(progress_at=db_now(), updated_at=db_now(), **(values or {}))
    )
    if session.execute(statement.returning(Job.id)).first() is None:
        return False
    add_events(session, job_id, events)
    return True


# -- WHERE clauses --------------------------------------------------------------------------------


def held(job_id: str, fence: int) -> ColumnElement[bool]:
    """This claim still holds the job, canceling or not."""
    return and_(Job.id == job_id, Job.fence == fence, Job.status.in_(HELD))


def lost() -> ColumnElement[bool]:
    """Held by a worker whose lease ran out."""
    return and_(Job.status.in_(HELD), Job.lease_expires_at < db_now())


# -- the parts of a transition --------------------------------------------------------------------

_COLUMNS = (Job.id, Job.owner, Job.type, Job.status, Job.attempt, Job.error, Job.spec)


def _running(job_id: str, fence: int) -> Update:
    """For the worker that holds the job, unless a cancel came first."""
    return update(Job).where(
        Job.id == job_id, Job.fence == fence, Job.status == "running", Job.cancel_requested_at.is_(None)
    )


def _ending() -> dict[str, Any]:
    return {"finished_at": db_now(), "updated_at": db_now(), "lease_owner": None, "lease_expires_at": None}


def _queued_again() -> dict[str, Any]:
    return {
        "status": "queued",
        "stage": None,
        "lease_owner": None,
        "lease_expires_at": None,
        "last_rung_at": None,
        "updated_at": db_now(),
    }


def _apply(session: Session, statement: Update, reason: str | None = None) -> Sequence[Row[Any]]:
    """Make a transition, and write down that it was made. Returns a row for each job that it was true of."""
    rows = session.execute(statement.returning(*_COLUMNS)).all()
    for row in rows:
        if reason is not None:
            add_event(session, row.id, "log", {"text": reason})
        _record(session, row)
    return rows


def _record(session: Session, row: Row[Any]) -> None:
    """The events of a transition, whom its webhooks tell, and what a job's end means to the upload it was about."""
    events: list[tuple[EventKind, dict[str, Any]]] = [("status", {"status": row.status, "attempt": row.attempt})]
    if row.status in ENDED:
        events.append(("done", {"status": row.status, "error": row.error}))
        owe(session, row.owner, row.id, row.type, row.status, row.error)
    add_events(session, row.id, events)
    inspected = _inspected(row.type, row.spec)
    if inspected is not None and row.status in ("failed", "canceled"):
        reject(session, inspected, row.error)
    transition = Transition(row.id, row.owner, row.type, row.status, row.attempt, row.error)
    session.info.setdefault(_PENDING, []).append(transition)


def _inspected(name: str, spec: dict[str, Any]) -> str | None:
    """The upload whose inspection a job is."""
    job_type = BY_NAME.get(name)
    if job_type is None or job_type.report_goes_to != "upload":
        return None
    return job_type.references(spec)[0].id
