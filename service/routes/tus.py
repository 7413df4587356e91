"""Uploads in pieces, by the tus protocol 1.0: creation, PATCH, HEAD, termination, expiration and checksums."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from email.utils import formatdate
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool

from pared.errors import (
    NotFound,
    TooLarge,
    UnsupportedChecksum,
    UnsupportedMediaType,
    UnsupportedTusVersion,
    ValidationError,
)
from pared.state.partial_uploads import CHECKSUMS, Announced, Checksum
from pared.state.tables import PartialUpload
from pared.state.uploads import display_name
from service.checked_routes import CheckedRoute
from service.dependencies import Owner, Parts, PartsOf, RequestId, check_id
from service.new_uploads import parse_architecture, part_of_checkpoint
from service.openapi import PARTIAL_BODY, PARTIAL_UPLOAD, answers
from service.schemas import PartialUploadView, partial_upload_view
from service.upload_stream import pump

VERSION = "1.0.0"
EXTENSIONS = "creation,termination,expiration,checksum"
MAX_METADATA = 65_536
_KINDS = {"model": "models", "models": "models", "dataset": "datasets", "datasets": "datasets"}


class _TusRoute(CheckedRoute):
    """Checks the version before all else, and names this server's on every answer, also of errors."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_version(request: Request) -> Response:
            try:
                _check_version(request)
                response = await handle(request)
            except Exception as error:
                kinds = (request.app.exception_handlers.get(kind) for kind in type(error).__mro__)
                answer = next((handler for handler in kinds if handler is not None), None)
                if answer is None:
                    raise
                response = await answer(request, error)
            response.headers["Tus-Resumable"] = VERSION
            if response.status_code == UnsupportedTusVersion.status:
                response.headers["Tus-Version"] = VERSION
            return response

        return with_version


def _check_version(request: Request) -> None:
    if request.method != "OPTIONS" and request.headers.get("tus-resumable", VERSION) != VERSION:
        raise UnsupportedTusVersion(f"This server speaks tus {VERSION}. Send `Tus-Resumable: {VERSION}`.")


router = APIRouter(tags=["uploads in pieces"], route_class=_TusRoute)

_OFFSET = Header(ge=0, le=2**53, description="Where the bytes of this request begin.")
_CHECKED = "`Upload-Checksum: sha256 …` (or `sha1`, in base64) has the piece checked: 460 where it is another."


@router.options("/v1/uploads", include_in_schema=False)
def describe_tus(parts: PartsOf) -> Response:
    """What this server can do."""
    headers = {
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(parts.settings.max_upload_bytes),
        "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
    }
    return Response(status_code=204, headers=headers)


@router.post(
    "/v1/uploads",
    status_code=201,
    response_model=PartialUploadView,
    summary="Begin an upload in pieces",
    description="By [tus 1.0](https://tus.io/protocols/resumable-upload), so that any tus client can send large files "
    "over connections that break. `Upload-Metadata` has, each in base64: `kind` (`model` or `dataset`), `filename`, "
    "and as for an upload in one request `architecture`, `weights`, `prefix`; other names are ignored. With `sha256` "
    "(64 hexadecimal digits) the whole file is checked, an upload of the same file that was begun before goes on, and "
    "bytes that you have here already need not be sent: `Upload-Result` then names the model or data set at once. "
    "`OPTIONS` tells versions, extensions and the largest size.",
    openapi_extra=PARTIAL_BODY,
    responses=answers(201, PARTIAL_UPLOAD, 412, 413, 429, 507),
)
def create_upload(
    response: Response,
    parts: PartsOf,
    owner: Owner,
    request_id: RequestId,
    upload_length: Annotated[int, Header(ge=0, le=2**53, description="Bytes of the file.")],
    upload_metadata: Annotated[str, Header(max_length=MAX_METADATA, description="`name base64,name base64,…`")],
) -> PartialUploadView:
    """Keep what is said of the file, and answer where its bytes go."""
    if upload_length == 0:
        raise ValidationError("The upload is empty.", errors=[_at("Upload-Length", "must be above 0")])
    if upload_length > parts.settings.max_upload_bytes:
        raise TooLarge(
            f"This server takes uploads of up to {parts.settings.max_upload_bytes:,} bytes. Whoever runs it can raise "
            "PARED_MAX_UPLOAD_BYTES."
        )
    row = parts.partial.create(owner, _announced(upload_length, upload_metadata), request_id=request_id)
    response.headers["Location"] = f"/v1/uploads/{row.id}"
    response.headers.update(_state(parts, row))
    return partial_upload_view(row)


@router.head("/v1/uploads/{upload_id}", include_in_schema=False)
@router.get(
    "/v1/uploads/{upload_id}",
    response_model=PartialUploadView,
    summary="Look at an upload in pieces",
    description="How many bytes are surely on disk, where to go on, and in the end which model or data set it became. "
    "`HEAD` answers the same in headers: `Upload-Offset`, `Upload-Length`, `Upload-Expires`, `Upload-Result`.",
    responses=answers(200, PARTIAL_UPLOAD, 404, 412),
)
def look_at_upload(response: Response, parts: PartsOf, owner: Owner, upload_id: str) -> PartialUploadView:
    """The upload as it is now."""
    check_id(upload_id, "upl")
    row = parts.partial.look(owner, upload_id)
    response.headers.update(_state(parts, row))
    return partial_upload_view(row)


