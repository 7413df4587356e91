"""Owns reading a job's spec from a request's body: size, JSON, fields, each error with a pointer to what is wrong."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError as Invalid

from pared.job_types import LISTED, listed_spec
from pared.specs import JobSpec
from service.dependencies import PartsOf
from service.json_bodies import json_body, object_in
from service.problems import invalid

SPECS = {each.name: each.spec for each in LISTED}


async def spec_of(request: Request, parts: PartsOf) -> JobSpec:
    """The spec in the body. Raises ValidationError with a pointer to each bad field, or TooLarge."""
    content = await json_body(request, parts.settings.max_json_bytes, "a job spec")
    return await run_in_threadpool(_spec_in, content)  # up to tens of milliseconds, in which others are served


PostedSpec = Annotated[JobSpec, Depends(spec_of)]


def _spec_in(content: bytes) -> JobSpec:
    value = object_in(content, 'A spec is a JSON object, such as {"type": "prune", …}.')
    try:
        return listed_spec.validate_python(value)
    except Invalid as error:
        raise invalid(error.errors(include_url=False, include_input=False), value, SPECS) from None
