"""Jobs: submitted, listed, looked at, canceled and followed."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from pared.job_types import LISTED, ListedName
from pared.state.jobs import cancel, no_such_job
from pared.statuses import ENDED, JobStatus
from service.checked_routes import CheckedRoute, PlainRoute
from service.dependencies import (
    Following,
    OwnedJob,
    Owner,
    Parts,
    PartsOf,
    check_id,
    known_caller,
    owner_of,
    parts_of,
    request_id_of,
)
from service.etags import client_has, tagged
from service.job_answers import JobAnswer, JobsPage
from service.job_specs import PostedSpec
from service.job_views import read_job
from service.long_polling import cut_off, requested_wait_s, wait_headers, wait_until
from service.openapi import JOB, SPEC_BODY, SUCCEEDED, UNCHANGED, answers, page
from service.pagination import After, Limit
from service.schemas import JobView, Page
from service.streams import Stream
from service.submissions import submit_job

router = APIRouter(tags=["jobs"], route_class=CheckedRoute)
polls = APIRouter(tags=["jobs"], route_class=PlainRoute)

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


@polls.get(
    "/v1/jobs/{job_id}",
    response_model=JobView,
    summary="Look at a job",
    description="`Prefer: wait=30` answers once the job has ended, or after so many seconds (at most 60); with "
    "`If-None-Match`, as soon as anything changes. `Retry-After` says when to look again; an ended job has none. "
    "Where `result.failed_outputs` is not empty, the job has succeeded without these formats.",
    responses=answers(200, SUCCEEDED, 404) | UNCHANGED,
)
async def get_job(request: Request, job_id: str) -> Response:
    """The job, at once or once ended."""
    parts, owner = await parts_of(request), await owner_of(request)
    check_id(job_id, "job")
    wait_s = requested_wait_s(request)
    conditional = "if-none-match" in request.headers

    def may_answer(job: JobAnswer) -> bool:
        changed = conditional and not client_has(request, job.tag)
        return changed or job.status in ENDED

    look = partial(job_answer, parts, owner, job_id)
    job = await wait_until(request, parts, job_id, look, may_answer, wait_s, any_change=conditional)
    headers = wait_headers(wait_s)
    if job.status not in ENDED:
        headers["Retry-After"] = "1"
    return tagged(request, job.content, job.tag, headers)


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
async def create_job(request: Request, spec: PostedSpec, idempotency_key: IdempotencyKey = None) -> Response:
    """Submit, dispatch, answer."""
    parts, caller = await parts_of(request), await known_caller(request)
    job_id = await submit_job(parts, caller, spec, idempotency_key, await request_id_of(request))
    job = await job_answer(parts, caller.owner, job_id)
    headers = {"Location": f"/v1/jobs/{job_id}", "Retry-After": "1"}
    return Response(job.content, 202, headers, media_type="application/json")


class JobsQuery(BaseModel):
    """Which jobs are listed."""

    status: JobStatus | None = Field(None, description="Only jobs in this state.")
    type: ListedName | None = Field(None, description="Only this type.")
    after: After = None
    limit: Limit = 20


@polls.get(
    "/v1/jobs",
    response_model=Page[JobView],
    summary="List jobs",
    description="Newest first.",
    responses=answers(200, page(JOB)),
)
async def list_jobs(request: Request, query: Annotated[JobsQuery, Query()]) -> Response:
    """A page of the jobs that the owner posted."""
    page = JobsPage(await owner_of(request), query.status, query.type, query.after, query.limit)
    return Response(await (await parts_of(request)).job_pages.get(page), media_type="application/json")


async def job_answer(parts: Parts, owner: str, job_id: str) -> JobAnswer:
    """The owner's job as it is sent. Raises NotFound."""
    job = await parts.jobs.get((owner, job_id))
    if job is None:
        raise no_such_job(job_id)
    return job


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
    """Cancel and answer."""
    with parts.sessions.begin() as session:
        cancel(session, owner, job.id)
    view = read_job(parts.sessions, owner, job.id)
    response.headers["Location"] = view.links.self
    if view.status not in ENDED:
        response.headers["Retry-After"] = "1"
    return view


def _room_for_a_stream(parts: PartsOf) -> None:
    """Raise Unavailable, while a status can still be answered, where no more streams may be open."""
    parts.changes.must_have_room()


@router.get(
    "/v1/jobs/{job_id}/events",
    dependencies=[Following, Depends(_room_for_a_stream)],
    response_class=StreamingResponse,
    summary="Follow a job",
    description="Server-Sent Events: `status`, `progress`, `metric`, `log` and, last, `done`. Ids rise by one; after a "
    "lost connection `Last-Event-ID` (or `?last_event_id=`) continues behind that event. Comments keep the line open.",
    responses=answers(200, EXAMPLE_EVENTS, 404, media_type="text/event-stream"),
)
async def job_events(
    request: Request,
    parts: PartsOf,
    job: OwnedJob,
    last_event_id: Annotated[
        int | None, Header(alias="Last-Event-ID", ge=0, lt=1 << 31, description="The id of the last event seen.")
    ] = None,
    last_event_id_query: Annotated[
        int | None, Query(alias="last_event_id", ge=0, lt=1 << 31, description="The same, for clients without headers.")
    ] = None,
) -> Response:
    """Replay what was missed, then follow until the job has ended, or the key works no more."""
    last_seq = last_event_id if last_event_id is not None else last_event_id_query or 0
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    stream = parts.changes.follow(job.id, last_seq, until=lambda: cut_off(request))
    return Stream(stream, media_type="text/event-stream", headers=headers)
