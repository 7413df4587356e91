"""Owns one attempt at one job: claim it, run it in a child, and record how it ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, assert_never, cast

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from pared.errors import CorruptObject, ModelCrashesWorker, NotFound, ParedError, StorageFull, Unavailable
from pared.job_types import BY_NAME
from pared.specs import Reference, UploadKind
from pared.state import lifecycle, tracing
from pared.state.failpoints import failpoint
from pared.state.objects import ObjectStore, content_key
from pared.state.references import table_of
from pared.state.session import Sessions
from pared.state.tables import Artifact, Dataset, Job, Model
from pared.statuses import ENDED
from worker import job_processes, kept_plans, protocol, spans, waiting_results
from worker.attempt_types import (
    Canceled,
    Claim,
    Crashed,
    Ending,
    Failed,
    HandedBack,
    Hindered,
    Quota,
    Succeeded,
    Worker,
    early_ending,
)
from worker.forkserver import Child
from worker.kept_answers import key_of
from worker.lease import Lease, LeaseLost
from worker.monitor import ChildMonitor, over_quota
from worker.recorder import Recorder, UntrustworthyFile, discard
from worker.results import NoRoom, Results, check_report
from worker.scratch import scratch

RETRY_BACKOFF_S = 15.0
"""After an attempt that this machine hindered, times the number of them."""
_INSPECTION_BYTES = 8
"""Memory of the inspection of a model for each byte of its file, beside what each may use."""

log = structlog.get_logger()


def run(worker: Worker, job_id: str, *, most_held: int = 0, held_by: Sequence[str] | None = None) -> Ending | None:
    """Run a job if it is there to be claimed: another worker may have been first.

    Args:
        most_held: leave it where its owner has so many jobs of its lane under way; 0: take it.
        held_by: where only jobs count that these workers hold, their names.

    Returns:
        How the attempt ended, where it was made and is this worker's to end; None also where its results wait for
        room, and a thread of their own ends it later.

    Raises:
        sqlalchemy.exc.DBAPIError: the database is away; nothing was claimed, and the sweep will ring again.
    """
    if worker.shutdown.requested:
        return None
    with structlog.contextvars.bound_contextvars(**_log_context(worker, job_id)):
        return _run(worker, job_id, most_held, held_by)


def _log_context(worker: Worker, job_id: str) -> dict[str, str]:
    """What every log line about the job carries: its id, and those of the request and the trace it came with."""
    with worker.sessions() as session:
        row = session.execute(select(Job.request_id, Job.traceparent).where(Job.id == job_id)).first()
    if row is None:
        return {"job": job_id}
    of_request = {} if row.request_id is None else {"request_id": row.request_id}
    return {"job": job_id} | of_request | tracing.trace_id(row.traceparent)


def _run(worker: Worker, job_id: str, most_held: int, held_by: Sequence[str] | None) -> Ending | None:
    claim = _claim(worker, job_id, most_held, held_by)
    if claim is None:
        log.info("nothing_to_claim", job=job_id)
        return None
    log.info(
        "claimed",
        job=job_id,
        attempt=claim.attempt,
        fence=claim.fence,
        sandbox=worker.confinement.level,
        device=worker.serving.device_for(claim.device),
    )
    lease = Lease(
        worker.sessions,
        job_id,
        claim.fence,
        lease_s=worker.settings.lease_s,
        heartbeat_s=worker.settings.heartbeat_s,
        claimed_at=claim.claimed_at,
    )
    failpoint("job.claimed")
    with ExitStack() as held:
        held.enter_context(claim.span)
        held.enter_context(lease)
        try:
            return _run_in_scratch(worker, claim, lease, held)
        except LeaseLost:
            log.warning("lease_lost", job=job_id, fence=claim.fence)
            claim.span.lost()
            return None


def _claim(worker: Worker, job_id: str, most_held: int, held_by: Sequence[str] | None) -> Claim | None:
    claimed_at = time.monotonic()
    with worker.sessions.begin() as session:
        lease_s, devices, level = worker.settings.lease_s, worker.serving.devices, worker.confinement.level
        job = lifecycle.claim(
            session, job_id, worker.name, lease_s, devices, level, most_held=most_held, held_by=held_by
        )
        if job is None:
            return None
    job_type = BY_NAME[job.type]
    checkpoints = (
        (job.checkpoint_key, job.checkpoint_sha256),
        (job.previous_checkpoint_key, job.previous_checkpoint_sha256),
    )
    return Claim(
        job_id=job_id,
        owner=job.owner,
        fence=job.fence,
        attempt=job.attempt,
        crash_count=job.crash_count,
        type=job_type,
        spec=job.spec,
        device=job.device if job_type.uses_gpu else "cpu",
        checkpoints=[(key, sha256) for key, sha256 in checkpoints if key and sha256],
        checkpoint_step=job.checkpoint_step or 0,
        held_s=job.held_s,
        claimed_at=claimed_at,
        span=spans.begin(worker.sessions, job, worker.name),
    )


def _run_in_scratch(worker: Worker, claim: Claim, lease: Lease, held: ExitStack) -> Ending | None:
    """Args: held: what is let go of once the attempt has ended; the thread of results that wait takes it over."""
    try:
        folder = held.enter_context(scratch(worker.settings.data_dir.resolve() / "scratch", worker.confinement.uid))
        ending, quota = _attempt(worker, claim, lease, folder)
        if not isinstance(ending, Succeeded):
            return _record(worker, claim, lease, ending)
        failpoint("child.ended")
        return _conclude(worker, claim, lease, folder / "out", ending, quota, held)
    except OSError as error:
        # This machine, not the job.
        log.warning("attempt_hindered", job=claim.job_id, reason=str(error))
        problem = Unavailable(f"The machine that was to run the job failed: {error.strerror}.")
        return _record(worker, claim, lease, Hindered(problem))


# -- running it -----------------------------------------------------------------------------------


def _attempt(worker: Worker, claim: Claim, lease: Lease, folder: Path) -> tuple[Ending, Quota]:
    quota = Quota(worker.settings.memory_bytes, 4 * worker.settings.memory_bytes)
    claim.span.stage("fetch")
    try:
        inputs = lease.write(lambda: _inputs(worker, claim))
        plan_key = _plan_key(worker, claim, inputs)
        if plan_key is not None and (plan := worker.plans.find(claim.owner, plan_key)) is not None:
            return Succeeded(plan), quota
        for upload in inputs:
            _fetch(worker.store, upload, folder)
        resume, checkpoints = _fetch_checkpoint(worker.store, claim, folder)
    except (StorageFull, Unavailable) as error:
        return Hindered(error), quota
    except ParedError as error:
        return Failed(error), quota
    quota = _quota(worker, claim, inputs)
    answers = _answers_key(claim, inputs)
    answers_given = answers is not None and worker.answers.hand_in(claim.owner, answers, folder)
    recorder = Recorder(
        worker.sessions,
        worker.store,
        lease,
        folder / "checkpoints",
        checkpoints,
        checkpoint_bytes=quota.file_bytes if claim.type.listed else 0,
    )
    recorder.log(f"Sandbox held: {worker.confinement.in_words()}.")
    device = worker.serving.device_for(claim.device)
    notes = _notes(worker, claim)
    for note in notes:
        recorder.log(note)
    if resume:
        recorder.log(f"Attempt {claim.attempt} goes on from checkpoint {claim.checkpoint_step}.")
    request = {
        "spec": claim.spec,
        "models": {upload.role: upload.as_request() for upload in inputs if upload.kind == "model"},
        "dataset": next((upload.as_request() for upload in inputs if upload.kind == "dataset"), None),
        "resume": resume,
        "answers_given": answers_given,
        "memory_bytes": quota.memory_bytes,
        "file_bytes": quota.file_bytes,
        "failpoints": worker.settings.failpoints,
        "threads": worker.threads,
        "device": device,
        "notes": notes,
        # What is launched in one go takes a process along when it fails: after two crashes, each runs alone.
        "record_steps": claim.crash_count < 2,
        "gpu": device == "cuda",
        "card": None if worker.serving.card is None else worker.serving.card.number,
        "programs_allowed": worker.confinement.level == "standard" or worker.settings.allow_weak_sandbox,
    }
    ranks = _ranks(worker, claim, device)
    if ranks > 1:
        recorder.log(f"{ranks} processes train together.")
    children: list[Child] = []
    ending: Ending | None = None
    claim.span.stage("start")
    try:
        stall_s = worker.settings.stall_s
        stop = partial(_is_over, worker, lease)
        children = job_processes.start(worker.children, folder, request, ranks, stall_s, stop)
        if children:
            ending = ChildMonitor(worker, claim, lease, children, recorder, folder, quota).run()
        else:
            ending = early_ending(worker, lease) or HandedBack()
    finally:
        for child in children:
            child.kill()
        recorder.close(keep_checkpoint=isinstance(ending, Crashed | HandedBack))
    if lease.lost:
        raise LeaseLost
    if isinstance(ending, Succeeded) and (over := over_quota(folder, quota, len(children))) is not None:
        return Failed(over), quota  # since it was last looked at; from here on it is copied
    if answers is not None and isinstance(ending, Succeeded):
        worker.answers.take(claim.owner, answers, folder)
    if plan_key is not None and isinstance(ending, Succeeded):
        worker.plans.keep(claim.owner, plan_key, ending.report)
    return ending, quota


def _is_over(worker: Worker, lease: Lease) -> bool:
    return early_ending(worker, lease) is not None


def _ranks(worker: Worker, claim: Claim, device: str) -> int:
    """How many processes share the trainings of a job. A worker has one card at most, so there it is one."""
    if device != "cpu" or worker.settings.ranks == 1 or not claim.type.trains(claim.spec):
        return 1
    return min(worker.settings.ranks, worker.threads)


def _quota(worker: Worker, claim: Claim, inputs: list[_Upload]) -> Quota:
    """What the child may use up. To look into a model takes little more than the model; data sets may be compressed."""
    settings = worker.settings
    memory = settings.memory_bytes
    if claim.type.report_goes_to == "upload" and all(upload.kind == "model" for upload in inputs):
        size = sum(upload.size_bytes for upload in inputs)
        memory = min(memory, settings.inspect_memory_bytes + _INSPECTION_BYTES * size)
    return Quota(memory, 4 * memory)


def _answers_key(claim: Claim, inputs: list[_Upload]) -> str | None:
    """Where the answers of a job's teachers are kept; None: it has none that could be."""
    data = next((upload.sha256 for upload in inputs if upload.kind == "dataset"), "")
    prefix = claim.type.teachers
    if prefix is None or not data:
        return None
    teachers = [
        (upload.role, upload.sha256, upload.about)
        for upload in inputs
        if upload.kind == "model" and upload.role.startswith(prefix)
    ]
    return key_of(teachers, data, claim.spec)


