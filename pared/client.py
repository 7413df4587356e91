"""The Python client: `Client` for scripts and notebooks, `AsyncClient` for event loops.

Both are façades over the same operations: what a method does is written once in a `…Record` or `_…Core` class as an
operation (see `pared.calls`), which one client carries out and the other awaits.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, cast

import anyio
import anyio.to_thread
import httpx
from pydantic import BaseModel, ConfigDict, PrivateAttr

from pared import calls
from pared.calls import APIError, DigestMismatch, Operation, Progress, ServerUnreachable
from pared.reports import FailedOutput
from pared.statuses import ENDED, JobStatus, UploadStatus
from pared.summary import Plan, Report

__all__ = [
    "APIError",
    "AsyncClient",
    "AsyncJob",
    "AsyncUpload",
    "Client",
    "DigestMismatch",
    "Event",
    "FailedOutput",
    "Job",
    "JobFailed",
    "JobStatus",
    "Plan",
    "Report",
    "ServerUnreachable",
    "Upload",
    "UploadRejected",
]

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8000"


class JobFailed(Exception):
    """The job ended without a result; `code` and `detail` are the job's own error, `job` all the rest."""

    def __init__(self, job: JobRecord) -> None:
        """Args: job: the ended job."""
        self.job = job
        error = job.error or {}
        self.code = str(error.get("code", job.status))
        self.detail = str(error.get("detail", ""))
        super().__init__(f"{job.id} {job.status}" + (f" ({self.code}): {self.detail}" if error else ""))


class UploadRejected(Exception):
    """The service opened the file and cannot use it; `code` and `detail` say why and what to do."""

    def __init__(self, upload: UploadRecord) -> None:
        """Args: upload: the rejected model or data set."""
        self.upload = upload
        reason = upload.reason or {}
        self.code = str(reason.get("code", "rejected"))
        self.detail = str(reason.get("detail", ""))
        super().__init__(f"{upload.filename}: {self.detail or self.code}")


# -- records, and what can be done with each ------------------------------------------------------


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

    def _take(self, row: Mapping[str, Any]) -> Self:
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
        return f"{self.id} {self.filename} ({size}{self.status})"

    @property
    def _path(self) -> str:
        return f"/v1/{'models' if self.id.startswith('mdl_') else 'datasets'}/{self.id}"

    def _wait(self, timeout: float | None) -> Operation[Self]:
        row = yield from calls.poll(
            self._path,
            ended=lambda row: row["status"] != "inspecting",
            timeout_s=timeout,
            still=f"{self.id} is still being inspected",
        )
        if self._take(row).status == "rejected":
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
        return text

    @property
    def _path(self) -> str:
        return f"/v1/jobs/{self.id}"

    def _refresh(self) -> Operation[Self]:
        return self._take((yield from calls.get_json(self._path)))

    def _wait(self, on_update: Callable[[Self], object] | None, timeout: float | None) -> Operation[Self]:
        def look(row: dict[str, Any]) -> None:
            self._take(row)
            if on_update:
                on_update(self)

        row = yield from calls.poll(
            self._path,
            ended=lambda row: row["status"] in ENDED,
            on_update=look if on_update else None,
            timeout_s=timeout,
            still=f"{self.id} has not ended yet; it goes on, and you may wait again",
        )
        if self._take(row).status != "succeeded":
            raise JobFailed(self)
        return self

    def _cancel(self) -> Operation[Self]:
        return self._take((yield from calls.cancel(self.id)))

    def _report(self) -> Operation[Report]:
        return Report.model_validate((yield from calls.get_json(f"{self._path}/report", retry_not_ready=False)))

    def _artifacts(self) -> Operation[list[Artifact]]:
        rows = yield from calls.get_json(f"{self._path}/artifacts")
        return [Artifact.model_validate(row) for row in rows["data"]]

    def _download(self, path: str | Path, name: str | None, progress: Progress | None) -> Operation[Path]:
        destination = Path(path)
        artifact = _chosen((yield from self._artifacts()), destination, name, self)
        if destination.is_dir():
            destination = destination / artifact.name
        address = f"{self._path}/artifacts/{artifact.name}"
        return (yield from calls.download(address, artifact.sha256, artifact.size_bytes, destination, progress))


