"""Owns what a notebook shows of a job while it runs: one piece of HTML, put in the place of the one before."""

from __future__ import annotations

import sys
import time
from collections import deque
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pared.notebook.records import html_of_job
from pared.report_page import charts, numbers, texts
from pared.report_page.charts import Chart, Mark

if TYPE_CHECKING:
    from pared.client.records import Event, JobRecord

_EVERY_S = 0.25
"""No piece is sent sooner after the last: the browser draws each of them."""
_LINES = 6
_MOST_EPOCHS = 2_000


class Course:
    """What the events of a job told so far."""

    def __init__(self) -> None:
        self.log: deque[str] = deque(maxlen=_LINES)
        self._stages: list[tuple[str, float]] = []
        self._ended_at: float | None = None
        self._phase, self._metric = "", ""
        self._points: dict[float, float | None] = {}

    def add(self, event: Event) -> None:
        """Note one event."""
        data = event.data
        match event.event:
            case "status" if data.get("stage"):
                if not self._stages or self._stages[-1][0] != data["stage"]:
                    self._stages.append((str(data["stage"]), time.monotonic()))
            case "metric":
                self._metric_came(data)
            case "log":
                self.log.append(str(data.get("text", "")))
            case "done":
                self._ended_at = time.monotonic()

    def stage_rows(self) -> list[tuple[str, str, bool]]:
        """Of the last stages the name, how long it took (it is seen to take), and whether it is the one at work."""
        now = self._ended_at or time.monotonic()
        ends = [*(began for _, began in self._stages[1:]), now][: len(self._stages)]
        rows = [
            (texts.name(name), numbers.seconds(end - began), number == len(self._stages))
            for number, ((name, began), end) in enumerate(zip(self._stages, ends, strict=True), 1)
        ]
        return rows[-12:]

    def chart(self, key: str) -> Chart | None:
        """The newest training, epoch by epoch: validation, or the loss where nothing is validated."""
        known = [(at, value) for at, value in sorted(self._points.items()) if value is not None]
        if len(known) < 2:
            return None
        title = f"{texts.name(self._phase)}: {texts.name(self._metric.replace('_', ' '))}"
        drawn, x, y = charts.laid_out(
            f"{key}live", title, ("epoch", ""), [at for at, _ in known], [value for _, value in known], whole_x=True
        )
        drawn.path = charts.path(charts.thinned(known), x, y)
        last, end = known[-1]
        drawn.marks = [Mark(x(last), y(end), "dot", f"epoch {last:g}: {numbers.short(end)}")]
        drawn.description = f"{numbers.short(end)} in epoch {last:g}."
        return drawn

    def _metric_came(self, data: dict[str, Any]) -> None:
        phase, name = str(data.get("phase", "")), str(data.get("name", ""))
        step = numbers.finite(data.get("step"))
        if step is None or name == "validation_loss":
            return
        if phase != self._phase:
            self._phase, self._metric, self._points = phase, name, {}
        elif name != self._metric:
            if self._metric != "train_loss":
                return
            self._metric, self._points = name, {}  # a score came, which says more than the loss
        if len(self._points) < _MOST_EPOCHS:
            self._points[step] = numbers.finite(data.get("value"))


class Watch:
    """A job on the screen: in a notebook a piece that is updated in its place, elsewhere a line whenever it changed."""

    def __init__(self, job: JobRecord) -> None:
        """Args: job: as of the last look; its status, stage and progress are set as events tell them."""
        self._job = job
        self._course = Course()
        self._handle: Any = None
        self._in_notebook = in_notebook()
        self._shown_at, self._line = 0.0, ""

    def begin(self) -> None:
        """Show the job as it is."""
        if self._in_notebook:
            self._handle = import_module("IPython.display").display(self, display_id=True)
        else:
            self._print()

    def add(self, event: Event) -> None:
        """Note an event, and show it unless the last was shown just now."""
        self._course.add(event)
        self._job._told(event)  # noqa: SLF001 - the record's own way to take an event in
        if not self._in_notebook:
            self._print()
        elif time.monotonic() - self._shown_at >= _EVERY_S:
            self._update()

    def end(self) -> None:
        """Show how the job ended."""
        if self._in_notebook:
            self._update()
        else:
            self._print()

    def _update(self) -> None:
        self._shown_at = time.monotonic()
        self._handle.update(self)

    def _print(self) -> None:
        line = str(self._job)
        if line != self._line:
            self._line = line
            print(line, flush=True)  # noqa: T201 - what `watch` is for

    def __repr__(self) -> str:
        return str(self._job)

    def _repr_html_(self) -> str:
        return html_of_job(self._job, self._course)


def in_notebook() -> bool:
    """Whether what is displayed goes to a page, which can put it in another's place. IPython is not loaded for this."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None
