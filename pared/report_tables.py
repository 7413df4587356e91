"""Reports and plans that print as tables: before and after, and notes beneath."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pared.report_words import RUNTIMES, TESTS, factor, latency_change, what_goes
from pared.reports import Latency, Measurement, Plan, PlannedStep, Quality, Report, Size, StepReport
from pared.terminal import plain_console
from pared.wording import in_points, metric_name, shortened

_MOST_OUTPUTS = 8


def report_tables(report: Report) -> RenderableType:
    """The verdict, the table, and what to know when reading it."""
    table = Table(title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="left" if not name else "right")
    for row in _rows(report.before, report.after):
        table.add_row(*row)
    steps: list[RenderableType] = []
    if report.steps:
        steps = [_steps(report.before, report.steps, report.before.quality), ""]
    notes = (Text(line) for line in _report_notes(report))
    return Group(Text(report.verdict, style="bold"), "", *steps, table, *notes)


def _report_notes(report: Report) -> Iterator[str]:
    if report.comparison:
        difference = report.comparison.quality_difference
        metric = "accuracy" if report.after.quality is None else report.after.quality.metric
        name = "points" if in_points(metric) else metric_name(metric)
        unit, digits = (100.0, 2) if in_points(metric) else (1.0, 4)
        test = TESTS[report.comparison.test]
        yield (
            f"\nOn the test split: {difference.value * unit:+.{digits}f} {name} "
            f"(95 % CI {difference.low * unit:+.{digits}f} … {difference.high * unit:+.{digits}f}; "
            f"{test}: p = {report.comparison.p_value:.3g})"
        )
        yield from map(_beside_original, report.comparison.outputs[:_MOST_OUTPUTS])
    if report.before_retraining and report.after.quality:
        yield f"Before any retraining: {_quality(report.before_retraining)}"
    if report.labels_only:
        yield f"The same student trained on labels alone: {_quality(report.labels_only)}"
    for pair in report.features:
        yield f"{pair.term}: {pair.student} learned from the teacher's {pair.teacher}, {pair.compared}"
    if left := [layer for layer in report.layers if layer.precision in ("int8_weights", "float32")]:
        whole = len([layer for layer in report.layers if layer.precision])
        kinds = {"int8_weights": "int8 weights alone", "float32": "float32"}
        for precision, words in kinds.items():
            names = [layer.name for layer in left if layer.precision == precision]
            if names and len(names) < whole:
                yield f"With {words}: {shortened(names, 20)}"
    if report.runtime:
        yield f"Latency and quality were measured in {RUNTIMES[report.runtime]}, beside the float32 model."
    if report.frontier:
        where = "the frontier.csv of the step that searched" if report.steps else "frontier.csv"
        yield f"The {len(report.frontier)} points that the search for the goal tried: {where}"
    for warning in report.warnings:
        yield f"Note: {warning}"


def _beside_original(output: Mapping[str, Any]) -> str:
    """How near an output is to the original's, where no labels tell how good it is."""
    parts = []
    if (agreement := output.get("agreement")) is not None:
        parts.append(f"the same largest number in {agreement:.1%} of places")
    parts += [
        f"{words} {value:.3g}"
        for name, words in (("relative_error", "relative error"), ("cosine", "cosine"))
        if (value := output.get(name)) is not None
    ]
    return f"Output {output.get('output', '?')} beside the original's: {', '.join(parts)}"


def plan_tables(plan: Plan) -> RenderableType:
    """Each layer, the model before and after, the files, and what is not certain."""
    notes = (Text(line) for line in _plan_notes(plan))
    parts: list[RenderableType] = [_steps(plan.before, plan.steps, None), ""] if plan.steps else []
    parts += [_layers(plan), ""] if plan.layers else []
    return Group(Text(plan.verdict, style="bold"), "", *parts, _sizes(plan), *notes)