def _chosen(artifacts: list[Artifact], destination: Path, name: str | None, job: JobRecord) -> Artifact:
    """The artifact named, else the one called as the destination, else the model in the format of its ending."""
    named = {artifact.name: artifact for artifact in artifacts}
    if name is None:
        formats = ("model.pt", "model.safetensors", "model.pt2", "model.onnx", "model.packed")
        models = [known for known in formats if known in named]
        if not destination.is_dir():  # never one format under the ending of another
            models = [known for known in models if Path(known).suffix == destination.suffix]
        name = destination.name if destination.name in named else next(iter(models), f"model{destination.suffix}")
    if name not in named:
        why = "".join(f". {failed.format} could not be written: {failed.detail}" for failed in job.failed_outputs)
        raise FileNotFoundError(f"{job.id} has no artifact {name!r}, only: {', '.join(named) or 'none'}{why}")
    return named[name]


# -- what both clients do -------------------------------------------------------------------------


class _ClientCore:
    """Where the service is, and whether it ever answered."""

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: where the service is; else `PARED_URL`, else port 8000 of this machine.
            api_key: else `PARED_API_KEY`; not needed on the service's own machine, and `""` sends none.

        Raises:
            httpx.InvalidURL: the address is none of a server.
        """
        self.url = (url or os.environ.get("PARED_URL") or DEFAULT_URL).rstrip("/")
        address = httpx.URL(self.url)
        if address.scheme not in ("http", "https") or not address.host:
            raise httpx.InvalidURL(f"{self.url} is not a server's address: write http://…, such as {DEFAULT_URL}")
        key = os.environ.get("PARED_API_KEY") if api_key is None else api_key
        self._answered = False
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            # A proxy from the environment cannot reach this machine's own loopback.
            "trust_env": not _is_loopback(address.host),
        }

    def _request(self, request: calls.Request) -> dict[str, Any]:
        """Arguments of httpx's `build_request`, without the body."""
        return {
            "method": request.method,
            "url": request.path,
            "params": request.params,
            "headers": request.headers,
            "json": request.json,
            "timeout": httpx.Timeout(60.0, connect=5.0, read=request.read_timeout_s),
        }

    def _failure(self, error: httpx.TransportError) -> Exception:
        """What the operation is thrown: a server that never answered is not there, so it is not tried again."""
        if isinstance(error, httpx.ConnectError) and not self._answered:
            return ServerUnreachable(f"no pared server at {self.url}; start one with `pared up`, or set PARED_URL")
        return error


U = TypeVar("U", bound=UploadRecord)
J = TypeVar("J", bound=JobRecord)


class _UploadsCore(Generic[U]):
    """Operations on the models, or on the data sets."""

    record: ClassVar[type[UploadRecord]]

    def __init__(self, client: Any, kind: Literal["models", "datasets"]) -> None:
        self._client, self._kind = client, kind

    def _upload(self, path: Path, architecture: Any, progress: Progress | None) -> Operation[U]:
        params = {} if architecture is None else {"architecture": calls.as_parameter(architecture)}
        return self._bound((yield from calls.upload(f"/v1/{self._kind}", path, params, progress)))

    def _get(self, upload_id: str) -> Operation[U]:
        return self._bound((yield from calls.get_json(f"/v1/{self._kind}/{upload_id}")))

    def _delete(self, upload_id: str) -> Operation[None]:
        yield from calls.call(calls.Request("DELETE", f"/v1/{self._kind}/{upload_id}"))

    def _id(self, given: UploadRecord | str | Path) -> Operation[str]:
        """The id of an upload; a file is uploaded first."""
        if isinstance(given, UploadRecord):
            return given.id
        if isinstance(given, str) and given.startswith(("mdl_", "dst_", "builtin:")):
            return given
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"{given} is neither a file nor the id of an upload")
        upload = yield from self._upload(path, None, None)
        return upload.id

    def _bound(self, row: Mapping[str, Any]) -> U:
        record = self.record.model_validate(row)
        record._client = self._client
        return cast("U", record)


