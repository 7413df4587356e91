"""Owns what an owner does with jobs: submit them, find them and cancel them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Select, bindparam, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from pared.errors import Conflict, IdempotencyMismatch, NotFound, OverLimit, ParedError
from pared.job_types import LISTED
from pared.specs import JobSpec, PlanSpec
from pared.state import lifecycle
from pared.state.lifecycle import NewJob, create_all
from pared.state.limits import JOBS_WAITING, PLAN, PLANS_WAITING, MuchRoom, Room, check_room
from pared.state.references import check_references
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.settings import settings as process_settings
from pared.state.tables import Dataset, IdempotencyKey, Job, Model
from pared.state.turns import lock_owner
from pared.state.workers import check_device
from pared.statuses import ENDED


@dataclass(frozen=True)
class Idempotency:
    """A client's `Idempotency-Key` and the digest of what it was sent with."""

    key: str
    body_sha256: str


@dataclass(frozen=True, eq=False)
class Submission:
    """A job that an owner posts."""

    owner: str
    job: NewJob
    idempotency: Idempotency | None = None


@dataclass(frozen=True)
class Submitted:
    """What came of a submission."""

    job: Job
    new: bool
    """False: its key had made the job before."""


def submit(
    sessions: Sessions,
    owner: str,
    spec: JobSpec,
    idempotency: Idempotency | None = None,
    *,
    request_id: str | None = None,
    key_id: str | None = None,
    settings: Settings | None = None,
) -> tuple[Job, bool]:
    """Submit one job.

    Args:
        request_id: as in `NewJob`, and so the next one.
        key_id: of the key that it comes with.
        settings: with the owner's limits; None: those of the process.

    Returns:
        The job, and whether it is new (False: the key had already made it).

    Raises:
        ParedError: as `submit_all` tells.
    """
    submission = Submission(owner, NewJob(spec, request_id, key_id), idempotency)
    outcome = submit_all(sessions, [submission], settings or process_settings())[submission]
    if isinstance(outcome, ParedError):
        raise outcome
    return outcome.job, outcome.new


def submit_all(
    sessions: Sessions, submissions: Collection[Submission], settings: Settings, room: MuchRoom | None = None
) -> dict[Submission, Submitted | ParedError]:
    """Write queued jobs of one owner, their first events and the messages owed to the broker, in one transaction.

    Args:
        settings: with the owner's limits.
        room: what is known of owners since earlier submissions.

    Returns:
        What came of each. One that is refused holds up no other; it has
        NotFound, Conflict, InvalidArchitecture: as `check_references` tells.
        DeviceUnavailable: it asks for a device that no worker has.
        IdempotencyMismatch: the key was used for another body.
        OverLimit: as many jobs of this owner wait as may, or they take up as much room.
    """
    try:
        with sessions.begin() as session:
            return _submit_all(session, submissions, settings, room or MuchRoom())
    except IntegrityError:
        # The same key at the same moment: another request was first, and its job is ours too.
        return {each: _submit_alone(sessions, each, settings) for each in submissions}


def _submit_all(
    session: Session, submissions: Collection[Submission], settings: Settings, much_room: MuchRoom
) -> dict[Submission, Submitted | ParedError]:
    [owner] = {each.owner for each in submissions}
    lock_owner(session, owner)
    room = Room(session, owner, JOBS_WAITING, settings)
    full = _full(session, owner, settings, much_room)
    found: dict[str, Model | Dataset | None] = {}
    outcomes: dict[Submission, Submitted | ParedError] = {}
    accepted: list[Submission] = []

    def write() -> None:
        jobs = create_all(session, owner, [each.job for each in accepted]) if accepted else []
        for each, job in zip(accepted, jobs, strict=True):
            _remember(session, owner, each.idempotency, job.id)
            outcomes[each] = Submitted(job, new=True)
        accepted.clear()

    for each in submissions:
        if any(each.idempotency and _key(each) == _key(other) for other in accepted):
            write()  # the same request twice, at the same moment
        try:
            made = _made_by(session, owner, each.idempotency)
            if made:
                outcomes[each] = Submitted(made, new=False)
                continue
            check_references(session, owner, each.job.spec, found)
            check_device(session, each.job.spec.needs_device, f"/{each.job.spec.device_field}")
            if full:
                raise full
            room.take()
            accepted.append(each)
        except ParedError as error:
            outcomes[each] = error
    write()
    return outcomes


