"""Owns what happens to jobs beside their running: submitting, cancelling, and telling followers of each change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Select, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from pared.errors import Conflict, IdempotencyMismatch, NotFound, ParedError, TooManyRequests
from pared.specs import BUILTIN_DATASETS, DistillSpec, InspectSpec, PlanSpec, PruneSpec
from pared.state.events import EventKind, add_events
from pared.state.session import Sessions
from pared.state.tables import ENDED, QUICK, Dataset, IdempotencyKey, Job, Model, Outbox, new_id
from pared.state.workers import check_device

MAX_PLANS = 20
"""Plans of one owner that may wait at once."""


@dataclass(frozen=True)
class Idempotency:
    """A client's `Idempotency-Key` and the digest of what it was sent with."""

    key: str
    body_sha256: str


def submit(
    sessions: Sessions,
    owner: str,
    spec: PruneSpec | DistillSpec,
    idempotency: Idempotency | None = None,
    *,
    request_id: str | None = None,
) -> tuple[Job, bool]:
    """Write a queued job, its first event and its doorbell in one transaction.

    Args:
        request_id: the HTTP request that the job comes from; the worker's log lines about the job carry it.

    Returns:
        The job, and whether it is new (False: the key had already made it).

    Raises:
        NotFound: the spec names a model or data set that this owner does not have.
        Conflict: it names one that was rejected.
        DeviceUnavailable: it asks for a device that no worker has.
        IdempotencyMismatch: the key was used for another body.
    """
    try:
        with sessions.begin() as session:
            earlier = _made_by(session, owner, idempotency)
            if earlier:
                return earlier, False
            check_references(session, owner, spec)
            check_device(session, spec.needs_device, "/device" if spec.device == "cuda" else "/latency_device")
            job = add_job(session, owner, spec, request_id=request_id)
            if idempotency:
                session.flush()
                session.add(
                    IdempotencyKey(owner=owner, key=idempotency.key, body_sha256=idempotency.body_sha256, job_id=job.id)
                )
            return job, True
    except IntegrityError:
        # The same key at the same moment: the other request was first, and its job is ours too.
        with sessions() as session:
            earlier = _made_by(session, owner, idempotency)
        if earlier is None:
            raise
        return earlier, False


def submit_plan(sessions: Sessions, owner: str, spec: PlanSpec, *, request_id: str | None = None) -> str:
    """Write a queued plan, with its doorbell. Returns its id.

    Raises:
        NotFound, Conflict, DeviceUnavailable: as `submit`.
        TooManyRequests: as many plans of this owner as may wait do.
    """
    with sessions.begin() as session:
        check_references(session, owner, spec.job)
        check_device(session, spec.job.device, "/device")
        waiting = session.scalar(
            select(func.count()).where(Job.owner == owner, Job.type == "plan", Job.status.not_in(ENDED))
        )
        if (waiting or 0) >= MAX_PLANS:
            raise TooManyRequests(f"{waiting} of your plans are not made yet, and no more may wait.")
        return add_job(session, owner, spec, request_id=request_id).id


def add_job(
    session: Session,
    owner: str,
    spec: PruneSpec | DistillSpec | InspectSpec | PlanSpec,
    *,
    request_id: str | None = None,
) -> Job:
    """A queued job with its first event and its doorbell, in the caller's transaction."""
    device = _device_for(spec)
    job = Job(
        id=new_id("job"),
        owner=owner,
        type=spec.type,
        device=device,
        spec=spec.model_dump(mode="json"),
        request_id=request_id,
    )
    session.add(job)
    session.flush()
    session.add(Outbox(job_id=job.id))
    record(session, job.id)
    return job


def _device_for(spec: PruneSpec | DistillSpec | InspectSpec | PlanSpec) -> str:
    """What a worker must have. A plan times nothing, so the device of its job's latency does not matter to it."""
    if isinstance(spec, InspectSpec):
        return "auto"
    return spec.job.device if isinstance(spec, PlanSpec) else spec.needs_device


def cancel(session: Session, owner: str, job_id: str) -> Job:
    """Cancel a queued job at once; ask a running one to stop. Asking again changes nothing.

    Raises:
        NotFound: this owner has no such job.
        Conflict: the job has ended.
    """
    job = find_job(session, owner, job_id)
    # Twice, for a worker may hand the job back between the two questions.
    for statement in (Job.cancel_queued(job_id), Job.request_cancel(job_id), Job.cancel_queued(job_id)):
        if session.execute(statement.returning(Job.id)).first():
            record(session, job_id)
            session.refresh(job)
            return job
    session.refresh(job)
    if job.status in ENDED:
        raise Conflict(f"The job has already ended: it {_HAS[job.status]}.")
    return job


