"""Owns handing out a stored file: its headers, the conditions of the request, one byte range, and only intact bytes."""

from __future__ import annotations

import base64
from urllib.parse import quote

from fastapi import Request, Response

from pared.errors import PreconditionFailed, RangeNotSatisfiable
from pared.state.tables import Artifact
from service.byte_ranges import requested_range
from service.dependencies import Parts
from service.etags import client_has, requires_other
from service.problems import problem
from service.streams import Stream, read_ahead


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
    pieces = read_ahead(parts.store.read(row.object_key, start, end))
    return Stream(pieces, status, headers, media_type=row.media_type)


def attachment(name: str) -> str:
    """The `Content-Disposition` of a download (RFC 6266): a plain name for old clients, the true one in UTF-8."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