@router.patch(
    "/v1/uploads/{upload_id}",
    status_code=204,
    summary="Send bytes of an upload",
    description="From `Upload-Offset` on, as `application/offset+octet-stream`; 409 where the upload is at another "
    f"offset. What arrived is kept also where the connection breaks. {_CHECKED} After the last byte `Upload-Result` "
    "names the model or data set that it became, which is inspected as any other.",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/offset+octet-stream": {
                    "schema": {"type": "string", "contentMediaType": "application/octet-stream"}
                }
            },
        }
    },
    responses=answers(204, None, 400, 404, 409, 412, 413, 415, 460, 507),
)
async def send_bytes(
    request: Request, parts: PartsOf, owner: Owner, upload_id: str, upload_offset: Annotated[int, _OFFSET]
) -> Response:
    """Write the bytes behind those that are there."""
    check_id(upload_id, "upl")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/offset+octet-stream":
        raise UnsupportedMediaType("Send the bytes with `Content-Type: application/offset+octet-stream`.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ValidationError("Send the bytes as they are, without a Content-Encoding.")
    checksum = _checksum(request.headers.get("upload-checksum"))
    receiver = await run_in_threadpool(parts.partial.receive, owner, upload_id, upload_offset, checksum)
    broken: list[Exception] = []

    async def until_broken() -> AsyncIterator[bytes]:
        try:
            async for chunk in request.stream():
                yield chunk
        except Exception as error:  # noqa: BLE001 - whatever it is, what came before is kept
            broken.append(error)

    try:
        await pump(until_broken(), receiver.write, receiver.left_bytes)
    except TooLarge:
        raise TooLarge("The request has more bytes than `Upload-Length` leaves.") from None
    row = await run_in_threadpool(lambda: receiver.finish(whole=not broken))
    if broken:
        raise broken[0]
    if row.result_id is not None:
        parts.dispatcher.dispatch()
    return Response(status_code=204, headers=_state(parts, row))


@router.delete(
    "/v1/uploads/{upload_id}",
    status_code=204,
    summary="Delete an upload in pieces",
    description="Its bytes are forgotten. A model or data set that it became already stays.",
    responses=answers(204, None, 404, 412),
)
def delete_upload(parts: PartsOf, owner: Owner, upload_id: str) -> None:
    """Forget the upload."""
    check_id(upload_id, "upl")
    parts.partial.terminate(owner, upload_id)


@router.post("/v1/uploads/{upload_id}", include_in_schema=False)
async def by_another_method(
    request: Request, parts: PartsOf, owner: Owner, upload_id: str, upload_offset: Annotated[int | None, _OFFSET] = None
) -> Response:
    """For clients that cannot send PATCH or DELETE: tus has them name it in `X-HTTP-Method-Override`."""
    method = request.headers.get("x-http-method-override", "").upper()
    if method == "PATCH":
        if upload_offset is None:
            raise ValidationError("Say where the bytes begin.", errors=[_at("Upload-Offset", "is required")])
        return await send_bytes(request, parts, owner, upload_id, upload_offset)
    if method == "DELETE":
        await run_in_threadpool(delete_upload, parts, owner, upload_id)
        return Response(status_code=204)
    raise NotFound("Bytes are sent with PATCH, or with POST and `X-HTTP-Method-Override: PATCH`.")


def _announced(size_bytes: int, header: str) -> Announced:
    """What `Upload-Metadata` says. Raises ValidationError."""
    said: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in header.split(","))):
        name, _, value = pair.partition(" ")
        try:
            said[name] = base64.b64decode(value, validate=True).decode()
        except ValueError:  # not base64, not ASCII, or not text
            raise ValidationError(
                "`Upload-Metadata` cannot be read.", errors=[_at("Upload-Metadata", f"{name}: is not text in base64")]
            ) from None
    kind = _KINDS.get(said.get("kind", ""))
    if kind is None:
        raise ValidationError(
            "Say what the file is.", errors=[_at("Upload-Metadata", "kind: must be model or dataset, in base64")]
        )
    sha256 = said.get("sha256", "").lower() or None
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValidationError(
            "The digest is none.", errors=[_at("Upload-Metadata", "sha256: must be 64 hexadecimal digits, in base64")]
        )
    of_a_model = said if kind == "models" else {}
    return Announced(
        kind="models" if kind == "models" else "datasets",
        filename=display_name(said.get("filename", "")),
        size_bytes=size_bytes,
        metadata=header,
        sha256=sha256,
        architecture=parse_architecture(of_a_model.get("architecture")),
        weights=part_of_checkpoint("weights", of_a_model.get("weights")),
        prefix=part_of_checkpoint("prefix", of_a_model.get("prefix")),
    )


def _checksum(header: str | None) -> Checksum | None:
    if header is None:
        return None
    algorithm, _, value = header.partition(" ")
    try:
        digest = base64.b64decode(value, validate=True)
    except ValueError:
        digest = b""
    if algorithm not in CHECKSUMS or not digest:
        raise UnsupportedChecksum(f"`Upload-Checksum` is one of {', '.join(CHECKSUMS)}, a space, and base64.")
    return Checksum(algorithm, digest)


def _state(parts: Parts, row: PartialUpload) -> dict[str, str]:
    """The headers that say how far an upload is."""
    headers = {
        "Cache-Control": "no-store",
        "Upload-Offset": str(row.received_bytes),
        "Upload-Length": str(row.size_bytes),
        "Upload-Metadata": row.upload_metadata,
        "Upload-Expires": formatdate(row.expires_at, usegmt=True),
    }
    if row.result_id is not None:
        headers["Upload-Result"] = f"/v1/{row.kind}/{row.result_id}"
    return headers


def _at(header: str, detail: str) -> dict[str, str]:
    return {"pointer": f"/header/{header.lower()}", "detail": detail}
