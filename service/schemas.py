"""Owns the JSON that the API answers with, and makes it from rows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from pared.job_types import ListedName
from pared.reports import FailedOutput
from pared.state.tables import Artifact, Dataset, Job, Model, PartialUpload
from pared.state.uploads import BUILTIN_INSPECTION
from pared.statuses import ENDED, JobStatus, UploadStatus

Item = TypeVar("Item")


class ErrorView(BaseModel):
    """What went wrong inside a job or with an upload."""

    code: str
    title: str
    detail: str


class Links(BaseModel):
    """The URL of this resource."""

    self: str


class UploadView(BaseModel):
    """A stored model or data set."""

    id: str
    filename: str
    sha256: str | None
    size_bytes: int | None
    format: str | None
    status: UploadStatus
    reason: ErrorView | None = Field(description="Why it was rejected.")
    inspection: dict[str, Any] | None = Field(description="What opening it in the sandbox showed. Not in lists.")
    created_at: str | None
    links: Links


class ModelView(UploadView):
    """A stored model."""

    architecture: Any | None = Field(description="As posted with the file: a name, or JSON.")
    weights: str | None = Field(None, description="Which state dict of a checkpoint it is, as posted with the file.")
    prefix: str | None = Field(None, description="Of the names of its tensors, as posted with the file.")


class PartialUploadView(BaseModel):
    """An upload that is sent in pieces."""

    id: str
    kind: Literal["models", "datasets"]
    filename: str
    size_bytes: int
    offset: int = Field(description="Bytes that are on disk; the next piece begins here.")
    result: str | None = Field(description="The model or data set that it became: its URL.")
    expires_at: str | None = Field(description="When it is forgotten if no more bytes come.")
    links: Links


class PreviewedInput(BaseModel):
    """One input of the samples of a preview."""

    name: str
    shape: list[int] = Field(description="Of one sample.")
    dtype: str
    min: float
    max: float
    mean: float


class PreviewRow(BaseModel):
    """One sample of a preview."""

    index: int = Field(description="In the training split.")
    inputs: dict[str, Any] = Field(description="By name; of many numbers the first, in a row.")
    target: Any | None = Field(None, description="Not there without labels.")
    class_name: str | None = Field(None, alias="class", description="Of a target that is a class with a name.")


class PreviewRows(BaseModel):
    """Some samples of a data set that are no images, as a model gets them without `preprocess`."""

    split: str
    inputs: list[PreviewedInput] = Field(description="Over the samples that are shown.")
    samples: list[PreviewRow]


class Page(BaseModel, Generic[Item]):
    """One page, newest first; `next_cursor` goes into `after`."""

    data: list[Item]
    has_more: bool
    next_cursor: str | None


class Progress(BaseModel):
    """The progress of a job."""

    fraction: float = 0.0
    epoch: int | None = None
    epochs: int | None = None
    eta_s: float | None = None


class ArtifactLinks(Links):
    """The URL to download the file from."""


class ArtifactView(BaseModel):
    """A file that a job made."""

    id: str
    name: str
    media_type: str
    size_bytes: int
    sha256: str
    created_at: str
    links: ArtifactLinks


class Result(BaseModel):
    """The result of a succeeded job."""

    verdict: str | None
    artifacts: list[ArtifactView]
    failed_outputs: list[FailedOutput] = Field(
        description="Formats in `outputs` that could not be written, and why; the others are among the artifacts."
    )


class JobLinks(Links):
    """The URLs of all that belongs to a job."""

    events: str
    report: str
    artifacts: str
    cancel: str
    web: str = Field(description="The job's page, for people.")


class JobView(BaseModel):
    """A job."""

    id: str
    type: ListedName
    status: JobStatus
    stage: str | None
    progress: Progress
    queue_position: int | None = Field(
        description="1 is next, among the jobs for the same device. Owners take turns, so of each other owner no more "
        "are counted than of your own. Null unless queued."
    )
    waits_for: str | None = Field(description="Of a queued job that no living worker could take: what it waits for.")
    attempt: int
    sandbox: str | None = Field(description="The sandbox level that held while it ran.")
    created_at: str
    started_at: str | None
    finished_at: str | None
    pinned: bool = Field(description="Whether it is kept whatever its age.")
    spec: dict[str, Any]
    error: ErrorView | None
    result: Result | None
    links: JobLinks


class PlanPending(BaseModel):
    """A plan that is still being made."""

    id: str
    status: Literal["queued", "running"]
    waits_for: str | None = Field(description="Of a plan that no living worker could make: what it waits for.")
    created_at: str
    links: Links


def model_view(row: Model, *, inspection: bool = True) -> ModelView:
    """A model's JSON, with its inspection or without."""
    shown = _upload(row, "models", inspection=inspection)
    return ModelView(**shown, architecture=row.architecture, weights=row.weights, prefix=row.prefix)


