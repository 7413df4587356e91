"""Where the lines and marks of a chart are, in the units of its SVG; the template draws them and escapes every text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pared.report_page.numbers import short

WIDTH, HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 34
_TICKS = 5
MOST_POINTS = 200
"""Of one line; a longer one keeps the lowest and the highest point of each stretch."""

Symbol = Literal["met", "missed", "open", "result", "best", "dot", "tick", "line", "baseline", "limit"]
"""How a mark or a line looks, which is also the name of its style."""


@dataclass(frozen=True)
class Mark:
    """One point that is drawn as a symbol."""

    x: float
    y: float
    symbol: Symbol
    title: str
    href: str = ""
    """Where it leads, on a page that leads anywhere."""
    label: str = ""
    """Written beside it."""


@dataclass(frozen=True)
class Stroke:
    """A straight line over the whole chart."""

    x1: float
    y1: float
    x2: float
    y2: float
    symbol: Symbol


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass
class Chart:
    """A chart, laid out."""

    key: str
    """Unlike that of any other chart of the page."""
    title: str
    description: str
    """The same in words, for who does not see it."""
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    path: str = ""
    marks: list[Mark] = field(default_factory=list)
    strokes: list[Stroke] = field(default_factory=list)
    legend: list[tuple[Symbol, str]] = field(default_factory=list)
    note: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM

    @property
    def leads(self) -> bool:
        """Whether any mark is a link."""
        return any(mark.href for mark in self.marks)


class Scale:
    """From values to places along an axis, linear or logarithmic."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, whole: bool = False) -> None:
        """A scale that holds these values.

        Args:
            values: at least one, each as `numbers.finite` gives it.
            start: where the axis begins.
            end: where it ends.
            whole: values are numbers of epochs, which have no parts.
        """
        low, high = min(values), max(values)
        self.log = not whole and low > 0 and high / low > 50
        if not self.log:
            margin = 0.0 if whole and high > low else (high - low) * 0.06 or abs(high) * 0.05 or 0.5
            low, high = low - margin, high + margin
        self.low, self.high, self._whole = low, high, whole
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        """The place of a value, with one decimal."""
        low, high = self._on_axis(self.low), self._on_axis(self.high)
        part = (self._on_axis(value) - low) / (high - low or 1.0)
        return round(self._start + part * (self._end - self._start), 1)

    def ticks(self, label: Callable[[float], str]) -> list[Tick]:
        """Labelled places, at round values."""
        values = self._decades() if self.log else self._steps()
        return [Tick(self(value), label(value)) for value in values if self.low <= value <= self.high]

    def _on_axis(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def _steps(self) -> list[float]:
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next((power * factor for factor in (1, 2, 5, 10) if power * factor >= rough), rough)
        if self._whole:
            step = max(1.0, round(step))
        first = math.ceil(self.low / step)
        return [(first + number) * step for number in range(_TICKS + 3)]

    def _decades(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, (last - first) // _TICKS)
        powers = range(first, last + 1, every)
        factors = (1, 2, 5) if last - first <= 2 else (1,)
        return [factor * 10.0**power for power in powers for factor in factors if power > -300]


def laid_out(
    key: str,
    title: str,
    axes: tuple[str, str],
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    whole_x: bool = False,
    y_text: Callable[[float], str] = short,
) -> tuple[Chart, Scale, Scale]:
    """An empty chart with axes that hold these values, and its two scales."""
    x = Scale(xs, _LEFT + 8, WIDTH - _RIGHT - 8, whole=whole_x)
    y = Scale(ys, HEIGHT - _BOTTOM - 6, _TOP + 6)
    chart = Chart(key, title, "", *axes, x_ticks=x.ticks(short), y_ticks=y.ticks(y_text))
    return chart, x, y


def across(chart: Chart, y: float, symbol: Symbol) -> Stroke:
    """A line from left to right."""
    return Stroke(chart.left, y, chart.right, y, symbol)


def upright(chart: Chart, x: float, symbol: Symbol) -> Stroke:
    """A line from bottom to top."""
    return Stroke(x, chart.bottom, x, chart.top, symbol)


def path(points: Iterable[tuple[float, float | None]], x: Scale, y: Scale) -> str:
    """The path of a line, broken where a value is missing."""
    steps = []
    on = False
    for at, value in points:
        if value is not None:
            steps.append(f"{'L' if on else 'M'}{x(at):g} {y(value):g}")
        on = value is not None
    return "".join(steps)


def thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most `MOST_POINTS` of a line: of each stretch the lowest and the highest point, and both ends."""
    if len(points) <= MOST_POINTS:
        return list(points)
    kept = {0, len(points) - 1}
    stretches = MOST_POINTS // 2 - 1
    for number in range(stretches):
        stretch = range(len(points) * number // stretches, len(points) * (number + 1) // stretches)
        known = [(value, at) for at in stretch if (value := points[at][1]) is not None]
        kept.update({min(known)[1], max(known)[1]} if known else {stretch[0]})
    return [points[at] for at in sorted(kept)]
