"""Pins: jobs that are kept whatever their age."""

from __future__ import annotations

from fastapi import APIRouter

from pared.state.retention import set_pinned
from service.checked_routes import CheckedRoute
from service.dependencies import Owner, PartsOf, check_id
from service.openapi import answers

router = APIRouter(tags=["jobs"], route_class=CheckedRoute)


@router.post(
    "/v1/jobs/{job_id}/pin",
    status_code=204,
    summary="Keep a job",
    description="Where this server forgets jobs that ended long ago, it keeps this one, its report and files, and the "
    "uploads that it names, until it is unpinned. Pinning again changes nothing.",
    responses=answers(204, None, 404),
)
def pin_job(parts: PartsOf, owner: Owner, job_id: str) -> None:
    """Pin the job."""
    check_id(job_id, "job")
    set_pinned(parts.sessions, owner, job_id, pinned=True)


@router.post(
    "/v1/jobs/{job_id}/unpin",
    status_code=204,
    summary="No longer keep a job",
    description="The job goes when it is as old as others that go. Unpinning again changes nothing.",
    responses=answers(204, None, 404),
)
def unpin_job(parts: PartsOf, owner: Owner, job_id: str) -> None:
    """Unpin the job."""
    check_id(job_id, "job")
    set_pinned(parts.sessions, owner, job_id, pinned=False)
