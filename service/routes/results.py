"""Results of jobs: the report, the curves, the files."""

from __future__ import annotations

import csv
import io
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from sqlalchemy import select

from pared.errors import Conflict, NotAcceptable, NotFound, NotReady, ParedError
from pared.job_types import ListedReport
from pared.report_page import CONTENT_SECURITY_POLICY, render
from pared.reports import Report
from pared.state.session import to_json
from pared.state.tables import Artifact, Job, JobEvent
from pared.statuses import ENDED
from service.accept import prefers
from service.checked_routes import CheckedRoute
from service.dependencies import OwnedJob, PartsOf
from service.downloads import attachment, file_response
from service.etags import client_has, weak_tag
from service.openapi import ARTIFACT, UNCHANGED, answers
from service.schemas import ArtifactView, artifact_view

router = APIRouter(tags=["results"], route_class=CheckedRoute)

EXAMPLE_REPORT = {
    "type": "prune",
    "verdict": "Goal met: 24.8 % of the parameters (asked: at most 25 %). 4.0× fewer parameters, −0.4 points of test "
    "accuracy (95 % CI −1.5 … +0.7)",
    "goal": {
        "status": "met",
        "target": {"params": 0.25},
        "reached": {"params": 0.248},
        "amount": 0.53125,
        "sentence": "Goal met: 24.8 % of the parameters (asked: at most 25 %).",
    },
    "before": {"parameters": 61706, "nonzero_parameters": 61706, "file_bytes": 249318, "compressed_bytes": 229870},
    "after": {"parameters": 15303, "nonzero_parameters": 15303, "file_bytes": 70112, "compressed_bytes": 64021},
    "failed_outputs": [],
}
_REPORT_ANSWERS = answers(200, EXAMPLE_REPORT, 404, 406, 409) | UNCHANGED
_REPORT_ANSWERS[200]["content"]["text/html"] = {
    "schema": {"type": "string"},
    "example": '<!DOCTYPE html>\n<html lang="en">\n<head>\n<title>pared: prune report</title>\n…',
}


@router.get(
    "/v1/jobs/{job_id}/report",
    response_model=ListedReport,
    summary="Read a job's report",
    description="What was gained and lost, measured on the files themselves. Until the job has succeeded: 409, with "
    "`Retry-After` while it still may, and with the job's own error if it failed.\n\n"
    "It is JSON, or with `Accept: text/html`, as browsers send it, one page to read, print and pass on: a file of less "
    "than 1 MB that loads nothing and runs no script. Huge reports are summed up there; the JSON has all of them.",
    responses=_REPORT_ANSWERS,
)
def get_report(request: Request, parts: PartsOf, job: OwnedJob) -> Response:
    """The report as the worker wrote it, or a page made of it."""
    _must_have_succeeded(job)
    with parts.sessions() as session:
        report = session.scalar(select(Job.report).where(Job.id == job.id))
    headers = {"Cache-Control": "no-cache", "Vary": "Accept"}
    if prefers(request, "text/html", "application/json"):
        media_type, content = "text/html", _page(report).encode()
        headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    else:
        media_type, content = "application/json", to_json(report).encode()
    headers["ETag"] = weak_tag(content)
    if client_has(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


@router.get(
    "/v1/jobs/{job_id}/report/metrics.csv",
    response_class=Response,
    summary="Download a job's curves",
    description="Every metric of the job so far: time, phase, step, name, value.",
    responses=answers(
        200, "at,phase,step,name,value\r\n1768469412.118,retrain,1,train_loss,0.41\r\n", 404, media_type="text/csv"
    ),
)
def get_metrics(parts: PartsOf, job: OwnedJob) -> Response:
    """The `metric` events as a table."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["at", "phase", "step", "name", "value"])
    with parts.sessions() as session:
        events = session.scalars(
            select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.kind == "metric").order_by(JobEvent.seq)
        )
        for event in events:
            cells = [event.data.get(name) for name in ("phase", "step", "name", "value")]
            writer.writerow([f"{event.created_at:.3f}", *map(_escaped, cells)])
    name = f"{job.id}-metrics.csv"
    headers = {"Content-Disposition": attachment(name)}
    return Response(table.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


@router.get(
    "/v1/jobs/{job_id}/artifacts",
    response_model=dict[str, list[ArtifactView]],
    summary="List a job's files",
    description="Empty until the job has succeeded.",
    responses=answers(200, {"data": [ARTIFACT]}, 404),
)
def list_artifacts(parts: PartsOf, job: OwnedJob) -> dict[str, list[ArtifactView]]:
    """The files, by name."""
    with parts.sessions() as session:
        rows = session.scalars(select(Artifact).where(Artifact.job_id == job.id).order_by(Artifact.name))
        return {"data": [artifact_view(row) for row in rows]}


@router.head("/v1/jobs/{job_id}/artifacts/{name}", include_in_schema=False)
@router.get(
    "/v1/jobs/{job_id}/artifacts/{name}",
    response_class=StreamingResponse,
    summary="Download one of a job's files",
    description="One byte range can be asked for, so a broken download continues (`curl -C -`). `ETag` and "
    "`Repr-Digest` are the SHA-256; bytes that no longer have it are not served. Where the server is set up so, the "
    "answer is a redirect to where the file is for some minutes, unless the request says `Prefer: no-redirect`.",
    responses=answers(
        200, "(the file)", 404, 409, 412, 416, media_type="application/octet-stream", description="The whole file."
    )
    | {206: {"description": "The range asked for."}, 307: {"description": "Where it is for some minutes, if set so."}}
    | UNCHANGED,
)
def download_artifact(request: Request, parts: PartsOf, job: OwnedJob, name: str) -> Response:
    """The file, or the range asked for."""
    with parts.sessions() as session:
        rows = session.scalars(select(Artifact).where(Artifact.job_id == job.id).order_by(Artifact.name)).all()
    # Chosen here, not by the query: a path may hold what PostgreSQL does not take for text, such as NUL.
    row = next((row for row in rows if row.name == name), None)
    if row is None:
        _must_have_succeeded(job)
        raise NotFound(f"The job has no file {name}; it has {', '.join(row.name for row in rows) or 'none'}.")
    return file_response(request, parts, row, may_be_elsewhere=True)


def _page(report: Any) -> str:
    try:
        return render(Report.model_validate(report))
    except ValidationError as error:  # of another type of job, or of an earlier version
        raise NotAcceptable("This report cannot be shown as a page. Ask for `Accept: application/json`.") from error


def _must_have_succeeded(job: Job) -> None:
    if job.status not in ENDED:
        raise NotReady(f"The job is {job.status}. Wait until it has ended, such as with `Prefer: wait=30` on the job.")
    if job.status == "canceled":
        raise Conflict("The job was canceled, so there is no result. Submit it again to have one.")
    if job.status == "failed":
        error = job.error or ParedError("").as_job_error()
        raise Conflict(f"The job failed ({error['code']}): {error['detail']}")


def _escaped(cell: Any) -> Any:
    """A spreadsheet takes text that begins so for a formula; the names come from the model's side."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" else cell
