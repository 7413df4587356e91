"""Owns what the pieces say: records turned into rows of text and widths of bars, for the templates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pared.notebook.style import scoped_style
from pared.report_page import curves, environment, numbers, sections, texts
from pared.report_page.charts import Chart
from pared.report_page.sections import Bars, Cell, MeasureRow, Table, Tile
from pared.report_words import factor
from pared.reports import Plan, PlannedLayer, Report

if TYPE_CHECKING:
    from pared.client.records import JobRecord, UploadRecord
    from pared.notebook.live import Course

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_LAYERS = 60
"""Rows of the table of layers: a notebook keeps what it shows."""


def html_of_report(report: Report) -> str:
    """The verdict, the figures, and what lies behind them folded."""
    key = _key(report.model_dump_json())
    layers, more_layers = sections.layer_rows(report.layers)
    classes, more_classes, class_score = sections.class_rows(report)
    training, more_training = curves.training_charts(report)
    search = curves.search_chart(report)
    warnings, more_warnings = texts.first(_notes(report), sections.MOST_SENTENCES, "warnings")
    return _filled(
        "report.html.j2",
        label=f"Report of a {texts.name(report.type)} job",
        type=texts.name(report.type),
        task=texts.name(report.task or ""),
        device=texts.name(report.reproduce.device),
        verdict=texts.sentence(sections.verdict_without_goal(report), texts.PARAGRAPH),
        goal=report.goal,
        goal_sentence="" if report.goal is None else texts.sentence(report.goal.sentence, texts.PARAGRAPH),
        tiles=list(sections.tiles(report)),
        warnings=warnings,
        more_warnings=more_warnings,
        measures=list(sections.measures(report)),
        comparison=list(sections.comparison_sentences(report)),
        search=None if search is None else _renamed(search, key),
        points=curves.point_rows(report),
        steps=sections.step_rows(report) if report.steps else None,
        layers=layers[:_MOST_LAYERS],
        more_layers=_of_many("layers", len(layers), len(report.layers)) or more_layers,
        has_precision=any(layer.precision for layer in layers),
        has_reason=any(layer.reason for layer in layers),
        training=[_renamed(chart, key) for chart in training],
        more_training=more_training,
        classes=classes,
        more_classes=more_classes,
        class_score=class_score,
    )


def html_of_plan(plan: Plan) -> str:
    """The verdict, sizes before and after, and what each layer would lose."""
    before, after = plan.before, plan.after
    tiles = [Tile("Parameters", factor(before.parameters, after.parameters, "fewer", "more") or numbers.NOTHING,
                  f"{numbers.short(before.parameters)} → {numbers.short(after.parameters)}")]  # fmt: skip
    if before.macs and after.macs:
        tiles += [Tile("Multiply-adds", factor(before.macs, after.macs, "fewer", "more") or numbers.NOTHING,
                       f"{numbers.short(before.macs)} → {numbers.short(after.macs)}")]  # fmt: skip
    files = []
    for name, file in list(plan.files.items())[: sections.MOST_ROWS]:
        about = "" if file.exact else "about "
        was, now = numbers.size(before.file_bytes), f"{about}{numbers.size(file.size_bytes)}"
        change = factor(before.file_bytes, file.size_bytes, "smaller", "larger")
        files.append(MeasureRow(texts.name(name), Cell(was), Cell(now), change))
    layers = [_planned(layer, plan.layers) for layer in plan.layers[:_MOST_LAYERS]]
    notes = [*plan.notes, *plan.warnings, *(f"{each.format}: {each.detail}" for each in plan.failed_outputs)]
    shown, more_notes = texts.first(notes, sections.MOST_SENTENCES, "notes")
    steps = Table(["Step", "Parameters", "Non-zero", "File"])
    for name, size in [("upload", before), *((texts.name(step.type), step) for step in plan.steps)]:
        counts = numbers.count(size.parameters), numbers.count(size.nonzero_parameters), numbers.size(size.file_bytes)
        steps.rows.append([name, *counts])
    return _filled(
        "plan.html.j2",
        label="Plan",
        verdict=texts.sentence(plan.verdict, texts.PARAGRAPH),
        goal=plan.goal,
        exact=plan.exact,
        tiles=tiles,
        files=files,
        layers=layers,
        more_layers=_of_many("layers", len(layers), len(plan.layers)),
        steps=steps if plan.steps else None,
        notes=[texts.sentence(note) for note in shown],
        more_notes=more_notes,
    )


def html_of_upload(upload: UploadRecord) -> str:
    """What was found in a model or a data set, and what of it can be made smaller."""
    found = upload.inspection or {}
    layers = _rows(found.get("layers"))
    largest = max((numbers.finite(layer.get("parameters")) or 0.0 for layer in layers), default=0.0)
    reason = upload.reason or {}
    warnings, more_warnings = texts.first(_items(found.get("warnings")), sections.MOST_SENTENCES, "warnings")
    return _filled(
        "upload.html.j2",
        label=f"{'Model' if upload.id.startswith('mdl_') else 'Data set'} {texts.name(upload.filename)}",
        upload=upload,
        filename=texts.name(upload.filename),
        id=texts.name(upload.id),
        size="" if upload.size_bytes is None else numbers.size(upload.size_bytes),
        facts=list(_facts(found, layers)),
        reason=texts.sentence(str(reason.get("detail") or reason.get("code") or "")),
        layers=[_inspected(layer, largest) for layer in layers[:_MOST_LAYERS]],
        more_layers=_of_many("layers", _MOST_LAYERS, len(layers)),
        warnings=[texts.sentence(str(warning)) for warning in warnings],
        more_warnings=more_warnings,
    )


def html_of_job(job: JobRecord, course: Course | None = None) -> str:
    """How far a job is, or how it ended.

    Args:
        course: what its events told, if they were followed.
    """
    progress, error, result = job.progress or {}, job.error or {}, job.result or {}
    chart = None if course is None else course.chart(_key(job.id))
    return _filled(
        "job.html.j2",
        label=f"Job {texts.name(job.id)}",
        id=texts.name(job.id),
        type=texts.name(job.type),
        status=job.status,
        tone={"succeeded": "good", "failed": "bad", "canceled": "soft"}.get(job.status, ""),
        ended=job.ended,
        fraction=min(1.0, max(0.0, numbers.finite(progress.get("fraction")) or 0.0)),
        doing=list(_doing(job, progress)),
        stages=[] if course is None else course.stage_rows(),
        chart=chart,
        log=[] if course is None else [texts.sentence(line) for line in course.log],
        verdict=texts.sentence(str(result.get("verdict") or ""), texts.PARAGRAPH),
        files=[
            (texts.name(file.get("name", "")), numbers.size(file.get("size_bytes")))
            for file in _rows(result.get("artifacts"))[: sections.MOST_ROWS]
        ],
        error=texts.sentence(str(error.get("detail") or error.get("code") or ""), texts.PARAGRAPH),
        error_code=texts.name(str(error.get("code") or "")),
    )


def html_of_jobs(jobs: Sequence[JobRecord], *, more: bool) -> str:
    """Jobs, a row each.

    Args:
        more: whether these are not all.
    """
    table = Table(["Job", "Type", "Status", "Created", "Progress or verdict"])
    for job in jobs:
        said = texts.sentence(str((job.result or {}).get("verdict") or (job.error or {}).get("detail") or ""), 160)
        created = "" if job.created_at is None else f"{job.created_at:%Y-%m-%d %H:%M}"
        row = [texts.name(job.id), texts.name(job.type), job.status, created]
        table.rows.append([*row, said or ", ".join(_doing(job, job.progress or {}))])
    return _listed("Jobs", table, more=more)


def html_of_uploads(uploads: Sequence[UploadRecord], *, more: bool) -> str:
    """Models or data sets, a row each."""
    table = Table(["Id", "File", "Status", "Size"])
    for upload in uploads:
        size = "" if upload.size_bytes is None else numbers.size(upload.size_bytes)
        table.rows.append([texts.name(upload.id), texts.name(upload.filename), upload.status, size])
    return _listed("Uploads", table, more=more)


# -- parts of them ------------------------------------------------------------------------------


def _filled(template: str, **context: Any) -> str:
    return environment(_TEMPLATES).get_template(template).render(style=scoped_style(), **context)


def _listed(label: str, table: Table, *, more: bool) -> str:
    if more:
        table.note = f"The newest {len(table.rows)}; iterate for all."
    return _filled("rows.html.j2", label=label, table=table)


def _key(text: str) -> str:
    """What ids within a piece begin with: one page holds several, and the same one is the same again."""
    return f"p{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}-"


def _renamed(chart: Chart, key: str) -> Chart:
    return replace(chart, key=key + chart.key)


def _of_many(what: str, shown: int, of_all: int) -> str:
    return f"{shown} of {of_all:,} {what} are shown." if min(shown, _MOST_LAYERS) < of_all else ""


def _notes(report: Report) -> list[str]:
    failed = (f"{texts.name(one.format)} could not be written: {one.detail}" for one in report.failed_outputs)
    return [texts.sentence(note) for note in (*failed, *report.warnings)]


def _width(part: float, whole: float) -> float:
    return round(100 * (numbers.share(part, whole) or 0.0), 1)


def _planned(layer: PlannedLayer, layers: Iterable[PlannedLayer]) -> tuple[list[str], Bars]:
    """A layer's cells, and its bars beside those of the largest."""
    sizes: Callable[[Sequence[int]], float] = lambda shape: numbers.product(list(shape)) or 0.0  # noqa: E731
    largest = max((sizes(each.shape_before) for each in layers), default=0.0)
    was, now = sizes(layer.shape_before), max(0.0, sizes(layer.shape_after) - layer.zeroed_weights)
    if layer.precision:
        goes = layer.precision.replace("_", " ")
    elif not prod(layer.shape_after):
        goes = "all of it"
    elif layer.removed_units:
        goes = f"{numbers.count(layer.removed_units)} channels"
    elif layer.zeroed_weights:
        goes = f"{numbers.count(layer.zeroed_weights)} weights become zero"
    else:
        goes = "nothing"
    why = f"{goes}: {texts.sentence(layer.reason, 160)}" if layer.reason else goes
    bars = Bars(
        _width(was, largest), _width(now, largest), f"{numbers.short(was)} weights before, {numbers.short(now)} after"
    )
    return [texts.name(layer.name), texts.shape(layer.shape_before), texts.shape(layer.shape_after), why], bars


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _rows(value: Any) -> list[Mapping[str, Any]]:
    """The rows of what should be a list of them: a newer or another server may say something else."""
    return [row for row in _items(value) if isinstance(row, Mapping)]


