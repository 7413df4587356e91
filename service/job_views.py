"""Owns reading a job for the API: its row, its result or its place in the queue, and what it waits for."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from pared.state.jobs import find_job
from pared.state.session import Sessions
from pared.state.tables import Artifact, Job
from pared.state.turns import place_in_line
from pared.state.workers import waits_for
from service.schemas import JobView, Result, artifact_view, job_view


def read_job(sessions: Sessions, owner: str, job_id: str) -> JobView:
    """The owner's job as the API shows it. Raises NotFound."""
    with sessions() as session:
        return view_of(session, find_job(session, owner, job_id))


def view_of(session: Session, job: Job) -> JobView:
    """The job as the API shows it."""
    position = waits = None
    result = _result(session, job) if job.status == "succeeded" else None
    if job.status == "queued":
        position = place_in_line(session, job)
        waits = waits_for(session, job.device)
    return job_view(job, result, position, waits)


def _result(session: Session, job: Job) -> Result:
    # Parts of the report, which is not read whole for this.
    columns = (Job.report["verdict"].as_string(), Job.report["failed_outputs"].as_json())
    verdict, failed_outputs = session.execute(select(*columns).where(Job.id == job.id)).one()
    artifacts = session.scalars(select(Artifact).where(Artifact.job_id == job.id).order_by(Artifact.name))
    return Result(verdict=verdict, artifacts=list(map(artifact_view, artifacts)), failed_outputs=failed_outputs or [])