class _JobsCore(Generic[J]):
    """Operations on the jobs."""

    record: ClassVar[type[JobRecord]]

    def __init__(self, client: Any) -> None:
        self._client = client

    def _submit(self, spec: Mapping[str, Any]) -> Operation[J]:
        return self._bound((yield from calls.submit(spec)))

    def _plan(self, spec: Mapping[str, Any]) -> Operation[Plan]:
        return Plan.model_validate((yield from calls.plan(spec)))

    def _prune_spec(self, model: Any, dataset: Any, fields: Mapping[str, Any]) -> Operation[dict[str, Any]]:
        spec = {
            "type": "prune",
            "model": (yield from self._client.models._id(model)),
            "dataset": None if dataset is None else (yield from self._client.datasets._id(dataset)),
        }
        return {**spec, **fields}

    def _prune(self, model: Any, dataset: Any, fields: Mapping[str, Any]) -> Operation[J]:
        return (yield from self._submit((yield from self._prune_spec(model, dataset, fields))))

    def _plan_prune(self, model: Any, dataset: Any, fields: Mapping[str, Any]) -> Operation[Plan]:
        return (yield from self._plan((yield from self._prune_spec(model, dataset, fields))))

    def _distill(self, teacher: Any, student: Any, dataset: Any, fields: Mapping[str, Any]) -> Operation[J]:
        made = isinstance(student, Mapping)
        spec = {
            "type": "distill",
            "teacher": (yield from self._client.models._id(teacher)),
            "student": student if made else (yield from self._client.models._id(student)),
            "dataset": (yield from self._client.datasets._id(dataset)),
        }
        return (yield from self._submit({**spec, **fields}))

    def _get(self, job_id: str) -> Operation[J]:
        return self._bound((yield from calls.get_json(f"/v1/jobs/{job_id}")))

    def _list(self, status: str | None, type_: str | None) -> Operation[None]:
        wanted = {"status": status, "type": type_}
        return calls.pages("/v1/jobs", {name: value for name, value in wanted.items() if value})

    def _cancel(self, job_id: str) -> Operation[J]:
        return self._bound((yield from calls.cancel(job_id)))

    def _bound(self, row: Mapping[str, Any]) -> J:
        record = self.record.model_validate(row)
        record._client = self._client
        return cast("J", record)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# -- blocking -------------------------------------------------------------------------------------


class Upload(UploadRecord):
    """A stored model or data set. Hand it to `Client.prune` or `Client.distill`."""

    def wait(self, timeout: float | None = None) -> Upload:
        """Wait until the service has looked into the file.

        Raises:
            UploadRejected: it cannot be used; the text says why.
            TimeoutError: it was not inspected within `timeout` seconds.
        """
        return self._run(self._wait(timeout))

    def _run(self, operation: Operation[T]) -> T:
        return cast("Client", self._client).run(operation)


class Job(JobRecord):
    """A job of the service."""

    def refresh(self) -> Job:
        """Look again."""
        return self._run(self._refresh())

    def wait(self, on_update: Callable[[Job], object] | None = None, timeout: float | None = None) -> Job:
        """Wait until the job ended well; `failed_outputs` then tells which formats it could not write.

        Args:
            on_update: called with the job whenever it changed; `print` does.
            timeout: seconds; None waits for as long as it takes.

        Raises:
            JobFailed: it failed or was canceled.
            TimeoutError: it has not ended yet. It goes on: wait again, or cancel it.
        """
        return self._run(self._wait(on_update, timeout))

    def events(self, after: int = 0) -> Iterator[Event]:
        """Follow the job live, from its first event (or the one behind number `after`) until it is done."""
        for event in cast("Client", self._client).iterate(calls.events(self._path, after)):
            yield Event.model_validate(event)

    def cancel(self) -> Job:
        """Cancel the job; it ends `canceled`."""
        return self._run(self._cancel())

    def report(self) -> Report:
        """What was gained and lost; print it for a table."""
        return self._run(self._report())

    def artifacts(self) -> list[Artifact]:
        """The files that the job made."""
        return self._run(self._artifacts())

    def download(self, path: str | Path, name: str | None = None, progress: Progress | None = None) -> Path:
        """Download a result, continue where an earlier try broke off, and check its SHA-256.

        Args:
            path: a file to write, or a directory.
            name: which artifact; by default the one that `path` is called as (`architecture.json`), else the model, in
                the format that the ending of `path` names.
            progress: called with the bytes done and in all.
        """
        return self._run(self._download(path, name, progress))

    def _run(self, operation: Operation[T]) -> T:
        return cast("Client", self._client).run(operation)


