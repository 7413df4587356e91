"""Records of the API: a job, an upload, an event, an artifact, and the operations that each allows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from pared.client import operations
from pared.client.operations import Operation, Progress
from pared.reports import FailedOutput, Report
from pared.statuses import ENDED, JobStatus, UploadStatus
from pared.terminal import printable


class JobFailed(Exception):
    """The job ended without a result; `code` and `detail` are the job's own error, `job` all the rest."""

    def __init__(self, job: JobRecord) -> None:
        """Args: job: the ended job."""
        self.job = job
        error = job.error or {}
        self.code = str(error.get("code", job.status))
        self.detail = str(error.get("detail", ""))
        super().__init__(printable(f"{job.id} {job.status}" + (f" ({self.code}): {self.detail}" if error else "")))


class UploadRejected(Exception):
    """The service opened the file and cannot use it; `code` and `detail` say why and what to do."""

    def __init__(self, upload: UploadRecord) -> None:
        """Args: upload: the rejected model or data set."""
        self.upload = upload
        reason = upload.reason or {}
        self.code = str(reason.get("code", "rejected"))
        self.detail = str(reason.get("detail", ""))
        super().__init__(printable(f"{upload.filename}: {self.detail or self.code}"))


class Event(BaseModel):
    """One event of a job's stream: `status`, `progress`, `metric`, `log` or `done`."""

    id: int
    event: str
    data: dict[str, Any]


class Artifact(BaseModel):
    """A file that a job made."""

    name: str
    sha256: str
    size_bytes: int


class _Record(BaseModel):
    # A newer service may say more than this client knows.
    model_config = ConfigDict(extra="allow")

    _client: Any = PrivateAttr()

    def __repr__(self) -> str:
        """As `print` shows it: all fields would fill screens, and `model_dump()` has them."""
        return f"<{type(self).__name__} {self}>"

    def _update(self, row: Mapping[str, Any]) -> Self:
        fresh = type(self).model_validate(row)
        for name in fresh.model_fields_set:
            setattr(self, name, getattr(fresh, name))
        return self


class UploadRecord(_Record):
    """A stored model or data set, as of the last look."""

    id: str
    filename: str
    sha256: str | None = None
    size_bytes: int | None = None
    status: UploadStatus
    format: str | None = None
    reason: dict[str, Any] | None = None
    inspection: dict[str, Any] | None = None
    created_at: datetime | None = None

    def __str__(self) -> str:
        """One line."""
        size = "" if self.size_bytes is None else f"{self.size_bytes:,} bytes, "  # what is built in has none
        return printable(f"{self.id} {self.filename} ({size}{self.status})")

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from pared.notebook.records import html_of_upload

        return html_of_upload(self)

    @property
    def _path(self) -> str:
        return f"/v1/{'models' if self.id.startswith('mdl_') else 'datasets'}/{self.id}"

    def _wait(self, timeout: float | None) -> Operation[Self]:
        row = yield from operations.poll(
            self._path,
            ended=lambda row: row["status"] != "inspecting",
            timeout_s=timeout,
            still=f"{self.id} is still being inspected",
        )
        if self._update(row).status == "rejected":
            raise UploadRejected(self)
        return self


