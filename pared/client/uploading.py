"""Operations that send files: small ones in one request, larger ones so that a broken connection goes on.

Larger ones are sent by the tus protocol (https://tus.io/protocols/resumable-upload), version 1.0.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pared.client.operations import (
    CHUNK_BYTES,
    APIError,
    Aside,
    DigestMismatch,
    Operation,
    Progress,
    Request,
    ServerUnreachable,
    Sleep,
    UntrustedAnswer,
    backoff_s,
    call,
    get_json,
)

RESUMABLE_ABOVE = 64 << 20
"""Files of more bytes are sent so that they can be continued."""
_TUS = {"Tus-Resumable": "1.0.0"}
_MAX_FAILURES = 12
"""In a row, without a byte more that arrived."""


def upload(
    kind: Literal["models", "datasets"], file: Path, params: Mapping[str, str], progress: Progress | None
) -> Operation[dict[str, Any]]:
    """Send a file and check that the same bytes arrived; trying again is safe: the service keeps them once.

    Args:
        kind: what it is.
        file: where it is.
        params: what else is said of it, such as its `architecture`.
        progress: called with the bytes sent and in all.

    Returns:
        The row of the model or data set.
    """
    if file.stat().st_size > RESUMABLE_ABOVE:
        stored = yield from _resumable(kind, file, params, progress)
        if stored is not None:
            return stored
    return (yield from _at_once(kind, file, params, progress))


def _at_once(kind: str, file: Path, params: Mapping[str, str], progress: Progress | None) -> Operation[dict[str, Any]]:
    """`POST /v1/{kind}`."""
    digest = ""

    def content() -> Iterator[bytes]:
        nonlocal digest
        sha256 = hashlib.sha256()
        for chunk in _read_from(file, 0, progress):
            sha256.update(chunk)
            yield chunk
        digest = sha256.hexdigest()

    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(file.stat().st_size)}
    address = f"/v1/{kind}"
    request = Request("POST", address, {"filename": file.name, **params}, headers, content=content, read_timeout_s=300)
    stored: dict[str, Any] = (yield from call(request)).json()
    return _checked(stored, file, digest)


def _resumable(
    kind: str, file: Path, params: Mapping[str, str], progress: Progress | None
) -> Operation[dict[str, Any] | None]:
    """Create an upload and send what the service lacks of it, which may be nothing; None: the service is too old."""
    size = file.stat().st_size
    digest = yield Aside(lambda: _sha256(file))
    metadata = {"kind": kind, "filename": file.name, "sha256": digest, **params}
    encoded = ",".join(f"{name} {base64.b64encode(text.encode()).decode()}" for name, text in metadata.items())
    created = Request("POST", "/v1/uploads", headers={**_TUS, "Upload-Length": str(size), "Upload-Metadata": encoded})
    try:
        answer = yield from call(created)
    except APIError as error:
        if error.status in (404, 405):
            return None
        raise
    if "upload-result" in answer.headers:
        if progress:
            progress(size, size)
    else:
        address = f"/v1/uploads/{_id_in(answer.headers.get('location'), 'upl')}"
        answer = yield from _send_rest(address, file, size, progress)
    upload_id = _id_in(answer.headers["upload-result"], "mdl" if kind == "models" else "dst")
    return _checked((yield from get_json(f"/v1/{kind}/{upload_id}")), file, digest)


def _send_rest(address: str, file: Path, size: int, progress: Progress | None) -> Operation[Any]:
    """Send from where the service is until it has all; returns the answer that names the result."""
    failures, furthest = 0, 0
    while True:
        answer = yield from call(Request("HEAD", address, headers=_TUS))
        if "upload-result" in answer.headers:
            return answer
        offset = int(answer.headers["upload-offset"])
        failures, furthest = (0 if offset > furthest else failures), max(offset, furthest)
        headers = {
            **_TUS,
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(size - offset),
            "Upload-Offset": str(offset),
        }
        request = Request(
            "PATCH",
            address,
            headers=headers,
            content=lambda start=offset: _read_from(file, start, progress),  # type: ignore[misc]
            read_timeout_s=300.0,
        )
        try:
            answer = yield from call(request, patience_s=0.0)
        except (APIError, ServerUnreachable) as error:
            status = error.status if isinstance(error, APIError) else 0
            if status == 460:
                raise DigestMismatch(f"{file.name} changed while it was sent, or on its way. Send it again.") from error
            failures += 1
            # A conflict: another connection of ours, which was thought lost, brought some bytes more.
            for_good = status == 507 or (400 <= status < 500 and status not in (408, 409, 425, 429))
            if for_good or failures > _MAX_FAILURES:
                raise
            yield Sleep(backoff_s(failures))
            continue
        if "upload-result" in answer.headers:
            return answer


def _read_from(file: Path, start: int, progress: Progress | None) -> Iterator[bytes]:
    total = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(start)
        while chunk := opened.read(CHUNK_BYTES):
            yield chunk
            start += len(chunk)
            if progress:
                progress(start, total)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _checked(stored: dict[str, Any], file: Path, digest: str) -> dict[str, Any]:
    if stored["sha256"] != digest:
        raise DigestMismatch(f"{file.name} changed on its way: sent {digest}, the service has {stored['sha256']}")
    return stored


def _id_in(address: str | None, prefix: str) -> str:
    """The id at the end of an address that the service named; of the address itself nothing else is used."""
    found = re.search(rf"({prefix}_[0-9A-Za-z]{{26}})$", address or "")
    if found is None:
        raise UntrustedAnswer(f"the server says that what was sent is at {address!r}, which is no address of its own")
    return found[1]