def find_job(session: Session, owner: str, job_id: str) -> Job:
    """The owner's job, without its report. Raises NotFound, also for another owner's."""
    job = session.scalar(jobs_of(owner).where(Job.id == job_id))
    if job is None:
        raise NotFound(f"There is no job {job_id}.")
    return job


def find_plan(session: Session, owner: str, plan_id: str) -> Job:
    """The owner's plan. Raises NotFound, also for another owner's, and for one that was made long ago."""
    job = session.scalar(select(Job).where(Job.owner == owner, Job.type == "plan", Job.id == plan_id))
    if job is None:
        raise NotFound(f"There is no plan {plan_id}. Plans are kept for an hour; post the spec again.")
    return job


def jobs_of(owner: str) -> Select[Job]:
    """The jobs that the owner posted. Reports, which may be megabytes each, stay in the database."""
    return select(Job).where(Job.owner == owner, Job.type.not_in(QUICK)).options(defer(Job.report, raiseload=True))


def record(session: Session, job_id: str) -> None:
    """Tell followers what the job's status now is; call it in the transaction of every transition.

    Writes the `status` event and, for an ended job, `done`. An inspection that failed also rejects the
    upload it was about, so that none waits for ever.
    """
    session.flush()
    status, attempt, error, kind, spec = session.execute(
        select(Job.status, Job.attempt, Job.error, Job.type, Job.spec).where(Job.id == job_id)
    ).one()
    events: list[tuple[EventKind, dict[str, Any]]] = [("status", {"status": status, "attempt": attempt})]
    if status in ENDED:
        events.append(("done", {"status": status, "error": error}))
    add_events(session, job_id, events)
    if kind == "inspect" and status in {"failed", "canceled"}:
        reject_upload(session, spec["subject"], error)


def reject_upload(session: Session, upload_id: str, reason: dict[str, Any] | None) -> None:
    """Mark an upload as one that cannot be used, if its inspection is still open."""
    table = Model if upload_id.startswith("mdl_") else Dataset
    session.execute(
        update(table)
        .where(table.id == upload_id, table.status == "inspecting")
        .values(status="rejected", reason=reason or _UNINSPECTED)
    )


def check_references(session: Session, owner: str, spec: PruneSpec | DistillSpec) -> None:
    """Every model and data set that a spec names is there, the owner's, and not rejected.

    Raises:
        NotFound: with a pointer to each that is not there.
        Conflict: with a pointer to each that was rejected.
    """
    missing: list[dict[str, str]] = []
    rejected: list[dict[str, str]] = []
    for pointer, upload_id in references(spec):
        table: type[Model | Dataset] = Model if upload_id.startswith("mdl_") else Dataset
        # Locked until the job is there, so that a delete at the same moment sees the job.
        upload = cast(
            "Model | Dataset | None",
            session.scalar(
                select(table)
                .where(table.id == upload_id, table.owner == owner, table.deleted_at.is_(None))
                .with_for_update(read=True)
            ),
        )
        kind = "model" if table is Model else "data set"
        if upload is None:
            missing.append({"pointer": pointer, "detail": f"there is no {kind} {upload_id}; upload it first"})
        elif upload.status == "rejected":
            why = (upload.reason or _UNINSPECTED)["detail"]
            rejected.append({"pointer": pointer, "detail": f"{kind} {upload_id} was rejected: {why}"})
    if missing:
        raise NotFound("The job names something that is not here.", errors=missing)
    if rejected:
        raise Conflict("The job names an upload that cannot be used.", errors=rejected)


def references(spec: PruneSpec | DistillSpec) -> list[tuple[str, str]]:
    """(JSON pointer, id) of each upload that a spec names."""
    if isinstance(spec, PruneSpec):
        named: list[tuple[str, Any]] = [("/model", spec.model), ("/dataset", spec.dataset)]
    else:
        named = [("/teacher", spec.teacher), ("/student", spec.student), ("/dataset", spec.dataset)]
    return [(pointer, name) for pointer, name in named if isinstance(name, str) and name not in BUILTIN_DATASETS]


def _made_by(session: Session, owner: str, idempotency: Idempotency | None) -> Job | None:
    if idempotency is None:
        return None
    row = session.get(IdempotencyKey, (owner, idempotency.key))
    if row is None:
        return None
    if row.body_sha256 != idempotency.body_sha256:
        raise IdempotencyMismatch(
            "This Idempotency-Key was sent before with another body. Use a new key for a new job; keys are kept a day."
        )
    return session.get(Job, row.job_id)


_HAS = {"succeeded": "succeeded", "failed": "failed", "canceled": "was canceled"}
_UNINSPECTED = ParedError("The inspection ended without a result. Upload the file again.").as_job_error()