class JobRecord(_Record):
    """A job, as of the last look."""

    id: str
    type: str
    status: JobStatus
    stage: str | None = None
    progress: dict[str, Any] | None = None
    queue_position: int | None = None
    waits_for: str | None = None
    attempt: int = 0
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    spec: dict[str, Any] = {}
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    pinned: bool = False
    links: dict[str, str | None] = {}

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self.status in ENDED

    @property
    def failed_outputs(self) -> list[FailedOutput]:
        """Formats that were asked for and that a succeeded job could not write, and why; it wrote the others."""
        return [FailedOutput.model_validate(failed) for failed in (self.result or {}).get("failed_outputs", [])]

    def __str__(self) -> str:
        """One line that says how far the job is."""
        text = f"{self.id} {self.type} {self.status}"
        if self.failed_outputs:
            text += f" without {', '.join(failed.format for failed in self.failed_outputs)}"
        progress = self.progress or {}
        if self.status == "queued" and self.queue_position is not None:
            text += f", number {self.queue_position} in the queue"
        if self.status == "queued" and self.waits_for:
            text += f" ({self.waits_for})"
        if self.status == "running" and self.stage:
            text += f", {self.stage}"
        if self.status == "running" and progress.get("fraction") is not None:
            text += f" {progress['fraction']:.0%}"
        if self.status == "running" and progress.get("epoch") is not None:
            text += f", epoch {progress['epoch']} of {progress.get('epochs')}"
        if self.status == "running" and progress.get("eta_s") is not None:
            text += f", about {progress['eta_s']:.0f} s left"
        if self.error:
            text += f" ({self.error.get('code')}): {self.error.get('detail')}"
        return printable(text)

    def _repr_html_(self) -> str:
        """What a notebook shows; `watch` goes on to show it."""
        from pared.notebook.records import html_of_job

        return html_of_job(self)

    def _told(self, event: Event) -> None:
        """Take in what an event says of status, stage and progress."""
        if event.event == "progress":
            self.progress = event.data
        if event.event in ("status", "done"):
            news = {name: event.data[name] for name in ("status", "stage", "error") if name in event.data}
            self._update({"id": self.id, "type": self.type, "status": self.status} | news)

    def _ended_well(self) -> Operation[Self]:
        """Look once more at a job whose events have ended."""
        if (yield from self._refresh()).status != "succeeded":
            raise JobFailed(self)
        return self

    @property
    def _path(self) -> str:
        return f"/v1/jobs/{self.id}"

    def _refresh(self) -> Operation[Self]:
        return self._update((yield from operations.get_json(self._path)))

    def _wait(self, on_update: Callable[[Self], object] | None, timeout: float | None) -> Operation[Self]:
        def look(row: dict[str, Any]) -> None:
            self._update(row)
            if on_update:
                on_update(self)

        row = yield from operations.poll(
            self._path,
            ended=lambda row: row["status"] in ENDED,
            on_update=look if on_update else None,
            timeout_s=timeout,
            still=f"{self.id} has not ended yet; it goes on, and you may wait again",
        )
        if self._update(row).status != "succeeded":
            raise JobFailed(self)
        return self

    def _cancel(self) -> Operation[Self]:
        return self._update((yield from operations.cancel(self.id)))

    def _pin(self, *, pinned: bool) -> Operation[Self]:
        yield from operations.call(operations.Request("POST", f"{self._path}/{'pin' if pinned else 'unpin'}"))
        return (yield from self._refresh())

    def _report(self) -> Operation[Report]:
        return Report.model_validate((yield from operations.get_json(f"{self._path}/report", retry_not_ready=False)))

    def _artifacts(self) -> Operation[list[Artifact]]:
        rows = yield from operations.get_json(f"{self._path}/artifacts")
        artifacts = [Artifact.model_validate(row) for row in rows["data"]]
        for artifact in artifacts:
            _check_name(artifact.name)
        return artifacts

    def _download(self, path: str | Path, name: str | None, progress: Progress | None) -> Operation[Path]:
        destination = Path(path)
        artifact = _chosen((yield from self._artifacts()), destination, name, self)
        if destination.is_dir():
            destination = destination / artifact.name
        address = f"{self._path}/artifacts/{operations.segment(artifact.name)}"
        return (yield from operations.download(address, artifact.sha256, artifact.size_bytes, destination, progress))


def _check_name(name: str) -> None:
    """Raise UntrustedAnswer for a name that is not one of a plain file in the folder that the user names."""
    if not re.fullmatch(r"[^/\\\0]{1,255}", name) or name.startswith(".") or printable(name) != name or "\n" in name:
        raise operations.UntrustedAnswer(f"the server calls a file {name!r}, which is no name to write a file under")


_SAME_ENDING = {".pth": ".ckpt", ".tar": ".ckpt"}
"""What else checkpoints are called: model.pth, model.pth.tar."""


def _chosen(artifacts: list[Artifact], destination: Path, name: str | None, job: JobRecord) -> Artifact:
    """The artifact named, else the one called as the destination, else the model in the format of its ending."""
    named = {artifact.name: artifact for artifact in artifacts}
    if name is None:
        formats = ("pt", "safetensors", "pt2", "onnx", "packed", "ckpt", "zip")
        models = [known for ending in formats if (known := f"model.{ending}") in named]
        if not destination.is_dir():  # never one format under the ending of another
            ending = _SAME_ENDING.get(destination.suffix, destination.suffix)
            models = [known for known in models if Path(known).suffix == ending]
        name = destination.name if destination.name in named else next(iter(models), f"model{destination.suffix}")
    if name not in named:
        if not named and not job.ended:
            raise FileNotFoundError(f"{job.id} has not made its files yet. Call wait() first.")
        why = "".join(f". {failed.format} could not be written: {failed.detail}" for failed in job.failed_outputs)
        raise FileNotFoundError(f"{job.id} has no artifact {name!r}, only: {', '.join(named) or 'none'}{why}")
    return named[name]
