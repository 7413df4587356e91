"""The blocking client, for scripts and notebooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Unpack, cast

import httpx

from pared.client import operations
from pared.client.base import ClientBase, JobsBase, UploadsBase, keep_result, path_of
from pared.client.operations import Operation, Progress
from pared.client.records import Artifact, Event, JobRecord, UploadRecord
from pared.client.webhooks import Webhooks
from pared.reports import Plan, Report
from pared.spec_fields import DistillJobFields, Int8JobFields, PipelineJobFields, PruneJobFields

T = TypeVar("T")


class Upload(UploadRecord):
    """A stored model or data set. Hand it to `Client.prune`, `Client.distill` or `Client.pipeline`."""

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

    def watch(self) -> Job:
        """Wait as `wait` does, and show how far the job is: in a notebook in one place, elsewhere a line a change.

        Interrupting it leaves the job running; watch it again, or cancel it.

        Raises:
            JobFailed: it failed or was canceled.
        """
        from pared.notebook.live import Watch

        shown = Watch(self)
        shown.begin()
        for event in self.events():
            shown.add(event)
        try:
            return self._run(self._ended_well())
        finally:
            shown.end()

    def events(self, after: int = 0) -> Iterator[Event]:
        """Follow the job live, from its first event (or the one behind number `after`) until it is done."""
        for event in cast("Client", self._client).iterate(operations.events(self._path, after)):
            yield Event.model_validate(event)

    def cancel(self) -> Job:
        """Cancel the job; it ends `canceled`."""
        return self._run(self._cancel())

    def pin(self) -> Job:
        """Keep the job, its files and its uploads whatever their age, where the service forgets old ones."""
        return self._run(self._pin(pinned=True))

    def unpin(self) -> Job:
        """Let the job go with its age, as others do."""
        return self._run(self._pin(pinned=False))

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


class Listing(Iterator[T]):
    """Rows of a list, newest first, fetched page by page as you iterate; a notebook shows the first as a table."""

    def __init__(
        self,
        rows: Callable[[], Iterator[T]],
        first: Callable[[], tuple[Sequence[T], bool]],
        kind: Literal["jobs", "uploads"],
    ) -> None:
        self._iterate, self._first, self._kind = rows, first, kind
        self._rows: Iterator[T] | None = None

    def __next__(self) -> T:
        if self._rows is None:
            self._rows = self._iterate()
        return next(self._rows)

    def _repr_html_(self) -> str:
        """What a notebook shows: the first page, asked for anew. What was iterated so far stays where it is."""
        from pared.notebook import records

        show: Callable[..., str] = records.html_of_jobs if self._kind == "jobs" else records.html_of_uploads
        rows, more = self._first()
        return show(rows, more=more)


class Uploads(UploadsBase[Upload]):
    """`client.models`, and what `client.datasets` has too."""

    record = Upload

    def upload(
        self,
        path: str | Path,
        architecture: Any = None,
        progress: Progress | None = None,
        *,
        weights: str | None = None,
        prefix: str | None = None,
    ) -> Upload:
        """Send a file.

        Args:
            path: a TorchScript file (`.pt`), a torch.export program (`.pt2`), ONNX (`.onnx`), a state dict (`.pt`,
                `.safetensors`) or a Hugging Face model folder, of which a zip is sent; or a data set.
            architecture: for a state dict: a name, or `{"layers": [...]}`.
            progress: called with the bytes sent and in all.
            weights: of a checkpoint with several state dicts the one that is meant, such as "ema".
            prefix: of a state dict only the tensors whose names begin so, such as "student.".
        """
        return self._run(self._upload(path_of(path), architecture, progress, weights, prefix))

    def get(self, upload_id: str) -> Upload:
        """One of them, by id."""
        return self._run(self._get(upload_id))

    def delete(self, upload_id: str) -> None:
        """Delete one."""
        self._run(self._delete(upload_id))

    def list(self) -> Listing[Upload]:
        """All of them, newest first, without their inspections; `get` has it."""
        return _listing(self, f"/v1/{self._kind}", {}, "uploads")

    def _run(self, operation: Operation[T]) -> T:
        return cast("Client", self._client).run(operation)


class Datasets(Uploads):
    """`client.datasets`: as `client.models`, with a look at the samples."""

    def preview(self, dataset_id: str, path: str | Path = ".") -> Path:
        """Save what some samples look like to a model: images as a PNG, all else as JSON rows.

        Args:
            dataset_id: of an uploaded data set that was inspected.
            path: a directory, or a file, whose ending becomes `.png` or `.json`.

        Returns:
            The file that was written.
        """
        return self._run(self._preview(dataset_id, Path(path)))


class Jobs(JobsBase[Job]):
    """`client.jobs`."""

    record = Job

    def submit(self, spec: Mapping[str, Any]) -> Job:
        """Post a whole job spec, as in the API's documentation."""
        return self._run(self._submit(spec))

    def plan(self, spec: Mapping[str, Any]) -> Plan:
        """Ask what a prune job, or a pipeline, with this spec would do."""
        return self._run(self._plan(spec))

    def get(self, job_id: str) -> Job:
        """One job, by id."""
        return self._run(self._get(job_id))

    def list(self, status: str | None = None, type: str | None = None) -> Listing[Job]:  # noqa: A002 - the API's word
        """Jobs, newest first, fetched page by page as you iterate."""
        return _listing(self, "/v1/jobs", self._wanted(status, type), "jobs")

    def cancel(self, job_id: str) -> Job:
        """Cancel a job."""
        return self._run(self._cancel(job_id))

    def _run(self, operation: Operation[T]) -> T:
        return cast("Client", self._client).run(operation)


