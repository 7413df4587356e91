"""Jobs side by side: what was asked for differently, what came of it, and size against quality in one chart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError as Unreadable
from sqlalchemy import select
from sqlalchemy.orm import Session

from pared.errors import NotFound, ValidationError
from pared.report_page import charts, numbers, texts
from pared.report_page.charts import Chart, Mark, Stroke
from pared.report_page.sections import Cell, latency_pairs, quality_cell
from pared.report_words import factor
from pared.reports import Measurement
from pared.state.jobs import jobs_of
from pared.state.session import Sessions
from pared.state.tables import Job
from pared.wording import metric_name
from service.dependencies import check_id
from service.pages.job_page import heading_of, named_by
from service.pages.words import STATUSES, lasting, moment

FEWEST, MOST = 2, 5
MOST_FIELDS = 60
_LETTERS = "ABCDE"
_ABSENT = object()


@dataclass(frozen=True)
class Compared:
    """One of the jobs."""

    letter: str
    id: str
    heading: str
    state: str
    made: str
    verdict: str
    before: Measurement | None
    after: Measurement | None
    """None where there is no result that can be read."""
    seconds: float | None


@dataclass(frozen=True)
class Row:
    """Something of each job."""

    name: str
    cells: Sequence[Cell]


def context_of(sessions: Sessions, owner: str, ids: Sequence[str]) -> dict[str, Any]:
    """What the template names.

    Raises:
        ValidationError: these are too few jobs, or too many.
        NotFound: the owner has no such job.
    """
    ids = list(dict.fromkeys(ids))
    if not FEWEST <= len(ids) <= MOST:
        raise ValidationError(f"Tick {FEWEST} to {MOST} jobs of the list to compare them; {len(ids)} were ticked.")
    for each in ids:
        check_id(each, "job")
    with sessions() as session:
        rows = {row.id: row for row in session.scalars(jobs_of(owner).where(Job.id.in_(ids)))}
        for missing in set(ids) - rows.keys():
            raise NotFound(f"There is no job {missing}.")
        jobs = [rows[each] for each in ids]
        named = named_by(session, owner, jobs)
        results = _results(session, ids)
    compared = [
        _compared(letter, job, heading_of(job.type, named[job.id]), results.get(job.id))
        for letter, job in zip(_LETTERS, jobs, strict=False)
    ]
    files = {each.id: each.name for found in named.values() for each in found}
    fields = _differing([job.spec for job in jobs], files)
    shown, more = texts.first(fields, MOST_FIELDS, "fields that differ")
    return {"jobs": compared, "fields": shown, "more_fields": more, "figures": list(_figures(compared)),
            "chart": _chart(compared)}  # fmt: skip


def _results(session: Session, ids: Sequence[str]) -> dict[str, Any]:
    """Parts of the reports, which are not read whole."""
    columns = (
        Job.report["verdict"].as_string().label("verdict"),
        Job.report["before"].as_json().label("before"),
        Job.report["after"].as_json().label("after"),
    )
    ended = (Job.id.in_(ids), Job.status == "succeeded")
    return {row.id: row for row in session.execute(select(Job.id, *columns).where(*ended))}


def _compared(letter: str, job: Job, heading: str, result: Any) -> Compared:
    before = after = None
    verdict = "" if job.error is None else str(job.error.get("title"))
    if result is not None:
        verdict = texts.sentence(result.verdict)
        try:
            before, after = Measurement.model_validate(result.before), Measurement.model_validate(result.after)
        except Unreadable:  # of an earlier version
            before = after = None
    took = None if job.started_at is None or job.finished_at is None else job.finished_at - job.started_at
    made = moment(job.created_at)
    return Compared(letter, job.id, heading, STATUSES[job.status], made, verdict, before, after, took)


# -- specs ----------------------------------------------------------------------------------------


def _differing(specs: Sequence[Mapping[str, Any]], files: Mapping[str, str]) -> list[Row]:
    """The fields that are not the same in all specs."""
    flat = [_flat(spec) for spec in specs]
    names = list(dict.fromkeys(name for each in flat for name in each))
    rows = []
    for name in names:
        values = [each.get(name, _ABSENT) for each in flat]
        if any(value != values[0] for value in values):
            rows.append(Row(texts.name(name), [Cell(_value(value, files)) for value in values]))
    return rows


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Field by field; those of parts with the name of the part before theirs."""
    if isinstance(value, dict) and value:
        parts: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        parts = list(enumerate(value, 1))
    else:
        return {name: value}
    return {
        path: found for key, part in parts for path, found in _flat(part, f"{name}.{key}" if name else f"{key}").items()
    }


