"""What the blocking and the async client share: the service's address, and operations on uploads and jobs."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from contextlib import nullcontext
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import httpx

from pared.client import operations, uploading
from pared.client.operations import Operation, Progress, ServerUnreachable
from pared.client.records import JobRecord, UploadRecord
from pared.folders import as_file
from pared.reports import Plan

T = TypeVar("T")
U = TypeVar("U", bound=UploadRecord)
J = TypeVar("J", bound=JobRecord)
DEFAULT_URL = "http://127.0.0.1:8000"
UPLOAD_IDS = ("mdl_", "dst_", "builtin:")
"""What the id of an upload begins with."""


class ClientBase:
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
            # SSL_CERT_FILE and SSL_CERT_DIR from the environment count for it too. An http address has no use for the
            # certificates that are trusted, for no redirect is followed; to read them takes longer than a request.
            "verify": httpx.create_ssl_context()
            if address.scheme == "https"
            else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        }

    def _request(self, request: operations.Request) -> dict[str, Any]:
        """Arguments of httpx's `build_request`, without the body; UntrustedAnswer for another server's address."""
        operations.check_path(request.path)
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
            if refused := _tls_error(error):
                return ServerUnreachable(
                    f"no secure connection to {self.url}: {refused}. To trust a certificate of your own, name its "
                    "file in SSL_CERT_FILE."
                )
            return ServerUnreachable(f"no pared server at {self.url}; start one with `pared up`, or set PARED_URL")
        return error


def _tls_error(error: BaseException | None) -> str:
    """What TLS did not like; empty if that was not the reason."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return "" if error is None else getattr(error, "verify_message", "") or str(error.reason)


class UploadsBase(Generic[U]):
    """Operations on the models, or on the data sets."""

    record: ClassVar[type[UploadRecord]]

    def __init__(self, client: Any, kind: Literal["models", "datasets"]) -> None:
        self._client, self._kind = client, kind

    def _upload(
        self,
        path: Path,
        architecture: Any,
        progress: Progress | None,
        weights: str | None = None,
        prefix: str | None = None,
    ) -> Operation[U]:
        params = {} if architecture is None else {"architecture": operations.as_parameter(architecture)}
        params |= {name: text for name, text in (("weights", weights), ("prefix", prefix)) if text}
        with as_file(path) if self._kind == "models" else nullcontext(path) as file:
            return self._bound((yield from uploading.upload(self._kind, file, params, progress)))

    def _get(self, upload_id: str) -> Operation[U]:
        return self._bound((yield from operations.get_json(f"/v1/{self._kind}/{upload_id}")))

    def _delete(self, upload_id: str) -> Operation[None]:
        yield from operations.call(operations.Request("DELETE", f"/v1/{self._kind}/{upload_id}"))

    def _preview(self, dataset_id: str, path: Path) -> Operation[Path]:
        return (yield from operations.preview(dataset_id, path))

    def _id(self, upload: UploadRecord | str | Path) -> Operation[str]:
        """The id of an upload; a file is uploaded first."""
        known = upload.id if isinstance(upload, UploadRecord) else upload
        if isinstance(known, str) and known.startswith(UPLOAD_IDS):
            if known.startswith("dst_" if self._kind == "models" else "mdl_"):
                given, wanted = ("data set", "model") if self._kind == "models" else ("model", "data set")
                raise ValueError(f"{known} is a {given}, where a {wanted} is wanted: first the model, then the data")
            return known
        path = path_of(upload)
        if not path.is_file() and not (self._kind == "models" and path.is_dir()):
            raise FileNotFoundError(f"{upload} is neither a file nor the id of an upload")
        stored = yield from self._upload(path, None, None)
        return stored.id

    def _bound(self, row: Mapping[str, Any]) -> U:
        record = self.record.model_validate(row)
        record._client = self._client
        return cast("U", record)


def path_of(given: Any) -> Path:
    """A path; what is none, such as a module or arrays, is refused with what to do instead."""
    if isinstance(given, str | os.PathLike):
        return Path(given)
    raise TypeError(
        f"The client sends files, and this is a {type(given).__name__}. Save it first, such as by "
        "torch.jit.script(model).save(path) and numpy.savez(path, x=x, y=y), or call the functions of "
        "pared.compression, which take modules and arrays and need no server."
    )


class JobsBase(Generic[J]):
    """Operations on the jobs."""

    record: ClassVar[type[JobRecord]]

    def __init__(self, client: Any) -> None:
        self._client = client

    def _submit(self, spec: Mapping[str, Any]) -> Operation[J]:
        return self._bound((yield from operations.submit(spec)))

    def _plan(self, spec: Mapping[str, Any]) -> Operation[Plan]:
        return Plan.model_validate((yield from operations.plan(spec)))

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

    def _quantize(self, model: Any, dataset: Any, fields: Mapping[str, Any]) -> Operation[J]:
        spec = (yield from self._prune_spec(model, dataset, fields)) | {"type": "quantize"}
        return (yield from self._submit(spec))

    def _pipeline_spec(self, model: Any, dataset: Any, fields: Mapping[str, Any]) -> Operation[dict[str, Any]]:
        return {**(yield from self._prune_spec(model, dataset, fields)), "type": "pipeline"}

    def _pipeline(self, model: Any, dataset: Any, fields: Mapping[str, Any]) -> Operation[J]:
        return (yield from self._submit((yield from self._pipeline_spec(model, dataset, fields))))

    def _plan_pipeline(self, model: Any, dataset: Any, fields: Mapping[str, Any]) -> Operation[Plan]:
        return (yield from self._plan((yield from self._pipeline_spec(model, dataset, fields))))

    def _distill(self, teacher: Any, student: Any, dataset: Any, fields: Mapping[str, Any]) -> Operation[J]:
        models = self._client.models
        spec = {
            "type": "distill",
            "teacher": (yield from models._id(teacher)),
            "student": student if isinstance(student, Mapping) else (yield from models._id(student)),
            "dataset": None if dataset is None else (yield from self._client.datasets._id(dataset)),
        }
        if fields.get("teachers"):
            others: list[Any] = []
            for each in fields["teachers"]:
                others += [{**each, "model": (yield from models._id(each["model"]))}]
            fields = {**fields, "teachers": others}
        return (yield from self._submit({**spec, **fields}))

    def _get(self, job_id: str) -> Operation[J]:
        return self._bound((yield from operations.get_json(f"/v1/jobs/{job_id}")))

    def _wanted(self, status: str | None, type_: str | None) -> dict[str, str | int]:
        wanted = {"status": status, "type": type_}
        return {name: value for name, value in wanted.items() if value}

    def _cancel(self, job_id: str) -> Operation[J]:
        return self._bound((yield from operations.cancel(job_id)))

    def _bound(self, row: Mapping[str, Any]) -> J:
        record = self.record.model_validate(row)
        record._client = self._client
        return cast("J", record)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def keep_result(operation: Operation[T], result: list[T]) -> Operation[None]:
    """The operation, with its result put into a list."""
    result.append((yield from operation))
