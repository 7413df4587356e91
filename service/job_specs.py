"""Owns reading a job's spec from a request's body: size, JSON, fields, each error with a pointer to what is wrong."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
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
    body = await _json_body(request, parts.settings.max_json_bytes)
    try:
        return listed_spec.validate_python(body)
    except Invalid as error:
        raise invalid(error.errors(include_url=False, include_input=False), body, SPECS) from None


PostedSpec = Annotated[JobSpec, Depends(spec_of)]


async def _json_body(request: Request, max_bytes: int) -> dict[str, Any]:
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise ValidationError(f"Send the spec as application/json, not as {content_type}.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(f"A job spec has at most {max_bytes:,} bytes.")
    try:
        value = untrusted_json.parse(body)
    except ValueError as error:
        errors = [{"pointer": "", "detail": str(error)}]
        raise ValidationError(f"The body is not JSON that we read: {error}.", errors=errors) from None
    if not isinstance(value, dict):
        errors = [{"pointer": "", "detail": "must be an object"}]
        raise ValidationError('A spec is a JSON object, such as {"type": "prune", …}.', errors=errors)
    return value
