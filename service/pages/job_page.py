"""What the page of one job shows: its state, its stages, its curves and its log, and at the end its result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args
from urllib.parse import quote, urlencode

from pydantic import ValidationError
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from pared.job_types import BY_NAME
from pared.report_page import numbers, texts, told
from pared.report_page.charts import Chart
from pared.report_page.curves import line_chart
from pared.reports import Metric, Point, Report
from pared.specs import Reference
from pared.state.jobs import find_job
from pared.state.keys import Caller
from pared.state.references import table_of
from pared.state.session import Sessions
from pared.state.tables import Job, JobEvent
from pared.statuses import ENDED, Stage
from pared.wording import metric_name
from service.job_views import views_of
from service.pages.words import STATUSES, TONES, clock, lasting, moment
from service.schemas import JobView

LOG_LINES, LOG_PAGE = 100, 500
"""Lines of the log on the page of the job, and on a page of the log."""
LINE_CHARACTERS = 2_000
MOST_METRICS = 6_000
"""Of a job that runs, the newest so many are drawn."""
MOST_CHARTS = 8
MOST_LAYERS = 40
"""Of a result; the report, as a file or as JSON, has more."""

STAGES: dict[str, str] = {
    "validate": "Check the files",
    "baseline": "Measure the original",
    "compress": "Make it smaller",
    "retrain": "Train",
    "evaluate": "Measure the result",
    "export": "Write the files",
}
_MARKS = {"done": "✓", "now": "▸", "failed": "✗", "open": "○", "skipped": "–"}
_MARK_WORDS = {"done": "done", "now": "under way", "failed": "ended here", "open": "to come", "skipped": "not needed"}
_VALIDATION = "validation_"


@dataclass(frozen=True)
class StageRow:
    """One of the stages of a job."""

    name: str
    state: str
    mark: str
    words: str
    took: str


@dataclass(frozen=True)
class Line:
    """A line of the log."""

    seq: int
    at: str
    text: str


@dataclass(frozen=True)
class Named:
    """A model or data set that a job names."""

    role: str
    name: str
    href: str
    """Empty: it is there no more."""
    id: str


def context_of(sessions: Sessions, caller: Caller, job_id: str) -> dict[str, Any]:
    """What the templates of a job's page name. Raises NotFound."""
    with sessions() as session:
        row = find_job(session, caller.owner, job_id)
        [view] = views_of(session, [row])
        inputs = named_by(session, caller.owner, [row])[row.id]
        log, older = log_lines(session, job_id, LOG_LINES)
        entered = session.execute(_events(job_id, "status", JobEvent.created_at, JobEvent.data)).all()
        metrics: Sequence[Mapping[str, Any]] = []
        report: Any = None
        if row.status == "succeeded":
            report = session.scalar(select(Job.report).where(Job.id == job_id))
        else:
            newest = _events(job_id, "metric", JobEvent.data, newest_first=True).limit(MOST_METRICS)
            metrics = session.scalars(newest).all()[::-1]
    now = time.time()
    what = heading_of(view.type, inputs)
    context: dict[str, Any] = {
        "job": view,
        "state": _state(view),
        "tone": TONES.get(view.status, ""),
        "ended": view.status in ENDED,
        "heading": what[0].upper() + what[1:],
        "doing": _doing(view),
        "tab": f"{_tab(view)} · {what}",
        "named": inputs,
        "made": moment(row.created_at),
        "took": lasting(None if row.started_at is None else (row.finished_at or now) - row.started_at),
        "percent": round(100 * view.progress.fraction),
        "stage_rows": _stages(view, entered, now),
        "curves": _curves(metrics),
        "log": log,
        "older": older,
        "may_submit": "submit" in caller.scopes,
        "artifacts": [
            (each, f"/v1/jobs/{job_id}/artifacts/{quote(each.name, safe='')}", numbers.size(each.size_bytes))
            for each in (view.result.artifacts if view.result else [])
        ],
        "told": False,
    }
    context["spec"], context["more_spec"] = texts.spec_json(view.spec)
    return context | _result(view, report)


