"""Owns reading a job's spec from a request's body: size, JSON, fields, each error with a pointer to what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError as Invalid

from pared.job_types import LISTED, listed_spec
from pared.specs import JobSpec
from service.dependencies import parts_of
from service.json_bodies import json_body, object_in
from service.problems import invalid

_AT_ONCE_BYTES = 2048
"""To read so little takes less time than a turn of the thread pool."""
SPECS = {each.name: each.spec for each in LISTED}


async def spec_of(request: Request) -> JobSpec:
    """The spec in the body. Raises ValidationError with a pointer to each bad field, or TooLarge."""
    content = await json_body(request, (await parts_of(request)).settings.max_json_bytes, "a job spec")
    if len(content) <= _AT_ONCE_BYTES:
        return _spec_in(content)
    return await run_in_threadpool(_spec_in, content)  # up to tens of milliseconds, in which others are served


PostedSpec = Annotated[JobSpec, Depends(spec_of)]


def _spec_in(content: bytes) -> JobSpec:
    return checked(object_in(content, 'A spec is a JSON object, such as {"type": "prune", …}.'))


def checked(value: Mapping[str, Any]) -> JobSpec:
    """The spec that an object is. Raises ValidationError with a pointer to each bad field."""
    try:
        return listed_spec.validate_python(value)
    except Invalid as error:
        raise invalid(error.errors(include_url=False, include_input=False), value, SPECS) from None


def shortest(spec: JobSpec) -> dict[str, Any]:
    """The spec as somebody would write it: without whatever is filled in where it is left out."""
    whole = spec.model_dump(mode="json")

    def says_the_same(written: Mapping[str, Any]) -> bool:
        try:
            return listed_spec.validate_python(written).model_dump(mode="json") == whole
        except Invalid:
            return False

    written = spec.model_dump(mode="json", exclude_defaults=True)
    if not says_the_same(written):
        written = copy.deepcopy(whole)
    _leave_out(written, lambda: says_the_same(written))
    return written


def _leave_out(part: Any, says_the_same: Callable[[], bool]) -> None:
    """Delete, in place, each entry of an object without which the whole says the same; then look within the others."""
    if isinstance(part, list):
        for each in part:
            _leave_out(each, says_the_same)
    if not isinstance(part, dict):
        return
    for name, value in list(part.items()):
        before = dict(part)
        del part[name]
        if not says_the_same():
            part.clear()
            part.update(before)  # in the order that it had
            _leave_out(value, says_the_same)
