"""Owns reading jobs for the API: their rows, their results or their places in the queue, and what they wait for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from pared.state.jobs import find_job
from pared.state.outcomes import read_outcome
from pared.state.session import Sessions
from pared.state.tables import Artifact, Job
from pared.state.turns import Line
from pared.state.workers import living, reason_to_wait
from service.schemas import JobView, Result, artifact_view, job_view

_ARTIFACTS = (
    select(Artifact)
    .where(Artifact.job_id.in_(bindparam("jobs", expanding=True)))
    .order_by(Artifact.job_id, Artifact.name)
)


def read_job(sessions: Sessions, owner: str, job_id: str) -> JobView:
    """The owner's job as the API shows it. Raises NotFound."""
    with sessions() as session:
        return views_of(session, [find_job(session, owner, job_id)])[0]


def views_of(session: Session, jobs: Sequence[Job]) -> list[JobView]:
    """Jobs of one owner as the API shows them. So many queries are made for many jobs as for one."""
    files: dict[str, list[Artifact]] = defaultdict(list)
    if done := [job.id for job in jobs if job.status == "succeeded"]:
        for artifact in session.scalars(_ARTIFACTS, {"jobs": done}):
            files[artifact.job_id].append(artifact)
    queued = [job for job in jobs if job.status == "queued"]
    workers = living(session) if queued else []
    line = Line(session, queued)
    return [
        job_view(
            job,
            _result(session, job, files[job.id]) if job.status == "succeeded" else None,
            line.place_of(job) if job.status == "queued" else None,
            reason_to_wait(workers, job.device) if job.status == "queued" else None,
        )
        for job in jobs
    ]


def _result(session: Session, job: Job, files: Sequence[Artifact]) -> Result:
    return Result(**read_outcome(session, job), artifacts=list(map(artifact_view, files)))