def _listing(
    of: Uploads | Jobs, path: str, wanted: Mapping[str, str | int], kind: Literal["jobs", "uploads"]
) -> Listing[Any]:
    client = cast("Client", of._client)

    def rows() -> Iterator[Any]:
        for row in client.iterate(operations.pages(path, wanted)):
            yield of._bound(row)

    def first() -> tuple[Sequence[Any], bool]:
        page = client.run(operations.get_json(path, wanted))
        return [of._bound(row) for row in page["data"]], bool(page["has_more"])

    return Listing(rows, first, kind)


class Client(ClientBase):
    """A blocking client; may be shared between threads.

    >>> client = pared.Client()
    >>> job = client.prune("lenet.pt", "builtin:digits", target={"params": 0.25})
    >>> job.wait(on_update=print).download("small.pt")
    """

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        super().__init__(url, api_key)
        self._http = httpx.Client(**self._options)
        self.models = Uploads(self, "models")
        self.datasets = Datasets(self, "datasets")
        self.jobs = Jobs(self)
        self.webhooks = Webhooks(self)

    def prune(
        self, model: Upload | str | Path, dataset: Upload | str | Path | None = None, **fields: Unpack[PruneJobFields]
    ) -> Job:
        """Submit a prune job. With a data set it retrains for 5 epochs, if not told; `retrain=None` only prunes.

        Args:
            model: an upload, its id, or a file, which is uploaded.
            dataset: the same, or `builtin:digits`; None prunes without retraining and measures no accuracy.
            fields: the other fields of the spec, such as `granularity`, `target` and `retrain`, all described in
                `pared.spec_fields`.
        """
        return self.run(self.jobs._prune(model, dataset, fields))

    def plan(
        self, model: Upload | str | Path, dataset: Upload | str | Path | None = None, **fields: Unpack[PruneJobFields]
    ) -> Plan:
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
        dataset: Upload | str | Path | None = None,
        **fields: Unpack[DistillJobFields],
    ) -> Job:
        """Submit a distill job.

        Args:
            teacher: an upload, its id, or a file, which is uploaded.
            student: the same, or an architecture, or `{"from_teacher": {"width": 0.5}}`.
            dataset: an upload, its id, a file, or `builtin:digits`; None makes inputs up, and measures nothing.
            fields: the other fields of the spec, such as `loss`, `train` and `teachers`, whose models may be files as
                well; all of them are described in `pared.spec_fields`.
        """
        return self.run(self.jobs._distill(teacher, student, dataset, fields))

    def quantize(
        self, model: Upload | str | Path, dataset: Upload | str | Path | None = None, **fields: Unpack[Int8JobFields]
    ) -> Job:
        """Submit a quantize job, which makes a model int8.

        Args:
            model: an upload, its id, or a file, which is uploaded.
            dataset: the same, or `builtin:digits`; None scores nothing, and leaves `static` out.
            fields: the other fields of the spec, such as `method` and `target`, all described in `pared.spec_fields`.
        """
        return self.run(self.jobs._quantize(model, dataset, fields))

    def pipeline(
        self,
        model: Upload | str | Path,
        dataset: Upload | str | Path | None = None,
        **fields: Unpack[PipelineJobFields],
    ) -> Job:
        """Submit a pipeline: several steps on one model as one job.

        Args:
            model, dataset: as `prune` takes them, for all steps.
            fields: `steps`, such as `[{"prune": {"amount": 0.5}}, {"distill": {}}]`, a `target` for the last result,
                and the other fields of the spec, all described in `pared.spec_fields`.
        """
        return self.run(self.jobs._pipeline(model, dataset, fields))

    def plan_pipeline(
        self,
        model: Upload | str | Path,
        dataset: Upload | str | Path | None = None,
        **fields: Unpack[PipelineJobFields],
    ) -> Plan:
        """Say what a pipeline would do, without training anything; print it for a table.

        Args:
            model, dataset, fields: as `pipeline` takes them.

        Raises:
            APIError: the job would be refused, or would fail before it trains; the detail says why.
        """
        return self.run(self.jobs._plan_pipeline(model, dataset, fields))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def limits(self) -> dict[str, Any]:
        """Your limits on the server, with how much of each is used up, as `GET /v1/limits` answers."""
        shown: dict[str, Any] = self.run(operations.get_json("/v1/limits"))
        return shown

    def run(self, operation: Operation[T]) -> T:
        """Carry an operation out, and return its result."""
        result: list[T] = []
        for _ in self.iterate(keep_result(operation, result)):
            raise RuntimeError("an operation that emits items is iterated, not run")
        return result[0]

    def iterate(self, operation: Operation[None]) -> Iterator[Any]:
        """Carry an operation out, item by item."""
        outcome: Any = None
        failure: Exception | None = None
        opened: httpx.Response | None = None
        chunks: Iterator[bytes] = iter(())
        try:
            while (effect := operations.advance(operation, outcome, failure)) is not None:
                outcome = failure = None
                try:
                    match effect:
                        case operations.Open(request):
                            if opened:
                                opened.close()
                            outcome = opened = self._http.send(self._built(request), stream=True)
                            chunks = opened.iter_bytes()
                            self._answered = True
                        case operations.Chunk():
                            outcome = next(chunks, b"")
                        case operations.Sleep(seconds):
                            time.sleep(seconds)
                        case operations.Aside(work):
                            outcome = work()
                        case operations.Emit(item):
                            yield item
                except httpx.TransportError as error:
                    failure = self._failure(error)
        finally:
            if opened:
                opened.close()

    def _built(self, request: operations.Request) -> httpx.Request:
        content = request.content() if request.content else None
        return self._http.build_request(content=content, **self._request(request))
