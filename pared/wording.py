"""Words that messages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def shortened(items: Sequence[str], most: int = 10, *, between: str = ", ") -> str:
    """The first items of a list, and how many more there are: `a, b, … and 12 more`."""
    more = [f"… and {len(items) - most} more"] if len(items) > most else []
    return between.join([*items[:most], *more])


def listed(parts: Iterable[str], conjunction: str) -> str:
    """As in a sentence: a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} {conjunction} {last}" if first else last
