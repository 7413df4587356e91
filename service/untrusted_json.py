"""Owns reading JSON from outside: what cannot be stored and answered again is refused here."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 64
MAX_DIGITS = 300
MAX_MARKS = 10_000
"""Commas and opening brackets: a bound of the values in the text that is known before it is read."""


def parse(text: str | bytes) -> Any:
    """The value.

    Raises:
        ValueError: the message says what is wrong with the text.
    """
    encoded = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if sum(map(encoded.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise ValueError(f"it holds more than {MAX_MARKS:,} commas and brackets")
    try:
        value = json.loads(text, parse_int=_whole_number)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeError:
        raise ValueError("it holds text that is not Unicode") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    if _depth_exceeds(value, MAX_DEPTH):
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    return value


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it holds a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return True


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
