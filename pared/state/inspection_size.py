"""Owns how much of an inspection is shown: a child cuts it before it sends it, and the service before it keeps it."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

MAX_INSPECTION_BYTES = 1 << 20
"""Of its JSON in ASCII. What a child sends and what a row keeps is cut to it."""
_SHORTER = ((1000, 2000), (100, 500), (10, 100))
"""Most entries of a list or object, and most characters of a text, tried in turn until an inspection fits."""
_MAX_DEPTH = 16


def fitted(inspection: dict[str, Any]) -> dict[str, Any]:
    """The inspection, if need be with less in its lists, such that its JSON has at most `MAX_INSPECTION_BYTES`.

    A file with a hundred thousand tensors is as usable as others; only what is shown of it is cut short.
    """
    if _size(inspection) <= MAX_INSPECTION_BYTES:
        return inspection
    for entries, characters in _SHORTER:
        shown: dict[str, Any] = _shortened(inspection, entries, characters, _MAX_DEPTH)
        told = (
            f"There is more in this file than an inspection shows: lists are cut after {entries:,} entries, and texts "
            f"after {characters:,} characters."
        )
        shown["warnings"] = [told, *(shown.get("warnings") or [])]
        if _size(shown) <= MAX_INSPECTION_BYTES:
            return shown
    plain = {name: value for name, value in shown.items() if isinstance(value, int | float) or name == "format"}
    return plain | {"warnings": [told]}


def _size(inspection: dict[str, Any]) -> int:
    return len(json.dumps(inspection))  # in ASCII, as a child sends it


def _shortened(value: Any, entries: int, characters: int, depth: int) -> Any:
    if isinstance(value, str):
        return value[:characters]
    if isinstance(value, list | dict) and not depth:
        return None
    if isinstance(value, list):
        return [_shortened(item, entries, characters, depth - 1) for item in value[:entries]]
    if isinstance(value, dict):
        first = islice(value.items(), entries)
        return {name[:characters]: _shortened(item, entries, characters, depth - 1) for name, item in first}
    return value