def _value(value: Any, files: Mapping[str, str]) -> str:
    if value is _ABSENT or value is None:
        return numbers.NOTHING
    if isinstance(value, str):
        return files.get(value) or texts.name(value)
    return texts.name(json.dumps(value, ensure_ascii=False))


# -- figures --------------------------------------------------------------------------------------


def _figures(jobs: Sequence[Compared]) -> list[Row]:
    def row(name: str, of: Callable[[Measurement, Measurement], Cell]) -> Row:
        cells = [of(job.before, job.after) if job.before and job.after else Cell(numbers.NOTHING) for job in jobs]
        return Row(name, cells)

    def counted(field: str) -> Callable[[Measurement, Measurement], Cell]:
        def cell(before: Measurement, after: Measurement) -> Cell:
            was, now = getattr(before, field), getattr(after, field)
            change = "" if was is None or now is None else factor(was, now, "fewer", "more")
            return Cell(numbers.count(now), change)

        return cell

    def latency(before: Measurement, after: Measurement) -> Cell:
        pairs = latency_pairs(before, after)
        if not pairs:
            return Cell(numbers.NOTHING)
        old, new = pairs[-1]
        small = f"{numbers.milliseconds(old.p50_ms)} before, batch {numbers.count(new.batch_size)}, {new.device}"
        return Cell(numbers.milliseconds(new.p50_ms), small)

    def lost(before: Measurement, after: Measurement) -> Cell:
        if before.quality is None or after.quality is None:
            return Cell(numbers.NOTHING)
        metric = after.quality.metric
        return Cell(numbers.change(metric, after.quality.test.value - before.quality.test.value), metric_name(metric))

    return [
        Row("State", [Cell(job.state) for job in jobs]),
        row("File", lambda was, now: Cell(numbers.size(now.file_bytes),
                                          factor(was.file_bytes, now.file_bytes, "smaller", "larger"))),
        row("Parameters", counted("parameters")),
        row("Non-zero parameters", counted("nonzero_parameters")),
        row("Multiply-adds of a sample", counted("macs")),
        row("Latency, median", latency),
        row("Test quality", lambda _, now: quality_cell(now.quality) if now.quality else Cell(numbers.NOTHING)),
        row("Change of it", lost),
        Row("Time", [Cell(lasting(job.seconds) or numbers.NOTHING) for job in jobs]),
        Row("Verdict", [Cell(job.verdict or numbers.NOTHING) for job in jobs]),
    ]  # fmt: skip


def _chart(jobs: Sequence[Compared]) -> Chart | None:
    """Test quality against the bytes of the file; None without two results of one measure."""
    placed = [(job, job.after.quality) for job in jobs if job.after and job.after.quality]
    placed = [(job, quality) for job, quality in placed if quality.metric == placed[0][1].metric]
    if len(placed) < FEWEST:
        return None
    metric = placed[0][1].metric
    said = partial(numbers.score, metric)
    points = []
    befores: dict[tuple[float, float], list[str]] = {}
    for job, quality in placed:
        if job.before is None or job.after is None:
            continue
        where = [numbers.finite(value) for value in (job.after.file_bytes, quality.test.value)]
        points.append((job, quality, where[0] or 0.0, where[1] or 0.0))
        if job.before.quality and job.before.quality.metric == metric:
            was = numbers.finite(job.before.file_bytes) or 0.0, numbers.finite(job.before.quality.test.value) or 0.0
            befores.setdefault(was, []).append(job.letter)
    ends = [numbers.finite(end) for _, quality, _, _ in points for end in (quality.test.low, quality.test.high)]
    xs = [x for _, _, x, _ in points] + [x for x, _ in befores]
    ys = [y for *_, y in points] + [y for _, y in befores] + [end for end in ends if end is not None]
    title = f"Test {metric_name(metric)} against the size of the file"
    y_text = partial(numbers.on_axis, metric)
    chart, x, y = charts.laid_out("compared", title, ("bytes of the file", ""), xs, ys, y_text=y_text)
    for (size, value), letters in befores.items():
        chart.marks.append(Mark(x(size), y(value), "open", f"before {', '.join(letters)}: {said(value)}"))
    parts = []
    for job, quality, size, value in points:
        low, high = (numbers.finite(end) for end in (quality.test.low, quality.test.high))
        if low is not None and high is not None:
            chart.strokes.append(Stroke(x(size), y(low), x(size), y(high), "tick"))
        told = f"{job.letter}: {numbers.size(size)}, {said(value)}"
        chart.marks.append(Mark(x(size), y(value), "met", told, f"/jobs/{job.id}", job.letter))
        parts.append(told)
    chart.legend = [("met", "result, with its 95 % interval")]
    if befores:
        chart.legend.append(("open", "before"))
    chart.description = f"{'; '.join(parts)}."
    return chart