def _plan_key(worker: Worker, claim: Claim, inputs: list[_Upload]) -> str | None:
    """Where the plan is kept that the job makes; None: it makes none, or one that is made each time."""
    if claim.type.name != "plan":
        return None
    uploads = [(upload.role, upload.filename, upload.sha256, upload.about) for upload in inputs]
    where = [worker.threads, worker.settings.memory_bytes, worker.confinement.level, claim.device]
    return kept_plans.key_of(uploads, claim.spec, where)


def _notes(worker: Worker, claim: Claim) -> list[str]:
    """Warnings for the report of a job that would have had the GPU, and computes on the processor."""
    serving = worker.serving
    if claim.device != "auto" or "cuda" in serving.devices or serving.problem is None:
        return []
    return [f"The job computed on the processor, for this worker's GPU cannot be used. {serving.problem}"]


@dataclass(frozen=True)
class _Upload:
    """One upload that a job works on, and where the child finds it."""

    kind: UploadKind
    role: str
    filename: str
    sha256: str
    size_bytes: int
    path: str | None
    about: dict[str, Any] = field(default_factory=dict)
    """Of a model what was posted with it, as `ModelFile` takes it."""

    def as_request(self) -> dict[str, Any]:
        return {"filename": self.filename, "sha256": self.sha256, "path": self.path} | self.about


