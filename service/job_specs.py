"""Owns reading a job's spec from a request's body: size, JSON, fields, each error with a pointer to what is wrong."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError as Invalid

from pared.errors import TooLarge, ValidationError
from pared.job_types import LISTED, listed_spec
from pared.specs import JobSpec
from service import untrusted_json
from service.dependencies import PartsOf
from service.problems import invalid

SPECS = {each.name: each.spec for each in LISTED}


async def spec_of(request: Request, parts: PartsOf) -> JobSpec:
    """The spec in the body. Raises ValidationError with a pointer to each bad field, or TooLarge."""
    content = await _content(request, parts.settings.max_json_bytes)
    return await run_in_threadpool(_spec_in, content)  # up to tens of milliseconds, in which others are served


PostedSpec = Annotated[JobSpec, Depends(spec_of)]


async def _content(request: Request, max_bytes: int) -> bytes:
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise ValidationError(f"Send the spec as application/json, not as {content_type[:100]}.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(f"A job spec has at most {max_bytes:,} bytes.")
    return bytes(body)


def _spec_in(content: bytes) -> JobSpec:
    try:
        value = untrusted_json.parse(content)
    except ValueError as error:
        errors = [{"pointer": "", "detail": str(error)}]
        raise ValidationError(f"The body is not JSON that we read: {error}.", errors=errors) from None
    if not isinstance(value, dict):
        errors = [{"pointer": "", "detail": "must be an object"}]
        raise ValidationError('A spec is a JSON object, such as {"type": "prune", …}.', errors=errors)
    try:
        return listed_spec.validate_python(value)
    except Invalid as error:
        raise invalid(error.errors(include_url=False, include_input=False), value, SPECS) from None
