"""Figures of a report as text. Any number may be missing, huge or not finite: reports hold what a model's side said."""

from __future__ import annotations

from typing import Any

from pared.wording import in_points

NOTHING = "–"
_SPACE = "\N{NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"
_EXACT = 10**15
"""Counts from here on are told by their order alone."""
_LARGEST = 1e100
"""Sums and differences of such numbers are still within what a float holds."""


def finite(value: Any) -> float | None:
    """The value as a float; None for what is no number, or too large a one to draw."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= _LARGEST else None  # NaN is not either


def count(value: Any) -> str:
    """A whole number with its thousands apart: 85,066."""
    number = finite(value)
    if number is None:
        return NOTHING
    return f"{value:,}".replace("-", _MINUS) if abs(number) < _EXACT else short(number)


def short(value: float | None) -> str:
    """A number in few characters: 85.1k, 1.26M, 0.0123."""
    number = finite(value)
    if number is None:
        return NOTHING
    for limit, letter in ((1e15, "e"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return (f"{number:.2e}" if letter == "e" else f"{number / limit:.3g}{letter}").replace("-", _MINUS)
    return f"{number:.3g}".replace("-", _MINUS)


def size(value: Any) -> str:
    """Bytes in the unit that suits them: 92.9 kB."""
    number = finite(value)
    if number is None:
        return NOTHING
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(number) >= limit:
            scaled = number / limit
            return f"{scaled:.1f}{_SPACE}{unit}" if scaled < 1e6 else f"{short(scaled)}{_SPACE}{unit}"
    return f"{number:.0f}{_SPACE}bytes"


def percent(share: Any, digits: int = 1) -> str:
    """A share as a percentage: 98.3 %."""
    number = finite(share)
    if number is None:
        return NOTHING
    text = f"{number * 100:.{digits}f}" if abs(number) < 1e6 else short(number * 100)
    return f"{text}{_SPACE}%".replace("-", _MINUS)


def seconds(value: Any) -> str:
    """A time: 0.3 s, 12 min 5 s, 3 h 20 min."""
    number = finite(value)
    if number is None or number < 0 or number > 1e9:
        return NOTHING
    if number < 60:
        return f"{number:.1f}{_SPACE}s"
    minutes, rest = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes}{_SPACE}min {rest}{_SPACE}s"
    return f"{minutes // 60:,}{_SPACE}h {minutes % 60}{_SPACE}min"


def milliseconds(value: Any) -> str:
    """A latency: 0.149 ms."""
    number = finite(value)
    return NOTHING if number is None else f"{short(number)}{_SPACE}ms"


def score(metric: str, value: Any) -> str:
    """A value of a metric: 98.33 % of what is a share, else 0.9833."""
    number = finite(value)
    if number is None:
        return NOTHING
    if in_points(metric):
        return percent(number, 2)
    return (f"{number:.4f}" if abs(number) < 1e6 else short(number)).replace("-", _MINUS)


def on_axis(metric: str, value: Any) -> str:
    """As `score`, with no more digits than a place on an axis needs."""
    number = finite(value)
    if number is None or not in_points(metric) or abs(number) >= 1e6:
        return short(number)
    return f"{number * 100:.4g}{_SPACE}%".replace("-", _MINUS)


def change(metric: str, value: Any) -> str:
    """A difference of two values of a metric: −1.11 points, or +0.0123."""
    number = finite(value)
    if number is None:
        return NOTHING
    scaled, digits = (number * 100, 2) if in_points(metric) else (number, 4)
    text = f"{scaled:+.{digits}f}" if abs(scaled) < 1e6 else f"{scaled:+.2e}"
    text = text if float(text) else text[1:]  # nothing has no sign
    unit = f"{_SPACE}points" if in_points(metric) else ""
    return text.replace("-", _MINUS) + unit


def probability(value: Any) -> str:
    """A p-value: 0.12, or 7.5e−09."""
    number = finite(value)
    return NOTHING if number is None else f"{number:.2g}".replace("-", _MINUS)


def share(part: Any, whole: Any) -> float | None:
    """How much of the whole a part is; None where that cannot be said."""
    above, below = finite(part), finite(whole)
    if above is None or not below:
        return None
    return finite(above / below)


def product(shape: list[int]) -> float | None:
    """How many numbers a tensor of this shape has; None where they are beyond counting."""
    total = 1.0
    try:
        for length in shape:
            total *= length
    except OverflowError:
        return None
    return finite(total)
