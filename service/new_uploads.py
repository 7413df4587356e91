"""Owns what becomes of a file that was posted, by the API or by a page's form: it is stored, kept and inspected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import TypeAdapter
from pydantic import ValidationError as Invalid

from pared.errors import ValidationError
from pared.specs import Architecture
from pared.state.tables import Dataset, Model
from pared.state.uploads import add_dataset, add_model, check_upload, display_name
from service import untrusted_json
from service.dependencies import Parts
from service.upload_stream import Received, receive

_architecture: TypeAdapter[Any] = TypeAdapter(Architecture)


async def receive_model(
    request: Request, parts: Parts, owner: str, request_id: str, named: Mapping[str, str | None]
) -> tuple[Model, bool]:
    """Store the body of the request as a model.

    Args:
        named: what the query says: `filename`, `architecture`, `weights` and `prefix`; a form's fields fill the gaps.

    Returns:
        The model, and whether it is new.

    Raises:
        ValidationError, TooLarge, StorageFull: as `receive`; or one of these cannot be.
        OverLimit: as `add_model`.
    """
    # In a thread, for a large one takes long.
    given = await run_in_threadpool(parse_architecture, named.get("architecture"))
    received = await _receive(request, parts, owner)

    def add() -> tuple[Model, bool]:
        said = {**received.fields, **{name: value for name, value in named.items() if value}}
        return add_model(
            parts.sessions,
            owner,
            received.stored,
            display_name(said.get("filename", "")),
            given or parse_architecture(said.get("architecture")),
            weights=part_of_checkpoint("weights", said.get("weights")),
            prefix=part_of_checkpoint("prefix", said.get("prefix")),
            request_id=request_id,
            settings=parts.settings,
        )

    model, new = await run_in_threadpool(add)
    if new:
        parts.dispatcher.dispatch()
    return model, new


async def receive_dataset(
    request: Request, parts: Parts, owner: str, request_id: str, filename: str | None
) -> tuple[Dataset, bool]:
    """Store the body of the request as a data set; as `receive_model`."""
    received = await _receive(request, parts, owner)

    def add() -> tuple[Dataset, bool]:
        name = display_name(filename or received.fields.get("filename", ""))
        return add_dataset(parts.sessions, owner, received.stored, name, request_id=request_id, settings=parts.settings)

    dataset, new = await run_in_threadpool(add)
    if new:
        parts.dispatcher.dispatch()
    return dataset, new


def parse_architecture(text: str | None) -> Any | None:
    """The architecture that was posted with a file: a name, or JSON. Raises ValidationError."""
    if not text:
        return None
    value: Any = text
    if text.lstrip().startswith("{"):
        try:
            value = untrusted_json.parse(text)
        except ValueError as error:
            raise ValidationError(
                "The architecture is not valid JSON.", errors=[{"pointer": "/query/architecture", "detail": str(error)}]
            ) from None
    elif not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text):
        raise ValidationError('An architecture is a name such as lenet5, or JSON such as {"layers": [["Linear", …]]}.')
    try:
        _architecture.validate_python(value)
    except Invalid as error:
        detail = "; ".join(one["msg"][:500] for one in error.errors(include_input=False)[:3])
        raise ValidationError(
            'An architecture is a name, {"name": …, "kwargs": {…}} or {"layers": [[kind, {…}], …]}.',
            errors=[{"pointer": "/query/architecture", "detail": detail}],
        ) from None
    return value


def part_of_checkpoint(name: str, text: str | None) -> str | None:
    """Which part of a checkpoint is meant. A form may hold what the query does not allow."""
    if not text:
        return None
    if len(text) > 255 or not text.isprintable():
        detail = "must be at most 255 characters that can be printed"
        raise ValidationError(f"`{name}` {detail}.", errors=[{"pointer": f"/query/{name}", "detail": detail}])
    return text


async def _receive(request: Request, parts: Parts, owner: str) -> Received:
    """The upload, if the owner has room for it; told before the bytes come, where that can be told."""
    settings = parts.settings
    left = await run_in_threadpool(check_upload, parts.sessions, owner, settings)
    announced = request.headers.get("content-length", "")
    most = int(announced) if re.fullmatch(r"[0-9]{1,18}", announced) else settings.max_upload_bytes
    with parts.admission.receiving(owner, min(most, settings.max_upload_bytes), left):
        return await receive(request, parts.store, settings.max_upload_bytes)