def log_lines(session: Session, job_id: str, most: int, before: int | None = None) -> tuple[list[Line], int | None]:
    """Lines of a job's log in order: the newest, or those before an event. With the event before which there are more.

    Args:
        before: the number of an event.
    """
    query = _events(job_id, "log", JobEvent.seq, JobEvent.created_at, JobEvent.data, newest_first=True)
    if before is not None:
        query = query.where(JobEvent.seq < before)
    rows = session.execute(query.limit(most + 1)).all()
    lines = [
        Line(row.seq, clock(row.created_at), texts.sentence(str(row.data.get("text", "")), LINE_CHARACTERS))
        for row in reversed(rows[:most])
    ]
    return lines, lines[0].seq if len(rows) > most else None


def named_by(session: Session, owner: str, jobs: Sequence[Job]) -> dict[str, list[Named]]:
    """The models and data sets that these jobs name, by the ids of the jobs."""
    references: dict[str, list[Reference]] = {
        job.id: BY_NAME[job.type].references(job.spec)[:10] if job.type in BY_NAME else [] for job in jobs
    }
    uploads = {each.id for found in references.values() for each in found if each.is_upload}
    names: dict[str, str] = {}
    for prefix in ("mdl_", "dst_"):
        ids = [each for each in uploads if each.startswith(prefix)]
        if ids:
            table = table_of(ids[0])
            there = (table.owner == owner, table.id.in_(ids), table.deleted_at.is_(None))
            names |= dict(session.execute(select(table.id, table.filename).where(*there)).all())
    return {job_id: [_named(each, names) for each in found] for job_id, found in references.items()}


def heading_of(job_type: str, named: Sequence[Named]) -> str:
    """What a job is called: what it does, and to what."""
    return f"{job_type} of {named[0].name}" if named else job_type


def _named(reference: Reference, names: Mapping[str, str]) -> Named:
    folder = "models" if reference.kind == "model" else "datasets"
    role = {"dataset": "data set"}.get(reference.role, reference.role.replace(".", " "))
    if not reference.is_upload:
        return Named(role, reference.id, f"/{folder}/{quote(reference.id)}", reference.id)
    name = names.get(reference.id)
    if name is None:
        return Named(role, f"{reference.id} (deleted)", "", reference.id)
    return Named(role, texts.name(name), f"/{folder}/{reference.id}", reference.id)


def _events(job_id: str, kind: str, *columns: Any, newest_first: bool = False) -> Select[Any]:
    query = select(*columns).where(JobEvent.job_id == job_id, JobEvent.kind == kind)
    return query.order_by(JobEvent.seq.desc() if newest_first else JobEvent.seq)


def _state(view: JobView) -> str:
    if view.status == "queued" and view.attempt:
        return "Waiting to go on"
    return STATUSES[view.status]


def _tab(view: JobView) -> str:
    """What the title of the page begins with, as tabs show little of it."""
    if view.status == "running":
        return f"{round(100 * view.progress.fraction)} %"
    marks = {"succeeded": "✓ ", "failed": "✗ ", "canceled": "✗ "}
    return marks.get(view.status, "") + _state(view)


def _doing(view: JobView) -> str:
    """What happens now, in a sentence."""
    if view.status == "queued":
        before = (view.queue_position or 1) - 1
        if not before:
            return "It is next." if view.waits_for else "It is next: a worker that is free takes it."
        return f"{before:,} job{' comes' if before == 1 else 's come'} before it."
    if view.status == "canceling":
        return "Its worker ends it within seconds."
    if view.status != "running":
        return ""
    progress, parts = view.progress, []
    if view.stage is not None:
        parts.append(STAGES.get(view.stage, texts.name(view.stage)))
    if progress.epoch and progress.epochs:
        parts.append(f"epoch {progress.epoch:,} of {progress.epochs:,}")
    if progress.eta_s is not None:
        parts.append(f"about {lasting(max(1.0, progress.eta_s))} left")
    return ", ".join(parts)