def _inputs(worker: Worker, claim: Claim) -> list[_Upload]:
    """The uploads that the spec names. Raises NotFound when one was deleted since."""
    with worker.sessions() as session:
        return [_find(session, claim.owner, reference) for reference in claim.type.references(claim.spec)]


def _find(session: Session, owner: str, reference: Reference) -> _Upload:
    if not reference.is_upload:
        return _Upload(reference.kind, reference.role, reference.id, "", 0, None)
    row = cast("Model | Dataset | None", session.get(table_of(reference.id), reference.id))
    if row is None or row.owner != owner or row.deleted_at is not None:
        raise NotFound(f"{reference.id} was deleted before the job could use it. Upload the file again.")
    about: dict[str, Any] = {}
    if isinstance(row, Model):
        about = {"architecture": row.architecture, "weights": row.weights, "prefix": row.prefix}
    path = f"in/{reference.role}"
    return _Upload(reference.kind, reference.role, row.filename, row.sha256, row.size_bytes, path, about)


def _fetch(store: ObjectStore, upload: _Upload, folder: Path) -> None:
    """Copy an upload to where the child may read it. Raises CorruptObject unless it is the bytes that were sent."""
    if upload.path is None:
        return
    path = folder / upload.path
    if store.fetch(content_key(upload.sha256), path) != upload.sha256:
        raise CorruptObject(f"The stored bytes of {upload.filename} are damaged. Upload the file again.")
    path.chmod(0o444)


def _fetch_checkpoint(
    store: ObjectStore, claim: Claim, folder: Path
) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    """The newest whole checkpoint as `{path, step}`, and the list of those that are left from it on."""
    path = folder / "in" / "checkpoint"
    for index, (key, sha256) in enumerate(claim.checkpoints):
        try:
            if store.fetch(key, path) == sha256:
                path.chmod(0o444)
                return {"path": "in/checkpoint", "step": claim.checkpoint_step}, claim.checkpoints[index:]
        except CorruptObject:
            pass
        path.unlink(missing_ok=True)
        log.warning("checkpoint_damaged", job=claim.job_id, key=key)
    return None, []


