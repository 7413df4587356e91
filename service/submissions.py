"""Owns how a spec becomes a job, or the plan of one, for the API and the pages alike."""

from __future__ import annotations

import hashlib
from functools import partial

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from pared.errors import ParedError, Unavailable, ValidationError
from pared.specs import JobSpec, PipelineSpec, PlanSpec, PruneSpec, QuantizeSpec
from pared.specs.planning import unknown_beforehand
from pared.state import tracing
from pared.state.jobs import Idempotency, Submission, find_plan, submit_plan
from pared.state.keys import Caller
from pared.state.lifecycle import NewJob
from pared.state.tables import Job
from pared.state.workers import waits_for
from pared.statuses import ENDED
from service.dependencies import Parts
from service.long_polling import wait_until


def digest_of(spec: JobSpec) -> str:
    """What tells one spec from another."""
    return hashlib.sha256(spec.model_dump_json(exclude_unset=True).encode()).hexdigest()


async def submit_job(parts: Parts, caller: Caller, spec: JobSpec, key: str | None, request_id: str) -> str:
    """Submit a job and call the workers. Returns the job's id.

    Args:
        key: what the client calls this request, so that it makes one job however often it is sent.

    Raises:
        ParedError: as `pared.state.jobs.submit_all` tells.
    """
    idempotency = Idempotency(key, digest_of(spec)) if key else None
    job = NewJob(spec, request_id, caller.key_id, tracing.traceparent())
    outcome = await parts.submissions.get(Submission(caller.owner, job, idempotency))
    if outcome is None or isinstance(outcome, ParedError):
        raise outcome or Unavailable("The job was not taken. Send it again.")
    if outcome.new:
        tracing.note_job(outcome.job.id)
        parts.dispatcher.dispatch()
    return outcome.job.id


def start_plan(parts: Parts, caller: Caller, spec: JobSpec, request_id: str, key: str | None = None) -> str:
    """Submit the plan of a job and call the workers. Returns the plan's id.

    Args:
        key: what asks for it, so that it makes one plan of this spec however often it asks.

    Raises:
        ValidationError: nothing is known of such a job before it is done.
        ParedError: as `pared.state.jobs.submit_plan` does.
    """
    plan_id = submit_plan(
        parts.sessions,
        caller.owner,
        _plan_of(spec),
        Idempotency(key, digest_of(spec)) if key else None,
        request_id=request_id,
        key_id=caller.key_id,
        settings=parts.settings,
    )
    parts.dispatcher.dispatch()
    return plan_id


async def wait_for_plan(request: Request, parts: Parts, owner: str, plan_id: str, wait_s: float) -> Job:
    """The owner's plan, once it has ended or the time is up. Raises NotFound."""

    def read() -> Job:
        with parts.sessions() as session:
            return find_plan(session, owner, plan_id)

    return await wait_until(
        request, parts, plan_id, partial(run_in_threadpool, read), lambda plan: plan.status in ENDED, wait_s
    )


async def why_it_waits(parts: Parts, plan: Job) -> str | None:
    """Of a plan that no living worker could make: what it waits for."""

    def read() -> str | None:
        with parts.sessions() as session:
            return waits_for(session, plan.device) if plan.status == "queued" else None

    return await run_in_threadpool(read)


def _plan_of(spec: JobSpec) -> PlanSpec:
    if not isinstance(spec, PruneSpec | QuantizeSpec | PipelineSpec):
        why = "must be prune, quantize or pipeline: a student is what it is told to be. Post the job itself"
        raise _cannot_plan("/type", why)
    if unknown := unknown_beforehand(spec):
        raise _cannot_plan(*unknown)
    return PlanSpec(type="plan", job=spec)


def _cannot_plan(pointer: str, why: str) -> ValidationError:
    return ValidationError(f"{pointer} {why}.", errors=[{"pointer": pointer, "detail": why}])