def _stages(view: JobView, events: Sequence[Any], now: float) -> list[StageRow]:
    """The stages in their order, each with how far it is and how long it took; those of the last attempt."""
    seconds: dict[str, float] = {}
    last: tuple[str, float] | None = None
    for at, data in events:
        if last is not None:
            seconds[last[0]] = seconds.get(last[0], 0.0) + max(0.0, at - last[1])
        stage = data.get("stage")
        last = (stage, at) if isinstance(stage, str) else None
        if stage is None and data.get("status") not in ENDED:  # an attempt begins
            seconds = {}
    if view.status in ("running", "canceling") and last is not None:
        seconds[last[0]] = seconds.get(last[0], 0.0) + max(0.0, now - last[1])
    known = get_args(Stage)
    entered = [known.index(name) for name in seconds if name in known]
    ended_in = next((data["stage"] for _, data in reversed(events) if data.get("stage") in known), None)
    rows = []
    for place, name in enumerate(known):
        if name in seconds and name == view.stage and view.status not in ENDED:
            state = "now"
        elif name in seconds and name == ended_in and view.status in ("failed", "canceled"):
            state = "failed"
        elif name in seconds:
            state = "done"
        else:
            passed = bool(entered) and place < max(entered)
            state = "skipped" if view.status == "succeeded" or passed else "open"
        took = lasting(seconds[name]) if name in seconds else ""
        rows.append(StageRow(STAGES[name], state, _MARKS[state], _MARK_WORDS[state], took))
    return rows


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """A chart of each training's validation score and loss so far."""
    lines: dict[tuple[str, str], dict[float, float | None]] = {}
    for each in metrics:
        step, name = numbers.finite(each.get("step")), str(each.get("name"))
        if step is not None and name != "validation_loss":
            # A job that goes on after a loss of its worker repeats epochs.
            lines.setdefault((str(each.get("phase")), name), {})[step] = numbers.finite(each.get("value"))
    drawn = []
    for number, ((phase, name), values) in enumerate([*lines.items()][-MOST_CHARTS:]):
        points = sorted(values.items())
        if all(value is None for _, value in points):
            continue
        metric = name.removeprefix(_VALIDATION) if name.startswith(_VALIDATION) else ""
        if metric in get_args(Metric):
            title = f"validation {metric_name(metric)}"
            said = (partial(numbers.score, metric), partial(numbers.on_axis, metric))
        else:
            title = "training loss" if name == "train_loss" else texts.name(name.replace("_", " "))
            said = (numbers.short, numbers.short)  # type: ignore[assignment]
        drawn.append(line_chart(f"live{number}", f"{texts.name(phase)}: {title}", points, said))
    return drawn


def _result(view: JobView, report: Any) -> dict[str, Any]:
    """What the sections of the report show, where there is one that can be shown."""
    if view.status != "succeeded":
        return {}
    try:
        checked = Report.model_validate(report)
    except ValidationError:  # of an earlier version
        return {}

    def pick(point: Point) -> str:
        amount = numbers.finite(point.amount)
        if amount is None or not 0 < amount < 1:
            return ""
        more = {} if point.round_to is None else {"round_to": point.round_to}
        return f"/jobs/new?{urlencode({'from': view.id, 'amount': f'{amount:.6g}'} | more)}"

    return told(checked, pick, most_layers=MOST_LAYERS) | {"told": True, "no_points": _why_no_points(checked)}


def _why_no_points(report: Report) -> str:
    """Why there is a goal, and no point of a search to pick another one from; empty where that is not so."""
    if report.goal is None or report.frontier:
        return ""
    if report.type == "quantize":
        return "The search chose which layers stay in float32: there is no amount of which another one could be picked."
    if report.goal.amount is not None:
        return "The points that the search tried are in the report of the step that searched, among the files."
    return "No amount was looked for: each step says its own, and the goal was judged at the end."