# -- recording how it ended ------------------------------------------------------------------


def _conclude(
    worker: Worker, claim: Claim, lease: Lease, out: Path, ending: Succeeded, quota: Quota, held: ExitStack
) -> Ending | None:
    """Store what a successful child left, and record how the attempt ended; None: it ends later, in a thread.

    Raises:
        LeaseLost: the job is no longer this worker's.
    """
    claim.span.stage("publish")
    try:
        results = Results(worker.store, claim, quota, out)
    except UntrustworthyFile as error:
        return _record(worker, claim, lease, _left_what_cannot_be_kept(error))

    def save() -> Ending:
        try:
            results.save()
            check_report(ending.report, results.artifacts, out)
        except UntrustworthyFile as error:
            return _left_what_cannot_be_kept(error)
        return ending

    def finish(ending: Ending) -> Ending:
        ended = _record(worker, claim, lease, ending, results.artifacts)
        if not isinstance(ended, Succeeded):
            results.discard()
        return ended

    try:
        return finish(save())
    except NoRoom as error:
        log.warning("result_not_stored", job=claim.job_id, reason=str(error))
        if not claim.type.listed:
            # Made again in seconds; somebody waits for the uploads behind it.
            return finish(Hindered(error.error))
    # The result of hours; it would be a pity to make it again.
    return waiting_results.finish(worker, lease, save, finish, held)


def _left_what_cannot_be_kept(error: UntrustworthyFile) -> Crashed:
    return Crashed(ModelCrashesWorker(f"The process that ran the model left files that cannot be kept: {error}."))


def _record(worker: Worker, claim: Claim, lease: Lease, ending: Ending, artifacts: Sequence[Artifact] = ()) -> Ending:
    """Turn an ending into one fenced transition of the job. Returns what it came to.

    Raises:
        LeaseLost: the transition was no longer this worker's to make.
    """
    if isinstance(ending, Crashed) and claim.crash_count + 1 >= worker.settings.max_attempts:
        ending = Failed(ending.error)
    if isinstance(ending, Hindered) and claim.attempt - claim.crash_count >= worker.settings.max_lost_attempts:
        ending = Failed(ending.error)
    status, checkpoints = lease.write(lambda: _end(worker.sessions, claim, ending, artifacts))
    failpoint("job.ended")
    if status in ENDED:
        for key in checkpoints:
            discard(worker.store, key)
    if status == "canceled":
        ending = Canceled()
    log.info("ended", job=claim.job_id, ending=type(ending).__name__, detail=_detail(ending))
    claim.span.ended(type(ending).__name__, _code(ending))
    return ending


def _end(sessions: Sessions, claim: Claim, ending: Ending, artifacts: Sequence[Artifact]) -> tuple[str, list[str]]:
    """One transaction: the transition that the ending asks for, or `canceled` where a cancel came first.

    Returns:
        The status, and the keys of the checkpoints that the row names.

    Raises:
        LeaseLost: neither is this worker's to make.
    """
    with sessions.begin() as session:
        made = _transition(session, claim, ending, artifacts)
        if not made and not lifecycle.finish_cancel(session, claim.job_id, claim.fence):
            raise LeaseLost
        status, *keys = session.execute(
            select(Job.status, Job.checkpoint_key, Job.previous_checkpoint_key).where(Job.id == claim.job_id)
        ).one()
        return status, [key for key in keys if key]


def _transition(session: Session, claim: Claim, ending: Ending, artifacts: Sequence[Artifact]) -> bool:
    job_id, fence = claim.job_id, claim.fence
    match ending:
        case Succeeded(report):
            return lifecycle.succeed(session, job_id, fence, report, artifacts)
        case Failed(error):
            return lifecycle.fail(session, job_id, fence, error.as_job_error())
        case Crashed(error):
            delay_s = float(claim.crash_count)
            return lifecycle.release(
                session, job_id, fence, charge="crash", delay_s=delay_s, reason=_tried_again(error)
            )
        case Hindered(error):
            delay_s = RETRY_BACKOFF_S * (claim.attempt - claim.crash_count)
            return lifecycle.release(
                session, job_id, fence, charge="attempt", delay_s=delay_s, reason=_tried_again(error)
            )
        case HandedBack():
            return lifecycle.release(session, job_id, fence, charge=None)
        case Canceled():
            return False
        case _:
            assert_never(ending)


def _tried_again(error: ParedError) -> str:
    """Why there is another attempt, for whoever follows."""
    return f"{error.detail[: protocol.MAX_TEXT]} It is tried again."


def _code(ending: Ending) -> str | None:
    return ending.error.code if isinstance(ending, Failed | Crashed | Hindered) else None


def _detail(ending: Ending) -> str:
    match ending:
        case Failed(error) | Crashed(error) | Hindered(error):
            return error.detail
    return ""
