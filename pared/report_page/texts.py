"""Owns how much of a report's texts and lists the page shows: hostile or huge ones must not make it large."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

NAME, SENTENCE, PARAGRAPH = 80, 300, 2_000
"""Characters of what names something, of what says something in a row of a table, and of what stands alone."""
SPEC = 16_000
"""Characters of the spec as JSON."""

_ONE_LINE = 24
"""Characters of a shape that a line may not break."""
_BETWEEN = " … "


def name(value: Any) -> str:
    """What names something; of a long one the ends, in which names differ."""
    text = str(value)[: 100 * NAME] if isinstance(value, str) else _short_json(value)
    if len(text) <= NAME:
        return text
    half = (NAME - len(_BETWEEN)) // 2
    return text[:half] + _BETWEEN + text[-half:]


def sentence(text: str | None, most: int = SENTENCE) -> str:
    """What says something, cut at its end."""
    return "" if text is None else text if len(text) <= most else text[: most - 1] + "…"


def first(items: Sequence[T], most: int, what: str) -> tuple[Sequence[T], str]:
    """The first items, and a sentence on what is left out; it is empty if nothing is."""
    return items[:most], _shown(most, len(items), what) if len(items) > most else ""


def spread(items: Sequence[T], most: int, what: str, keep: Sequence[int] = ()) -> tuple[list[T], str]:
    """Items from all over a list, with both ends and those at the places `keep`, and a sentence as of `first`."""
    if len(items) <= most:
        return list(items), ""
    places = {round(number * (len(items) - 1) / (most - 1)) for number in range(most)}
    chosen = sorted(places | {place for place in keep if 0 <= place < len(items)})
    return [items[place] for place in chosen], _shown(len(chosen), len(items), what)


def _shown(some: int, of_all: int, what: str) -> str:
    return f"{some:,} of {of_all:,} {what} are shown; the report as JSON has them all."


def shape(lengths: Sequence[int]) -> str:
    """64 × 32 × 3 × 3, on one line unless it is long."""
    text = name(" × ".join(f"{length}" if abs(length) < 10**12 else "…" for length in lengths[:12])) or "scalar"
    return text if len(text) > _ONE_LINE else text.replace(" ", "\N{NO-BREAK SPACE}")


def spec_json(spec: Any) -> tuple[str, str]:
    """A spec as JSON that people read, and a sentence if it was cut."""
    text = json.dumps(spec, indent=2, ensure_ascii=False)
    if len(text) <= SPEC:
        return text, ""
    return text[:SPEC], f"The first {SPEC:,} of {len(text):,} characters; the report as JSON has them all."


def _short_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)[: 100 * NAME]
    except (TypeError, ValueError):
        return repr(type(value).__name__)