def _layers(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    with_reasons = any(layer.reason for layer in plan.layers)
    for name in ("layer", "before", "after", "goes", *(["why no more"] if with_reasons else [])):
        table.add_column(name)
    for layer in plan.layers:
        shapes = ("×".join(map(str, shape)) for shape in (layer.shape_before, layer.shape_after))
        reason = [Text(layer.reason or "")] if with_reasons else []
        table.add_row(Text(layer.name), *shapes, what_goes(layer), *reason)
    return table


def _sizes(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row(*_count("parameters", plan.before.parameters, plan.after.parameters))
    if plan.before.macs and plan.after.macs:
        table.add_row(*_count("multiply-adds a sample", plan.before.macs, plan.after.macs))
    for name, file in plan.files.items():
        label = f"{name}, bytes" if file.exact else f"{name}, bytes (about)"
        table.add_row(*_count(label, plan.before.file_bytes, file.size_bytes))
    return table


def _plan_notes(plan: Plan) -> Iterator[str]:
    for note in [*plan.notes, *plan.warnings]:
        yield f"Note: {note}"


def _steps(upload: Size, steps: Sequence[StepReport | PlannedStep], quality: Quality | None) -> Table:
    """A row for the upload and for each step of a pipeline.

    Args:
        quality: of the upload, where it was measured.
    """
    measured = quality is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "parameters", "not zero", "file, bytes", *(["test", "seconds"] if measured else [])):
        table.add_column(name, justify="left" if name == "step" else "right")
    for name, row in [("upload", upload), *((f"{number} {each.type}", each) for number, each in enumerate(steps, 1))]:
        counts = [f"{row.parameters:,}", f"{row.nonzero_parameters:,}", f"{row.file_bytes:,}"]
        if isinstance(row, StepReport):
            counts += ["" if row.quality is None else _quality(row.quality), f"{row.seconds:.1f}"] if measured else []
        elif quality is not None:
            counts += [_quality(quality), ""]
        table.add_row(name, *counts)
    return table


def as_text(renderable: RenderableType) -> str:
    """What a terminal of 100 columns without colours would show."""
    out = StringIO()
    plain_console(file=out, width=100, color_system=None).print(renderable)
    return out.getvalue().rstrip()


def _rows(before: Measurement, after: Measurement) -> Iterator[tuple[str, str, str, str]]:
    yield _count("file, bytes", before.file_bytes, after.file_bytes)
    yield _count("file under gzip, bytes", before.compressed_bytes, after.compressed_bytes)
    yield _count("parameters", before.parameters, after.parameters)
    yield _count("non-zero parameters", before.nonzero_parameters, after.nonzero_parameters)
    if before.macs and after.macs:
        yield _count("multiply-adds a sample", before.macs, after.macs)
    for old, new in zip(before.latency, after.latency, strict=False):
        yield _latency(old, new)
    if before.quality and after.quality:
        was, now = before.quality, after.quality
        moved = now.test.value - was.test.value
        change = f"{moved * 100:+.2f} points" if in_points(was.metric) else f"{moved:+.4f}"
        yield f"test {metric_name(was.metric)}", _quality(was), _quality(now), change
        for name in sorted(was.beside.keys() & now.beside.keys()):
            one, other = was.beside[name], now.beside[name]
            yield f"test {name.replace('_', ' ')}", f"{one:.4f}", f"{other:.4f}", f"{other - one:+.4f}"


def _count(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    return name, f"{before:,}", f"{after:,}", factor(before, after, "smaller", "larger")


def _latency(before: Latency, after: Latency) -> tuple[str, str, str, str]:
    change = latency_change(before, after)
    where = " on the GPU" if before.device == "cuda" else ""
    return f"latency at batch {before.batch_size}{where}, ms", f"{before.p50_ms:.3g}", f"{after.p50_ms:.3g}", change


def _quality(quality: Quality) -> str:
    return f"{quality.test.value:.2%}" if in_points(quality.metric) else f"{quality.test.value:.4f}"