def _key(submission: Submission) -> str | None:
    return None if submission.idempotency is None else submission.idempotency.key


def _full(session: Session, owner: str, settings: Settings, much_room: MuchRoom) -> OverLimit | None:
    """The refusal of an owner whose uploads and results take up all that they may."""
    try:
        much_room.check(session, owner, settings)
    except OverLimit as error:
        return error
    return None


def _submit_alone(sessions: Sessions, submission: Submission, settings: Settings) -> Submitted | ParedError:
    try:
        with sessions.begin() as session:
            return _submit_all(session, [submission], settings, MuchRoom())[submission]
    except IntegrityError:
        with sessions() as session:
            earlier = _made_by(session, submission.owner, submission.idempotency)
        if earlier is None:
            raise
        return Submitted(earlier, new=False)


def submit_plan(
    sessions: Sessions,
    owner: str,
    spec: PlanSpec,
    idempotency: Idempotency | None = None,
    *,
    request_id: str | None = None,
    key_id: str | None = None,
    settings: Settings | None = None,
) -> str:
    """Write a queued plan, as `submit` does. Returns its id, or that of the plan that the key has made before.

    Raises:
        NotFound, Conflict, DeviceUnavailable: as `submit`.
        OverLimit: as many plans of this owner as may wait do.
    """
    with sessions.begin() as session:
        lock_owner(session, owner)
        earlier = _made_by(session, owner, idempotency)
        if earlier:
            return earlier.id
        check_references(session, owner, spec.job)
        check_device(session, spec.job.device, "/device")
        check_room(session, owner, PLANS_WAITING, settings or process_settings())
        plan_id = lifecycle.create(session, owner, spec, request_id=request_id, key_id=key_id).id
        _remember(session, owner, idempotency, plan_id)
        return plan_id


def drop_plan(sessions: Sessions, owner: str, plan_id: str) -> None:
    """Cancel a plan that nobody waits for any more; a key that made it makes another one when it is asked again."""
    with sessions.begin() as session:
        plan = session.scalar(select(Job).where(Job.owner == owner, Job.type == PLAN, Job.id == plan_id))
        if plan is not None and lifecycle.cancel(session, plan_id):
            session.execute(delete(IdempotencyKey).where(IdempotencyKey.job_id == plan_id))


def cancel(session: Session, owner: str, job_id: str) -> Job:
    """Cancel a queued job at once; ask a running one to stop. Asking again changes nothing.

    Raises:
        NotFound: this owner has no such job.
        Conflict: the job has ended.
    """
    job = find_job(session, owner, job_id)
    canceled = lifecycle.cancel(session, job_id)
    session.refresh(job)
    if not canceled and job.status in ENDED:
        raise Conflict(f"The job has already ended: it {_HAS[job.status]}.")
    return job


def find_job(session: Session, owner: str, job_id: str) -> Job:
    """The owner's job, without its report. Raises NotFound, also for another owner's."""
    job = session.scalar(_FIND, {"owner": owner, "id": job_id})
    if job is None:
        raise no_such_job(job_id)
    return job


def no_such_job(job_id: str) -> NotFound:
    """What is said of a job that the owner does not have, whoever has it."""
    return NotFound(f"There is no job {job_id}.")


def find_plan(session: Session, owner: str, plan_id: str) -> Job:
    """The owner's plan. Raises NotFound, also for another owner's, and for one that was made long ago."""
    job = session.scalar(select(Job).where(Job.owner == owner, Job.type == PLAN, Job.id == plan_id))
    if job is None:
        raise NotFound(f"There is no plan {plan_id}. Plans are kept for an hour; post the spec again.")
    return job


def jobs_of(owner: str) -> Select[Job]:
    """The jobs that the owner posted. Reports, which may be megabytes each, stay in the database."""
    return _POSTED.where(Job.owner == owner)


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


def _remember(session: Session, owner: str, idempotency: Idempotency | None, job_id: str) -> None:
    if idempotency is not None:
        session.flush()
        key, digest = idempotency.key, idempotency.body_sha256
        session.add(IdempotencyKey(owner=owner, key=key, body_sha256=digest, job_id=job_id))


_POSTED = select(Job).where(Job.type.in_([each.name for each in LISTED])).options(defer(Job.report, raiseload=True))
# To build it takes longer than to run it.
_FIND = _POSTED.where(Job.owner == bindparam("owner"), Job.id == bindparam("id"))
_HAS = {"succeeded": "succeeded", "failed": "failed", "canceled": "was canceled"}
