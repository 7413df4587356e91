"""Owns HTTP's entity tags: `ETag`, `If-None-Match` and `If-Match`, as RFC 9110 reads them."""

from __future__ import annotations

import hashlib
import re

from fastapi import Request, Response
from pydantic import BaseModel

_TAG = re.compile(r'(?:W/)?"[^"]*"')


def json_with_tag(request: Request, view: BaseModel, headers: dict[str, str]) -> Response:
    """The view as JSON with a weak ETag, or 304 if the client has it."""
    content = view.model_dump_json(by_alias=True).encode()
    return tagged(request, content, weak_tag(content), headers)


def tagged(request: Request, content: bytes, tag: str, headers: dict[str, str]) -> Response:
    """JSON with its ETag, or 304 if the client has it."""
    headers = {"ETag": tag, "Cache-Control": "no-cache", **headers}
    if client_has(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)


def weak_tag(content: bytes) -> str:
    """An ETag for a representation that is made anew each time."""
    return f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'


def client_has(request: Request, tag: str) -> bool:
    """Whether `If-None-Match` names this tag (compared weakly) or any."""
    header = request.headers.get("if-none-match")
    if header is None:
        return False
    if header == tag:  # as nearly all clients send it
        return True
    return header.strip() == "*" or tag.removeprefix("W/") in {one.removeprefix("W/") for one in _TAG.findall(header)}


def requires_other(request: Request, tag: str) -> bool:
    """Whether `If-Match` is there and does not name this tag (compared strongly)."""
    header = request.headers.get("if-match")
    return header is not None and header.strip() != "*" and tag not in _TAG.findall(header)
