"""Jobs: posted, followed, cancelled."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from pydantic import ValidationError as Invalid
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pared.errors import TooLarge, ValidationError
from pared.job_types import LISTED, ListedName, listed_spec
from pared.specs import JobSpec
from pared.state.events import events_after
from pared.state.jobs import Idempotency, cancel, find_job, jobs_of, submit
from pared.state.tables import Artifact, Job, JobEvent
from pared.state.workers import waits_for
from pared.statuses import ENDED, JobStatus
from service import strangers_json
from service.conditional import client_has, json_with_tag, wait_headers, wanted_wait_s, weak_tag
from service.deps import OwnedJob, Owner, Parts, PartsOf, check_id
from service.openapi import JOB, SPEC_BODY, SUCCEEDED, UNCHANGED, answers, page
from service.paging import After, Limit, as_page, fetch_page
from service.problems import invalid
from service.views import JobView, Page, Result, view_artifact, view_job
from service.waiting import POLL_S, wait_until

router = APIRouter(tags=["jobs"])

SPECS: dict[str, type[BaseModel]] = {each.name: each.spec for each in LISTED}
EXAMPLE_EVENTS = """\
id: 1
event: status
data: {"status": "queued", "attempt": 0}

id: 7
event: metric
data: {"name": "train_loss", "value": 0.41, "step": 1, "phase": "retrain"}

id: 12
event: done
data: {"status": "succeeded", "error": null}

"""


async def spec_of(request: Request, parts: PartsOf) -> JobSpec:
    """The spec in the body. Raises ValidationError with a pointer to each bad field, or TooLarge."""
    body = await _json_body(request, parts.settings.max_json_bytes)
    try:
        return listed_spec.validate_python(body)
    except Invalid as error:
        raise invalid(error.errors(include_url=False, include_input=False), body, SPECS) from None


Spec = Annotated[JobSpec, Depends(spec_of)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of your own. The same key and body answer with the same job for a day, so a POST can "
        "be repeated safely.",
    ),
]


@router.post(
    "/v1/jobs",
    status_code=202,
    response_model=JobView,
    summary="Submit a job",
    description=f"A {' or '.join(f'*{each.name}*' for each in LISTED)} spec. Unknown fields are errors. The job is "
    "stored before this answers, so it is not lost whatever dies. Each format in `outputs` is tried before training "
    "begins: the job fails at once where none can be written, and otherwise goes on for those that can. "
    '`"device": "cuda"` waits for a worker with a GPU; where none has been seen lately, 409 says what to do.',
    openapi_extra=SPEC_BODY,
    responses=answers(202, JOB, 404, 409, 413),
)
def create_job(
    response: Response, parts: PartsOf, owner: Owner, spec: Spec, idempotency_key: IdempotencyKey = None
) -> JobView:
    """Submit, ring, answer."""
    idempotency = None
    if idempotency_key:
        digest = hashlib.sha256(spec.model_dump_json(exclude_unset=True).encode()).hexdigest()
        idempotency = Idempotency(idempotency_key, digest)
    job, new = submit(parts.sessions, owner, spec, idempotency)
    if new:
        parts.bell.ring()
    view = _look(parts, owner, job.id)
    response.headers["Location"] = view.links.self
    response.headers["Retry-After"] = "1"
    return view


@router.get(
    "/v1/jobs",
    response_model=Page[JobView],
    summary="List jobs",
    description="Newest first.",
    responses=answers(200, page(JOB)),
)
def list_jobs(
    parts: PartsOf,
    owner: Owner,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
    job_type: Annotated[ListedName | None, Query(alias="type", description="Only this type.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """A page of the owner's jobs; inspections are not listed."""
    query = jobs_of(owner)
    if status:
        query = query.where(Job.status == status)
    if job_type:
        query = query.where(Job.type == job_type)
    with parts.sessions() as session:
        return as_page([_view(session, job) for job in fetch_page(session, query, Job.id, after, limit)], limit)


@router.get(
    "/v1/jobs/{job_id}",
    response_model=JobView,
    summary="Look at a job",
    description="`Prefer: wait=30` answers once the job has ended, or after so many seconds (at most 60); with "
    "`If-None-Match`, as soon as anything changes. `Retry-After` says when to look again; an ended job has none. "
    "Where `result.failed_outputs` is not empty, the job has succeeded without these formats.",
    responses=answers(200, SUCCEEDED, 404) | UNCHANGED,
)
async def get_job(request: Request, parts: PartsOf, owner: Owner, job_id: str) -> Response:
    """The job, at once or once ended."""
    check_id(job_id, "job")
    wait_s = wanted_wait_s(request)
    conditional = "if-none-match" in request.headers

    def is_news(view: JobView) -> bool:
        changed = conditional and not client_has(request, weak_tag(view.model_dump_json().encode()))
        return changed or view.status in ENDED

    view = await wait_until(request, lambda: _look(parts, owner, job_id), is_news, wait_s)
    headers = wait_headers(wait_s)
    if view.status not in ENDED:
        headers["Retry-After"] = "1"
    return json_with_tag(request, view, headers)


