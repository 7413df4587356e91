"""Owns reading a JSON object from a request's body, within its bounds."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from pared.errors import TooLarge, ValidationError
from service import untrusted_json


async def json_body(request: Request, max_bytes: int, what: str) -> bytes:
    """The bytes of a body that is said to be JSON.

    Args:
        what: what the body is, in words, as in `a job spec`.

    Raises:
        ValidationError: it is said to be something else.
        TooLarge: it has more bytes.
    """
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise ValidationError(f"Send {what} as application/json, not as {content_type[:100]}.")
    return await limited_body(request, max_bytes, what)


async def limited_body(request: Request, max_bytes: int, what: str) -> bytes:
    """The bytes of a body. Raises TooLarge where it has more than may be."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(f"{what[0].upper()}{what[1:]} has at most {max_bytes:,} bytes.")
    return bytes(body)


def object_in(content: bytes, otherwise: str) -> dict[str, Any]:
    """The object in a body.

    Args:
        otherwise: what to say where it is some other value.

    Raises:
        ValidationError: it is no object, or no JSON.
    """
    try:
        value = untrusted_json.parse(content)
    except ValueError as error:
        errors = [{"pointer": "", "detail": str(error)}]
        raise ValidationError(f"The body is not JSON that we read: {error}.", errors=errors) from None
    if not isinstance(value, dict):
        raise ValidationError(otherwise, errors=[{"pointer": "", "detail": "must be an object"}])
    return value