def dataset_view(row: Dataset, *, inspection: bool = True) -> UploadView:
    """A data set's JSON, with its inspection or without."""
    return UploadView(**_upload(row, "datasets", inspection=inspection))


def builtin_dataset_view(dataset_id: str) -> UploadView:
    """The JSON of a data set that is part of pared."""
    return UploadView(
        id=dataset_id,
        filename=dataset_id,
        sha256=None,
        size_bytes=None,
        format="builtin",
        status="ready",
        reason=None,
        inspection=BUILTIN_INSPECTION,
        created_at=None,
        links=Links(self=f"/v1/datasets/{dataset_id}"),
    )


def job_view(row: Job, result: Result | None, queue_position: int | None, waits_for: str | None) -> JobView:
    """A job's JSON; `result` is that of a succeeded one."""
    here = f"/v1/jobs/{row.id}"
    progress = Progress(**(row.progress or {}))
    if row.status == "succeeded":
        progress = progress.model_copy(update={"fraction": 1.0, "eta_s": 0.0})
    return JobView.model_validate(
        {
            "id": row.id,
            "type": row.type,
            "status": row.status,
            "stage": None if row.status in ENDED else row.stage,
            "progress": progress,
            "queue_position": queue_position,
            "waits_for": waits_for,
            "attempt": row.attempt,
            "sandbox": row.sandbox,
            "created_at": timestamp(row.created_at),
            "started_at": row.started_at and timestamp(row.started_at),
            "finished_at": row.finished_at and timestamp(row.finished_at),
            "pinned": row.pinned_at is not None,
            "spec": row.spec,
            "error": row.error,
            "result": result,
            "links": {
                "self": here,
                "events": f"{here}/events",
                "report": f"{here}/report",
                "artifacts": f"{here}/artifacts",
                "cancel": f"{here}/cancel",
                "web": f"/jobs/{row.id}",
            },
        }
    )


def partial_upload_view(row: PartialUpload) -> PartialUploadView:
    """The JSON of an upload in pieces."""
    return PartialUploadView(
        id=row.id,
        kind=row.kind,
        filename=row.filename,
        size_bytes=row.size_bytes,
        offset=row.received_bytes,
        result=row.result_id and f"/v1/{row.kind}/{row.result_id}",
        expires_at=timestamp(row.expires_at),
        links=Links(self=f"/v1/uploads/{row.id}"),
    )


def plan_pending_view(row: Job, waits_for: str | None) -> PlanPending:
    """The JSON of a plan that is not made yet."""
    status: Literal["queued", "running"] = "queued" if row.status == "queued" else "running"
    links = Links(self=f"/v1/plans/{row.id}")
    created_at = timestamp(row.created_at)
    return PlanPending(id=row.id, status=status, waits_for=waits_for, created_at=created_at, links=links)


def artifact_view(row: Artifact) -> ArtifactView:
    """An artifact's JSON."""
    return ArtifactView(
        id=row.id,
        name=row.name,
        media_type=row.media_type,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        created_at=timestamp(row.created_at),
        links=ArtifactLinks(self=f"/v1/jobs/{row.job_id}/artifacts/{row.name}"),
    )


def timestamp(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def timestamp_or_none(seconds: float | None) -> str | None:
    """The same of a time that may not have come."""
    return None if seconds is None else timestamp(seconds)


def _upload(row: Model | Dataset, kind: str, *, inspection: bool) -> dict[str, Any]:
    return {
        "id": row.id,
        "filename": row.filename,
        "sha256": row.sha256,
        "size_bytes": row.size_bytes,
        "format": row.format,
        "status": row.status,
        "reason": row.reason,
        "inspection": row.inspection if inspection else None,
        "created_at": timestamp(row.created_at),
        "links": Links(self=f"/v1/{kind}/{row.id}"),
    }
