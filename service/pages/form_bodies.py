"""Owns reading what a form of a page posts: the texts of its fields, within the bounds of a request."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from pared.errors import ValidationError
from service.dependencies import PartsOf
from service.json_bodies import limited_body

_MOST_FIELDS = 1000


async def _texts(request: Request, parts: PartsOf) -> dict[str, list[str]]:
    """The texts of each field. Raises ValidationError or TooLarge."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded":
        raise ValidationError("Send the form as application/x-www-form-urlencoded, as browsers do.")
    body = await limited_body(request, parts.settings.max_json_bytes, "a form")
    texts: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise ValidationError(f"A form has at most {_MOST_FIELDS:,} fields.") from None
    for name, text in pairs:
        texts.setdefault(name, []).append(text)
    return texts


FormTexts = Annotated[dict[str, list[str]], Depends(_texts)]
"""The texts of each field that was posted, by its name."""