def _facts(found: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    """What an inspection tells beside the layers."""
    for name in ("format", "flavour", "task", "splits"):
        if isinstance(found.get(name), str):
            yield name.capitalize(), texts.name(found[name].replace("_", " "))
    if "parameters" in found:
        yield "Parameters", numbers.count(found["parameters"])
    if layers:
        prunable = sum(layer.get("prunable_channels") is True for layer in layers)
        yield "Layers", f"{len(layers):,}, of which {prunable:,} can lose channels"
    for number, each in enumerate(_rows(found.get("inputs"))[:8]):
        shape = each.get("shape")
        lengths = " × ".join("any" if length is None else str(length)[:12] for length in _items(shape)[:12])
        words = f"{lengths or 'unknown shape'} {each.get('dtype') or ''}".strip()
        yield "Input" if not number else f"Input {number + 1}", texts.name(words)
    samples = found.get("samples")
    if isinstance(samples, Mapping):
        counts = (f"{texts.name(name)} {numbers.count(count)}" for name, count in list(samples.items())[:8])
        yield "Samples", ", ".join(counts)
    target = found.get("target")
    if isinstance(target, Mapping):
        yield "Target", ", ".join(f"{texts.name(name)} {texts.name(value)}" for name, value in list(target.items())[:6])


def _inspected(layer: Mapping[str, Any], largest: float) -> tuple[list[str], Bars]:
    count = numbers.finite(layer.get("parameters")) or 0.0
    weights = layer.get("weights")
    shapes = list(weights.values())[:1] if isinstance(weights, Mapping) else []
    shape = texts.name(" × ".join(str(length)[:12] for length in _items(shapes[0])[:12])) if shapes else ""
    can = (
        "can lose channels"
        if layer.get("prunable_channels") is True
        else texts.sentence(str(layer.get("reason") or "keeps its channels"), 160)
    )
    cells = [
        texts.name(layer.get("name", "")),
        texts.name(layer.get("kind", "")),
        shape,
        numbers.count(count and int(count)),
        can,
    ]
    return cells, Bars(_width(count, largest), 0.0, f"{numbers.short(count)} parameters")


def _doing(job: JobRecord, progress: Mapping[str, Any]) -> Iterable[str]:
    """What the job is at."""
    if job.status == "queued":
        yield "waits" if job.queue_position is None else f"number {job.queue_position:,} in the queue"
        if job.waits_for:
            yield texts.sentence(job.waits_for)
    if job.status == "running":
        if job.stage:
            yield texts.name(job.stage)
        if numbers.finite(progress.get("epoch")) is not None:
            yield f"epoch {numbers.count(progress['epoch'])} of {numbers.count(progress.get('epochs'))}"
        if (left := numbers.finite(progress.get("eta_s"))) is not None:
            yield f"about {numbers.seconds(left)} left"
