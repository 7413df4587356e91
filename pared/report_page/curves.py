"""The charts of a report: training, epoch by epoch, and the points that a search tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pared.report_page import charts, numbers, texts
from pared.report_page.charts import Chart, Mark, Symbol
from pared.report_page.sections import Table
from pared.reports import EpochRecord, Point, Report
from pared.wording import metric_name

MOST_PHASES, MOST_DOTS, MOST_EPOCHS, MOST_POINTS = 8, 40, 60, 300
"""Phases that have charts, dots of one line, rows of the table of epochs, and points of the search that are drawn."""
MOST_POINT_ROWS = 60

_LABELS_ONLY = "labels only"
"""The phase of a distillation in which the student is trained without its teacher; `best_epoch` is not of it."""


def phases(report: Report) -> dict[str, list[EpochRecord]]:
    """The epochs of each training, in order."""
    found: dict[str, list[EpochRecord]] = {}
    for record in report.history:
        found.setdefault(record.phase, []).append(record)
    return found


def training_charts(report: Report) -> tuple[list[Chart], str]:
    """Of each training the validation scores and the losses, and a sentence on what is not drawn."""
    found = phases(report)
    judged = [phase for phase in found if phase != _LABELS_ONLY]
    drawn: list[Chart] = []
    shown, note = texts.first(list(found), MOST_PHASES, "trainings")
    for number, phase in enumerate(shown):
        best = report.best_epoch if judged and phase == judged[-1] else None
        drawn += _of_phase(report, f"training{number}", phase, found[phase], best)
    return drawn, note


def _of_phase(report: Report, key: str, phase: str, records: list[EpochRecord], best: int | None) -> list[Chart]:
    quality = report.before.quality
    metric = "match" if quality is None else quality.metric
    name = texts.name(phase)
    drawn = []
    epochs = [(numbers.finite(record.epoch) or 0.0, record) for record in records]
    scores = [(epoch, numbers.finite(record.validation)) for epoch, record in epochs]
    if any(value is not None for _, value in scores):
        baseline = None if quality is None else numbers.finite(quality.validation)
        title = f"{name}: validation {metric_name(metric)}"
        said = partial(numbers.score, metric), partial(numbers.on_axis, metric)
        drawn.append(line_chart(key + "v", title, scores, said, best, baseline))
    losses = [(epoch, numbers.finite(record.train_loss)) for epoch, record in epochs]
    if any(value is not None for _, value in losses):
        drawn.append(line_chart(key + "l", f"{name}: training loss", losses, (numbers.short, numbers.short), best))
    return drawn


def line_chart(
    key: str,
    title: str,
    points: Sequence[tuple[float, float | None]],
    words: tuple[Callable[[float], str], Callable[[float], str]],
    best: int | None = None,
    baseline: float | None = None,
) -> Chart:
    """A curve over epochs, of which at least one has a value.

    Args:
        points: (epoch, value), each as `numbers.finite` gives it.
        words: for a value, in a sentence and on the axis.
        best: the epoch that is marked.
        baseline: a value that is drawn across.
    """
    said, on_axis = words
    known = [(at, value) for at, value in points if value is not None]
    ys = [value for _, value in known] + ([] if baseline is None else [baseline])
    chart, x, y = charts.laid_out(key, title, ("epoch", ""), [at for at, _ in known], ys, whole_x=True, y_text=on_axis)
    line = charts.thinned(points)
    chart.path = charts.path(line, x, y)
    (first, begin), (last, end) = known[0], known[-1]
    parts = [f"{said(begin)} in epoch {first:g}, {said(end)} in epoch {last:g}"]
    if len(known) <= MOST_DOTS:
        chart.marks = [Mark(x(at), y(value), "dot", f"epoch {at:g}: {said(value)}") for at, value in known]
    if len(line) < len(points):
        chart.note = f"Drawn from {len(line):,} of {len(points):,} epochs: the lowest and the highest of each stretch."
    at_best = next(((at, value) for at, value in known if at == best), None)
    if at_best is not None:
        told = f"best epoch, {at_best[0]:g}: {said(at_best[1])}"
        chart.marks.append(Mark(x(at_best[0]), y(at_best[1]), "best", told))
        chart.legend.append(("best", told))
        parts.append(told)
    if baseline is not None:
        chart.strokes.append(charts.across(chart, y(baseline), "baseline"))
        chart.legend.append(("baseline", f"before: {said(baseline)}"))
        parts.append(f"{said(baseline)} before")
    chart.description = f"{'; '.join(parts)}."
    return chart


def epoch_rows(report: Report) -> Table:
    """The epochs as a table; of many those from all over, and the best."""
    metric = "match" if report.before.quality is None else report.before.quality.metric
    table = Table(["Training", "Epoch", "Loss", "Validation", "Time"])
    best = [at for at, record in enumerate(report.history) if record.epoch == report.best_epoch]
    records, table.note = texts.spread(report.history, MOST_EPOCHS, "epochs", best[:MOST_PHASES])
    for record in records:
        score, taken = numbers.score(metric, record.validation), numbers.seconds(record.seconds)
        loss = numbers.short(record.train_loss)
        table.rows.append([texts.name(record.phase), numbers.count(record.epoch), loss, score, taken])
    return table


# -- the search for a goal ----------------------------------------------------------------------

_MEASURES = {
    "params": ("parameters", "parameters"),
    "macs": ("macs", "multiply-adds"),
    "file_bytes": ("file_bytes", "bytes of the file"),
}


Pick = Callable[[Point], str]
"""Where a point leads; an empty text: nowhere."""


def search_chart(report: Report, pick: Pick | None = None) -> Chart | None:
    """Quality against size of each point that was tried; None where quality was measured of none."""
    field, name = _size_of(report)
    points, note = texts.first(report.frontier, MOST_POINTS, "points")
    sizes = [(point, numbers.finite(getattr(point, field))) for point in points]
    placed = [(point, size) for point, size in sizes if size is not None]
    judged = [value for point, _ in placed if (value := numbers.finite(point.validation)) is not None]
    quality = report.before.quality
    if not judged or quality is None:
        return None

    said = partial(numbers.score, quality.metric)
    whole, baseline = numbers.finite(getattr(report.before, field)), numbers.finite(quality.validation)
    xs = [size for _, size in placed] + ([] if whole is None else [whole])
    ys = judged + ([] if baseline is None else [baseline])
    title = f"Validation {metric_name(quality.metric)} against {name} of every point tried"
    chart, x, y = charts.laid_out("search", title, (name, ""), xs, ys, y_text=partial(numbers.on_axis, quality.metric))
    chart.note = note
    for point, size in placed:
        value = numbers.finite(point.validation)
        words = f"amount {numbers.short(point.amount)}: {numbers.short(size)} {name}"
        href = "" if pick is None else pick(point)
        if value is None:
            mark = Mark(x(size), float(chart.bottom), "tick", f"{words}, quality not looked at", href)
        else:
            state: Symbol = "open" if point.met is None else "met" if point.met else "missed"
            mark = Mark(x(size), y(value), state, f"{words}, {said(value)}", href)
        chart.marks.append(mark)
    for point, size in placed:  # over all others
        value = numbers.finite(point.validation)
        if point.test is not None and value is not None:
            chart.marks.append(Mark(x(size), y(value), "result", "the result"))
    if baseline is not None:
        chart.strokes.append(charts.across(chart, y(baseline), "baseline"))
    # Of a pipeline the goal is that of the last result, and the points are those of an earlier one.
    goal = None if report.steps else report.goal
    limit = None if goal is None else numbers.finite(goal.target.get(_goal_of(field)))
    if limit is not None and whole is not None and x.low <= limit * whole <= x.high:
        chart.strokes.append(charts.upright(chart, x(limit * whole), "limit"))
    _explain(chart, report, said)
    return chart


def _explain(chart: Chart, report: Report, said: Callable[[float], str]) -> None:
    """The legend, of what is there alone, and the description."""
    words = {
        "met": "meets the goal",
        "missed": "misses the goal",
        "open": "not judged",
        "tick": "size alone was looked at",
        "result": "the result",
    }
    drawn = {mark.symbol for mark in chart.marks}
    chart.legend = [
        (symbol, words[symbol]) for symbol in ("met", "missed", "open", "tick", "result") if symbol in drawn
    ]
    if any(stroke.symbol == "baseline" for stroke in chart.strokes) and report.before.quality:
        chart.legend.append(("baseline", f"before: {said(report.before.quality.validation)}"))
    if any(stroke.symbol == "limit" for stroke in chart.strokes):
        chart.legend.append(("limit", "size asked for"))
    counts = [
        f"{sum(mark.symbol == symbol for mark in chart.marks):,} {words[symbol]}"
        for symbol in ("met", "missed", "open", "tick")
        if symbol in drawn
    ]
    chart.description = f"{len(report.frontier):,} points: {', '.join(counts)}. The table has them in figures."


def _size_of(report: Report) -> tuple[str, str]:
    """The size that the goal is about, else the parameters; non-zero ones where zeros are what is made."""
    for goal in report.goal.target if report.goal else ():
        field, name = _MEASURES.get(goal, ("", ""))
        if field and sum(getattr(point, field) is not None for point in report.frontier) > 1:
            break
    else:
        field, name = "parameters", "parameters"
    if field == "parameters" and any(point.nonzero_parameters != point.parameters for point in report.frontier):
        return "nonzero_parameters", "non-zero parameters"
    return field, name


def _goal_of(field: str) -> str:
    return {"parameters": "params", "nonzero_parameters": "params"}.get(field, field)


def point_rows(report: Report, pick: Pick | None = None) -> Table:
    """The points that were tried, as a table."""
    metric = "match" if report.before.quality is None else report.before.quality.metric
    columns = [
        "Amount",
        "Parameters",
        "Non-zero",
        "Multiply-adds",
        "File",
        "Latency left",
        "Validation",
        "Test",
        "Goal",
    ]
    table = Table(columns)
    kept = [at for at, point in enumerate(report.frontier) if point.test is not None]
    points, table.note = texts.spread(report.frontier, MOST_POINT_ROWS, "points", kept[:10])
    table.rows = [_point_row(point, metric) for point in points]
    table.links = [] if pick is None else [pick(point) for point in points]
    return table


def _point_row(point: Point, metric: str) -> list[str]:
    met = {True: "met", False: "missed", None: "not judged"}[point.met]
    return [
        numbers.percent(point.amount, 2),
        numbers.count(point.parameters),
        numbers.count(point.nonzero_parameters),
        numbers.count(point.macs),
        numbers.size(point.file_bytes),
        numbers.percent(point.latency),
        numbers.score(metric, point.validation),
        numbers.score(metric, point.test),
        met,
    ]