class Uploads(_UploadsCore[Upload]):
    """`client.models` and `client.datasets`."""

    record = Upload

    def upload(self, path: str | Path, architecture: Any = None, progress: Progress | None = None) -> Upload:
        """Send a file.

        Args:
            path: a TorchScript file (`.pt`), a torch.export program (`.pt2`) or a state dict (`.pt`, `.safetensors`);
                or a data set.
            architecture: for a state dict: a name, or `{"layers": [...]}`.
            progress: called with the bytes sent and in all.
        """
        return self._run(self._upload(Path(path), architecture, progress))

    def get(self, upload_id: str) -> Upload:
        """One of them, by id."""
        return self._run(self._get(upload_id))

    def delete(self, upload_id: str) -> None:
        """Delete one."""
        self._run(self._delete(upload_id))

    def list(self) -> Iterator[Upload]:
        """All of them, newest first."""
        for row in cast("Client", self._client).iterate(calls.pages(f"/v1/{self._kind}", {})):
            yield self._bound(row)

    def _run(self, operation: Operation[T]) -> T:
        return cast("Client", self._client).run(operation)


class Jobs(_JobsCore[Job]):
    """`client.jobs`."""

    record = Job

    def submit(self, spec: Mapping[str, Any]) -> Job:
        """Post a whole job spec, as in the API's documentation."""
        return self._run(self._submit(spec))

    def plan(self, spec: Mapping[str, Any]) -> Plan:
        """Ask what a prune job with this spec would do."""
        return self._run(self._plan(spec))

    def get(self, job_id: str) -> Job:
        """One job, by id."""
        return self._run(self._get(job_id))

    def list(self, status: str | None = None, type: str | None = None) -> Iterator[Job]:  # noqa: A002 - the API's word
        """Jobs, newest first, fetched page by page as you iterate."""
        for row in cast("Client", self._client).iterate(self._list(status, type)):
            yield self._bound(row)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job."""
        return self._run(self._cancel(job_id))

    def _run(self, operation: Operation[T]) -> T:
        return cast("Client", self._client).run(operation)


class Client(_ClientCore):
    """A blocking client; may be shared between threads.

    >>> client = pared.Client()
    >>> job = client.prune("lenet.pt", "builtin:digits", target={"params": 0.25})
    >>> job.wait(on_update=print).download("small.pt")
    """

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        super().__init__(url, api_key)
        self._http = httpx.Client(**self._options)
        self.models = Uploads(self, "models")
        self.datasets = Uploads(self, "datasets")
        self.jobs = Jobs(self)

    def prune(self, model: Upload | str | Path, dataset: Upload | str | Path | None = None, **fields: Any) -> Job:
        """Submit a prune job.

        Args:
            model: an upload, its id, or a file, which is uploaded.
            dataset: the same, or `builtin:digits`; None prunes without retraining and measures no accuracy.
            fields: the other fields of `pared.specs.PruneSpec`, such as `granularity`, `target` and `retrain`.
        """
        return self.run(self.jobs._prune(model, dataset, fields))

    def plan(self, model: Upload | str | Path, dataset: Upload | str | Path | None = None, **fields: Any) -> Plan:
        """Say what a prune job would do, without doing it; print it for a table.

        Args:
            model, dataset, fields: as `prune` takes them.

        Raises:
            APIError: the job would be refused, or would fail before it trains; the detail says why.
        """
        return self.run(self.jobs._plan_prune(model, dataset, fields))

    def distill(
        self,
        teacher: Upload | str | Path,
        student: Upload | str | Path | Mapping[str, Any],
        dataset: Upload | str | Path,
        **fields: Any,
    ) -> Job:
        """Submit a distill job.

        Args:
            teacher: an upload, its id, or a file, which is uploaded.
            student: the same, or an architecture, or `{"from_teacher": {"width": 0.5}}`.
            dataset: an upload, its id, a file, or `builtin:digits`.
            fields: the other fields of `pared.specs.DistillSpec`, such as `loss` and `train`.
        """
        return self.run(self.jobs._distill(teacher, student, dataset, fields))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, operation: Operation[T]) -> T:
        """Carry an operation out, and return its result."""
        result: list[T] = []
        for _ in self.iterate(_keep(operation, result)):
            raise RuntimeError("an operation that emits items is iterated, not run")
        return result[0]

    def iterate(self, operation: Operation[None]) -> Iterator[Any]:
        """Carry an operation out, item by item."""
        outcome: Any = None
        failure: Exception | None = None
        opened: httpx.Response | None = None
        chunks: Iterator[bytes] = iter(())
        try:
            while True:
                try:
                    effect = operation.throw(failure) if failure else operation.send(outcome)
                except StopIteration:
                    return
                outcome = failure = None
                try:
                    match effect:
                        case calls.Send(request):
                            outcome = self._http.send(self._built(request))
                            self._answered = True
                        case calls.Open(request):
                            if opened:
                                opened.close()
                            outcome = opened = self._http.send(self._built(request), stream=True)
                            chunks = opened.iter_bytes()
                            self._answered = True
                        case calls.Chunk():
                            outcome = next(chunks, b"")
                        case calls.Sleep(seconds):
                            time.sleep(seconds)
                        case calls.Emit(item):
                            yield item
                except httpx.TransportError as error:
                    failure = self._failure(error)
        finally:
            if opened:
                opened.close()

    def _built(self, request: calls.Request) -> httpx.Request:
        content = request.content() if request.content else None
        return self._http.build_request(content=content, **self._request(request))


def _keep(operation: Operation[T], result: list[T]) -> Operation[None]:
    """The operation, with its result put into a list."""
    result.append((yield from operation))


# -- async ----------------------------------------------------------------------------------------


class AsyncUpload(UploadRecord):
    """As `Upload`, awaited."""

    async def wait(self, timeout: float | None = None) -> AsyncUpload:
        """As `Upload.wait`."""
        return await self._run(self._wait(timeout))

    async def _run(self, operation: Operation[T]) -> T:
        return await cast("AsyncClient", self._client).run(operation)


class AsyncJob(JobRecord):
    """As `Job`, awaited."""

    async def refresh(self) -> AsyncJob:
        """As `Job.refresh`."""
        return await self._run(self._refresh())

    async def wait(
        self, on_update: Callable[[AsyncJob], object] | None = None, timeout: float | None = None
    ) -> AsyncJob:
        """As `Job.wait`."""
        return await self._run(self._wait(on_update, timeout))

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """As `Job.events`."""
        async for event in cast("AsyncClient", self._client).iterate(calls.events(self._path, after)):
            yield Event.model_validate(event)

    async def cancel(self) -> AsyncJob:
        """As `Job.cancel`."""
        return await self._run(self._cancel())

    async def report(self) -> Report:
        """As `Job.report`."""
        return await self._run(self._report())

    async def artifacts(self) -> list[Artifact]:
        """As `Job.artifacts`."""
        return await self._run(self._artifacts())

    async def download(self, path: str | Path, name: str | None = None, progress: Progress | None = None) -> Path:
        """As `Job.download`."""
        return await self._run(self._download(path, name, progress))

    async def _run(self, operation: Operation[T]) -> T:
        return await cast("AsyncClient", self._client).run(operation)


class AsyncUploads(_UploadsCore[AsyncUpload]):
    """As `Uploads`, awaited."""

    record = AsyncUpload

    async def upload(self, path: str | Path, architecture: Any = None, progress: Progress | None = None) -> AsyncUpload:
        """As `Uploads.upload`."""
        return await self._run(self._upload(Path(path), architecture, progress))

    async def get(self, upload_id: str) -> AsyncUpload:
        """As `Uploads.get`."""
        return await self._run(self._get(upload_id))

    async def delete(self, upload_id: str) -> None:
        """As `Uploads.delete`."""
        await self._run(self._delete(upload_id))

    async def list(self) -> AsyncIterator[AsyncUpload]:
        """As `Uploads.list`."""
        async for row in cast("AsyncClient", self._client).iterate(calls.pages(f"/v1/{self._kind}", {})):
            yield self._bound(row)

    async def _run(self, operation: Operation[T]) -> T:
        return await cast("AsyncClient", self._client).run(operation)


class AsyncJobs(_JobsCore[AsyncJob]):
    """As `Jobs`, awaited."""

    record = AsyncJob

    async def submit(self, spec: Mapping[str, Any]) -> AsyncJob:
        """As `Jobs.submit`."""
        return await self._run(self._submit(spec))

    async def plan(self, spec: Mapping[str, Any]) -> Plan:
        """As `Jobs.plan`."""
        return await self._run(self._plan(spec))

    async def get(self, job_id: str) -> AsyncJob:
        """As `Jobs.get`."""
        return await self._run(self._get(job_id))

    async def list(
        self,
        status: str | None = None,
        type: str | None = None,  # noqa: A002 - the API's word
    ) -> AsyncIterator[AsyncJob]:
        """As `Jobs.list`."""
        async for row in cast("AsyncClient", self._client).iterate(self._list(status, type)):
            yield self._bound(row)

    async def cancel(self, job_id: str) -> AsyncJob:
        """As `Jobs.cancel`."""
        return await self._run(self._cancel(job_id))

    async def _run(self, operation: Operation[T]) -> T:
        return await cast("AsyncClient", self._client).run(operation)


class AsyncClient(_ClientCore):
    """As `Client`, for asyncio and trio.

    >>> async with pared.AsyncClient() as client:
    ...     job = await client.prune("lenet.pt", "builtin:digits", target={"params": 0.25})
    ...     await job.wait()
    """

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        super().__init__(url, api_key)
        self._http = httpx.AsyncClient(**self._options)
        self.models = AsyncUploads(self, "models")
        self.datasets = AsyncUploads(self, "datasets")
        self.jobs = AsyncJobs(self)

    async def prune(
        self, model: AsyncUpload | str | Path, dataset: AsyncUpload | str | Path | None = None, **fields: Any
    ) -> AsyncJob:
        """As `Client.prune`."""
        return await self.run(self.jobs._prune(model, dataset, fields))

    async def plan(
        self, model: AsyncUpload | str | Path, dataset: AsyncUpload | str | Path | None = None, **fields: Any
    ) -> Plan:
        """As `Client.plan`."""
        return await self.run(self.jobs._plan_prune(model, dataset, fields))

    async def distill(
        self,
        teacher: AsyncUpload | str | Path,
        student: AsyncUpload | str | Path | Mapping[str, Any],
        dataset: AsyncUpload | str | Path,
        **fields: Any,
    ) -> AsyncJob:
        """As `Client.distill`."""
        return await self.run(self.jobs._distill(teacher, student, dataset, fields))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def run(self, operation: Operation[T]) -> T:
        """Carry an operation out, and return its result."""
        result: list[T] = []
        async for _ in self.iterate(_keep(operation, result)):
            raise RuntimeError("an operation that emits items is iterated, not run")
        return result[0]

    async def iterate(self, operation: Operation[None]) -> AsyncIterator[Any]:
        """Carry an operation out, item by item."""
        outcome: Any = None
        failure: Exception | None = None
        opened: httpx.Response | None = None
        chunks: AsyncIterator[bytes] | None = None
        try:
            while True:
                try:
                    effect = operation.throw(failure) if failure else operation.send(outcome)
                except StopIteration:
                    return
                outcome = failure = None
                try:
                    match effect:
                        case calls.Send(request):
                            outcome = await self._http.send(self._built(request))
                            self._answered = True
                        case calls.Open(request):
                            if opened:
                                await opened.aclose()
                            outcome = opened = await self._http.send(self._built(request), stream=True)
                            chunks = opened.aiter_bytes()
                            self._answered = True
                        case calls.Chunk():
                            outcome = await anext(chunks, b"") if chunks else b""
                        case calls.Sleep(seconds):
                            await anyio.sleep(seconds)
                        case calls.Emit(item):
                            yield item
                except httpx.TransportError as error:
                    failure = self._failure(error)
        finally:
            if opened:
                await opened.aclose()

    def _built(self, request: calls.Request) -> httpx.Request:
        content = _read_in_threads(request.content()) if request.content else None
        return self._http.build_request(content=content, **self._request(request))


async def _read_in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """A disk may be slow; the event loop does not wait for it."""
    while chunk := await anyio.to_thread.run_sync(next, chunks, b""):
        yield chunk
