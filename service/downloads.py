"""Owns handing out a stored file: its headers, the conditions of the request, one byte range, and only intact bytes."""

from __future__ import annotations

import base64
import threading
from collections.abc import Generator
from urllib.parse import quote

from fastapi import Request, Response

from pared.errors import PreconditionFailed, RangeNotSatisfiable
from pared.state.objects import READ_BYTES, ObjectStore
from pared.state.tables import Artifact
from service.byte_ranges import requested_range
from service.dependencies import Parts
from service.etags import client_has, requires_other
from service.problems import problem
from service.streams import Stream, read_ahead

LARGE_BYTES, LARGE_AT_ONCE = 8 << 20, 4
"""A download in pieces of this size takes three quarters of the time of one in `READ_BYTES`. A client that is slow
holds up to three: the one that was read ahead, the one that is sent, and what of it is yet to be sent."""
_LARGE = threading.BoundedSemaphore(LARGE_AT_ONCE)


def file_response(request: Request, parts: Parts, row: Artifact, *, may_be_elsewhere: bool = False) -> Response:
    """The artifact's file, the range asked for, 304, or where else it can be had for some minutes.

    Args:
        may_be_elsewhere: whether a redirect is an answer, where the settings say so.

    Raises:
        PreconditionFailed: `If-Match` names another file.
        CorruptObject: the stored bytes no longer have the artifact's digest.
    """
    tag = f'"{row.sha256}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(row.sha256)).decode()}:",
        "Content-Disposition": attachment(row.name),
    }
    if requires_other(request, tag):
        raise PreconditionFailed("The file is not the one that If-Match names. Download it from the start.")
    if client_has(request, tag):
        return Response(status_code=304, headers=headers)
    try:
        part = requested_range(request, tag, row.size_bytes)
    except RangeNotSatisfiable as error:
        return problem(request.state.request_id, error, {"Content-Range": f"bytes */{row.size_bytes}"})
    parts.verified.check(row.object_key, row.sha256)
    may_be_elsewhere &= request.method != "HEAD" and "no-redirect" not in request.headers.get("prefer", "")
    if may_be_elsewhere and parts.settings.presigned_downloads:
        elsewhere = parts.store.download_url(row.object_key)
        if elsewhere is not None:
            there = {"Location": elsewhere, "Cache-Control": "no-store", "Repr-Digest": headers["Repr-Digest"]}
            return Response(status_code=307, headers=there)
    start, end = (part.start, part.end) if part else (0, row.size_bytes)
    headers["Content-Length"] = str(end - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{row.size_bytes}"
    status = 206 if part else 200
    if request.method == "HEAD":
        return Response(None, status, headers, media_type=row.media_type)
    pieces = read_ahead(pieces_of(parts.store, row.object_key, start, end))
    return Stream(pieces, status, headers, media_type=row.media_type)


def pieces_of(store: ObjectStore, key: str, start: int, end: int) -> Generator[bytes, None, None]:
    """These bytes of an object, in large pieces as long as few objects are read so at once."""
    large = _LARGE.acquire(blocking=False)
    try:
        yield from store.read(key, start, end, LARGE_BYTES if large else READ_BYTES)
    finally:
        if large:
            _LARGE.release()


def attachment(name: str) -> str:
    """The `Content-Disposition` of a download (RFC 6266): a plain name for old clients, the true one in UTF-8."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