@router.post(
    "/v1/jobs/{job_id}/cancel",
    status_code=202,
    response_model=JobView,
    summary="Cancel a job",
    description="A queued job is `canceled` at once; a running one is `canceling` until its worker has stopped it, "
    "within seconds, and then always `canceled`. Asking again while it stops changes nothing. 409 if it had ended.",
    responses=answers(202, JOB | {"status": "canceling"}, 404, 409),
)
def cancel_job(response: Response, parts: PartsOf, owner: Owner, job: OwnedJob) -> JobView:
    """Cancel, answer."""
    with parts.sessions.begin() as session:
        cancel(session, owner, job.id)
    view = _look(parts, owner, job.id)
    response.headers["Location"] = view.links.self
    if view.status not in ENDED:
        response.headers["Retry-After"] = "1"
    return view


@router.get(
    "/v1/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    summary="Follow a job",
    description="Server-Sent Events: `status`, `progress`, `metric`, `log` and, last, `done`. Ids rise by one; after a "
    "lost connection `Last-Event-ID` (or `?last_event_id=`) continues behind that event. Comments keep the line open.",
    responses=answers(200, EXAMPLE_EVENTS, 404, media_type="text/event-stream"),
)
async def job_events(
    parts: PartsOf,
    job: OwnedJob,
    last_event_id: Annotated[
        int | None, Header(alias="Last-Event-ID", ge=0, lt=1 << 31, description="The id of the last event seen.")
    ] = None,
    last_event_id_query: Annotated[
        int | None, Query(alias="last_event_id", ge=0, lt=1 << 31, description="The same, for clients without headers.")
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Replay what was missed, then follow until the job has ended."""
    seen = last_event_id if last_event_id is not None else last_event_id_query or 0
    while True:
        events, over = await run_in_threadpool(_news, parts, job.id, seen)
        for event in events:
            yield ServerSentEvent(data=event.data, event=event.kind, id=str(event.seq))
            seen = event.seq
        if over:
            return
        await asyncio.sleep(POLL_S)


def _news(parts: Parts, job_id: str, seen: int) -> tuple[list[JobEvent], bool]:
    """The next events, and whether they are the last."""
    with parts.sessions() as session:
        # Status first: a job seen as ended has its last event already, for both are one transaction.
        status = session.scalar(select(Job.status).where(Job.id == job_id))
        events = list(events_after(session, job_id, seen))
    done = bool(events) and events[-1].kind == "done"
    return events, done or (not events and (status is None or status in ENDED))


async def _json_body(request: Request, max_bytes: int) -> Any:
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise ValidationError(f"Send the spec as application/json, not as {content_type}.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(f"A job spec has at most {max_bytes:,} bytes.")
    try:
        value = strangers_json.parse(body)
    except ValueError as error:
        told = [{"pointer": "", "detail": str(error)}]
        raise ValidationError(f"The body is not JSON that we read: {error}.", errors=told) from None
    if not isinstance(value, dict):
        told = [{"pointer": "", "detail": "must be an object"}]
        raise ValidationError('A spec is a JSON object, such as {"type": "prune", …}.', errors=told)
    return value


def _look(parts: Parts, owner: str, job_id: str) -> JobView:
    with parts.sessions() as session:
        return _view(session, find_job(session, owner, job_id))


def _view(session: Session, job: Job) -> JobView:
    position = result = waits = None
    if job.status == "succeeded":
        # Parts of the report, which is not read whole for this.
        parts = (Job.report["verdict"].as_string(), Job.report["failed_outputs"].as_json())
        verdict, failed = session.execute(select(*parts).where(Job.id == job.id)).one()
        artifacts = session.scalars(select(Artifact).where(Artifact.job_id == job.id).order_by(Artifact.name))
        result = Result(verdict=verdict, artifacts=list(map(view_artifact, artifacts)), failed_outputs=failed or [])
    if job.status == "queued":
        rivals = Job.device.in_({job.device, "auto"})
        position = session.scalar(select(func.count()).where(Job.status == "queued", rivals, Job.id <= job.id))
        waits = waits_for(session, job.device)
    return view_job(job, result, position, waits)
