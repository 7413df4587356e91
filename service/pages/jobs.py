"""Pages about jobs: one job, live and with its result; its log; the list; several side by side."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from pared.errors import Conflict
from pared.state.jobs import cancel, find_job
from pared.state.keys import Caller
from pared.state.retention import set_pinned
from service.dependencies import CallerOf, Parts, PartsOf, check_id
from service.pages import job_comparison, job_list, job_page
from service.pages.job_list import Filters
from service.pages.site import render, see_other
from service.pagination import After

router = APIRouter(include_in_schema=False)

_Choice = Annotated[str, Query(max_length=200)]


async def _filters(
    status: _Choice = "",
    type: _Choice = "",  # noqa: A002 - the name of the API's parameter
    model: _Choice = "",
    dataset: _Choice = "",
    text: _Choice = "",
) -> Filters:
    return Filters(status, type, model, dataset, text.strip())


_FiltersOf = Annotated[Filters, Depends(_filters)]


@router.get("/jobs")
def jobs(request: Request, parts: PartsOf, caller: CallerOf, filters: _FiltersOf, after: After = None) -> Response:
    """A page of the list."""
    return render(request, "jobs.html.j2", job_list.context_of(parts.sessions, caller.owner, filters, after))


@router.get("/jobs/live")
def jobs_live(request: Request, parts: PartsOf, caller: CallerOf, filters: _FiltersOf, after: After = None) -> Response:
    """The part of the list that changes while one of its jobs goes on."""
    return render(request, "_jobs_live.html.j2", job_list.rows_of(parts.sessions, caller.owner, filters, after))


@router.get("/jobs/compare")
def compare(
    request: Request, parts: PartsOf, caller: CallerOf, job: Annotated[list[str] | None, Query(max_length=100)] = None
) -> Response:
    """Jobs side by side."""
    context = job_comparison.context_of(parts.sessions, caller.owner, job or [])
    return render(request, "jobs_compare.html.j2", context)


@router.get("/jobs/{job_id}")
def one_job(request: Request, parts: PartsOf, caller: CallerOf, job_id: str) -> Response:
    """The page of a job."""
    check_id(job_id, "job")
    context = job_page.context_of(parts.sessions, caller, job_id)
    return render(request, "job.html.j2", context | {"scripts": ["notify"]})


@router.get("/jobs/{job_id}/live")
def job_live(request: Request, parts: PartsOf, caller: CallerOf, job_id: str) -> Response:
    """The part of the page that changes while the job goes on."""
    check_id(job_id, "job")
    return render(request, "_job_live.html.j2", job_page.context_of(parts.sessions, caller, job_id))


@router.get("/jobs/{job_id}/log")
def job_log(
    request: Request,
    parts: PartsOf,
    caller: CallerOf,
    job_id: str,
    before: Annotated[int | None, Query(ge=1, lt=1 << 31)] = None,
) -> Response:
    """A page of the log."""
    check_id(job_id, "job")
    with parts.sessions() as session:
        find_job(session, caller.owner, job_id)
        lines, older = job_page.log_lines(session, job_id, job_page.LOG_PAGE, before)
    return render(
        request, "job_log.html.j2", {"job_id": job_id, "log": lines, "older": older, "newest": before is None}
    )


@router.post("/jobs/{job_id}/cancel")
def cancel_job(parts: PartsOf, caller: CallerOf, job_id: str) -> Response:
    """Cancel, and show the job again; one that has ended meanwhile is shown with its end."""
    check_id(job_id, "job")
    try:
        with parts.sessions.begin() as session:
            cancel(session, caller.owner, job_id)
    except Conflict:
        pass
    return see_other(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/pin")
def pin_job(parts: PartsOf, caller: CallerOf, job_id: str) -> Response:
    """Keep the job whatever its age, and show it again."""
    return _pinned(parts, caller, job_id, pinned=True)


@router.post("/jobs/{job_id}/unpin")
def unpin_job(parts: PartsOf, caller: CallerOf, job_id: str) -> Response:
    """Let the job go with its age, and show it again."""
    return _pinned(parts, caller, job_id, pinned=False)


def _pinned(parts: Parts, caller: Caller, job_id: str, *, pinned: bool) -> Response:
    check_id(job_id, "job")
    set_pinned(parts.sessions, caller.owner, job_id, pinned=pinned)
    return see_other(f"/jobs/{job_id}")
