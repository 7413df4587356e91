"""Owns what lists show of a job's report, which is kept beside it: the report itself may be megabytes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from pared.state.tables import Job

TEXT_CHARACTERS = 4000
_FAILED_OUTPUTS = 20


def outcome_of(report: dict[str, Any] | None) -> dict[str, Any] | None:
    """The verdict and the formats that could not be written. The report is the child's; this has a size of its own."""
    if report is None:
        return None
    verdict, failed = report.get("verdict"), report.get("failed_outputs") or []
    return {
        "verdict": verdict and verdict[:TEXT_CHARACTERS],
        "failed_outputs": [
            {**each, "detail": str(each["detail"])[:TEXT_CHARACTERS]} for each in failed[:_FAILED_OUTPUTS]
        ],
    }


def read_outcome(session: Session, job: Job) -> dict[str, Any]:
    """That of a job that has succeeded; from its report where a worker of an older release ended it."""
    if job.outcome is None:
        columns = (Job.report["verdict"].as_string(), Job.report["failed_outputs"].as_json())
        verdict, failed = session.execute(select(*columns).where(Job.id == job.id)).one()
        return outcome_of({"verdict": verdict, "failed_outputs": failed}) or {}
    return job.outcome
