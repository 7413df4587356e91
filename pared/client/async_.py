"""The async client, for asyncio and trio: the blocking one, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack, cast

import anyio
import anyio.to_thread
import httpx

from pared.client import operations
from pared.client.base import ClientBase, JobsBase, UploadsBase, keep_result, path_of
from pared.client.operations import Operation, Progress
from pared.client.records import Artifact, Event, JobRecord, UploadRecord
from pared.client.webhooks import AsyncWebhooks
from pared.reports import Plan, Report
from pared.spec_fields import DistillJobFields, Int8JobFields, PipelineJobFields, PruneJobFields

T = TypeVar("T")


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

    async def watch(self) -> AsyncJob:
        """As `Job.watch`."""
        from pared.notebook.live import Watch

        shown = Watch(self)
        shown.begin()
        async for event in self.events():
            shown.add(event)
        try:
            return await self._run(self._ended_well())
        finally:
            shown.end()

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """As `Job.events`."""
        async for event in cast("AsyncClient", self._client).iterate(operations.events(self._path, after)):
            yield Event.model_validate(event)

    async def cancel(self) -> AsyncJob:
        """As `Job.cancel`."""
        return await self._run(self._cancel())

    async def pin(self) -> AsyncJob:
        """As `Job.pin`."""
        return await self._run(self._pin(pinned=True))

    async def unpin(self) -> AsyncJob:
        """As `Job.unpin`."""
        return await self._run(self._pin(pinned=False))

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


class AsyncUploads(UploadsBase[AsyncUpload]):
    """As `Uploads`, awaited."""

    record = AsyncUpload

    async def upload(
        self,
        path: str | Path,
        architecture: Any = None,
        progress: Progress | None = None,
        *,
        weights: str | None = None,
        prefix: str | None = None,
    ) -> AsyncUpload:
        """As `Uploads.upload`."""
        return await self._run(self._upload(path_of(path), architecture, progress, weights, prefix))

    async def get(self, upload_id: str) -> AsyncUpload:
        """As `Uploads.get`."""
        return await self._run(self._get(upload_id))

    async def delete(self, upload_id: str) -> None:
        """As `Uploads.delete`."""
        await self._run(self._delete(upload_id))

    async def list(self) -> AsyncIterator[AsyncUpload]:
        """As `Uploads.list`."""
        async for row in cast("AsyncClient", self._client).iterate(operations.pages(f"/v1/{self._kind}", {})):
            yield self._bound(row)

    async def _run(self, operation: Operation[T]) -> T:
        return await cast("AsyncClient", self._client).run(operation)


class AsyncDatasets(AsyncUploads):
    """As `Datasets`, awaited."""

    async def preview(self, dataset_id: str, path: str | Path = ".") -> Path:
        """As `Datasets.preview`."""
        return await self._run(self._preview(dataset_id, Path(path)))


class AsyncJobs(JobsBase[AsyncJob]):
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
        async for row in cast("AsyncClient", self._client).iterate(
            operations.pages("/v1/jobs", self._wanted(status, type))
        ):
            yield self._bound(row)

    async def cancel(self, job_id: str) -> AsyncJob:
        """As `Jobs.cancel`."""
        return await self._run(self._cancel(job_id))

    async def _run(self, operation: Operation[T]) -> T:
        return await cast("AsyncClient", self._client).run(operation)


class AsyncClient(ClientBase):
    """As `Client`, for asyncio and trio.

    >>> async with pared.AsyncClient() as client:
    ...     job = await client.prune("lenet.pt", "builtin:digits", target={"params": 0.25})
    ...     await job.wait()
    """

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        super().__init__(url, api_key)
        self._http = httpx.AsyncClient(**self._options)
        self.models = AsyncUploads(self, "models")
        self.datasets = AsyncDatasets(self, "datasets")
        self.jobs = AsyncJobs(self)
        self.webhooks = AsyncWebhooks(self)

    async def prune(
        self,
        model: AsyncUpload | str | Path,
        dataset: AsyncUpload | str | Path | None = None,
        **fields: Unpack[PruneJobFields],
    ) -> AsyncJob:
        """As `Client.prune`."""
        return await self.run(self.jobs._prune(model, dataset, fields))

    async def plan(
        self,
        model: AsyncUpload | str | Path,
        dataset: AsyncUpload | str | Path | None = None,
        **fields: Unpack[PruneJobFields],
    ) -> Plan:
        """As `Client.plan`."""
        return await self.run(self.jobs._plan_prune(model, dataset, fields))

    async def distill(
        self,
        teacher: AsyncUpload | str | Path,
        student: AsyncUpload | str | Path | Mapping[str, Any],
        dataset: AsyncUpload | str | Path | None = None,
        **fields: Unpack[DistillJobFields],
    ) -> AsyncJob:
        """As `Client.distill`."""
        return await self.run(self.jobs._distill(teacher, student, dataset, fields))

    async def quantize(
        self,
        model: AsyncUpload | str | Path,
        dataset: AsyncUpload | str | Path | None = None,
        **fields: Unpack[Int8JobFields],
    ) -> AsyncJob:
        """As `Client.quantize`."""
        return await self.run(self.jobs._quantize(model, dataset, fields))

    async def pipeline(
        self,
        model: AsyncUpload | str | Path,
        dataset: AsyncUpload | str | Path | None = None,
        **fields: Unpack[PipelineJobFields],
    ) -> AsyncJob:
        """As `Client.pipeline`."""
        return await self.run(self.jobs._pipeline(model, dataset, fields))

    async def plan_pipeline(
        self,
        model: AsyncUpload | str | Path,
        dataset: AsyncUpload | str | Path | None = None,
        **fields: Unpack[PipelineJobFields],
    ) -> Plan:
        """As `Client.plan_pipeline`."""
        return await self.run(self.jobs._plan_pipeline(model, dataset, fields))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def limits(self) -> dict[str, Any]:
        """As `Client.limits`."""
        shown: dict[str, Any] = await self.run(operations.get_json("/v1/limits"))
        return shown

    async def run(self, operation: Operation[T]) -> T:
        """Carry an operation out, and return its result."""
        result: list[T] = []
        async for _ in self.iterate(keep_result(operation, result)):
            raise RuntimeError("an operation that emits items is iterated, not run")
        return result[0]

    async def iterate(self, operation: Operation[None]) -> AsyncIterator[Any]:
        """Carry an operation out, item by item."""
        outcome: Any = None
        failure: Exception | None = None
        opened: httpx.Response | None = None
        chunks: AsyncIterator[bytes] | None = None
        try:
            while (effect := operations.advance(operation, outcome, failure)) is not None:
                outcome = failure = None
                try:
                    match effect:
                        case operations.Open(request):
                            if opened:
                                await opened.aclose()
                            outcome = opened = await self._http.send(self._built(request), stream=True)
                            chunks = opened.aiter_bytes()
                            self._answered = True
                        case operations.Chunk():
                            outcome = await anext(chunks, b"") if chunks else b""
                        case operations.Sleep(seconds):
                            await anyio.sleep(seconds)
                        case operations.Aside(work):
                            outcome = await anyio.to_thread.run_sync(work)
                        case operations.Emit(item):
                            yield item
                except httpx.TransportError as error:
                    failure = self._failure(error)
        finally:
            if opened:
                await opened.aclose()

    def _built(self, request: operations.Request) -> httpx.Request:
        content = _read_in_threads(request.content()) if request.content else None
        return self._http.build_request(content=content, **self._request(request))


async def _read_in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """A disk may be slow; the event loop does not wait for it."""
    while chunk := await anyio.to_thread.run_sync(next, chunks, b""):
        yield chunk
