"""Whether bytes need not be sent, since the one who asks has them here already."""

from __future__ import annotations

import re

from fastapi import APIRouter, Response

from pared.errors import NotFound
from service.checked_routes import CheckedRoute
from service.dependencies import Owner, PartsOf
from service.openapi import answers

router = APIRouter(tags=["uploads in pieces"], route_class=CheckedRoute)


@router.head(
    "/v1/objects/{digest}",
    status_code=204,
    summary="Ask whether a file is here",
    description="`digest` is `sha256:` and 64 hexadecimal digits. 204 where you uploaded a file with this digest, or a "
    "job of yours made one: an upload in pieces that announces it as `sha256` then needs no bytes. 404 otherwise, "
    "whatever others have.",
    responses=answers(204, None, 404),
)
def head_object(parts: PartsOf, owner: Owner, digest: str) -> Response:
    """Whether the owner has the file."""
    named = re.fullmatch(r"sha256:([0-9a-f]{64})", digest)
    stored = parts.partial.stored(owner, named[1]) if named else None
    if stored is None:
        raise NotFound("You have no such file here. A name is sha256: and 64 hexadecimal digits.")
    return Response(status_code=204, headers={"ETag": f'"{stored.sha256}"', "Upload-Length": str(stored.size_bytes)})
