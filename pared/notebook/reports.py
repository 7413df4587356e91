"""Owns what a notebook shows of reports and plans: turned into rows of text and widths of bars, for the templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pared.notebook.pieces import MOST_LAYERS, filled, key_of, of_many, width
from pared.report_page import curves, numbers, sections, texts
from pared.report_page.charts import Chart
from pared.report_page.sections import Bars, Cell, MeasureRow, Table, Tile
from pared.report_words import factor, what_goes
from pared.reports import Plan, PlannedLayer, Report


def html_of_report(report: Report) -> str:
    """The verdict, the figures, and what lies behind them folded."""
    key = key_of(repr(report))
    layers, more_layers = sections.layer_rows(report.layers)
    classes, more_classes, class_score = sections.class_rows(report)
    training, more_training = curves.training_charts(report)
    search = curves.search_chart(report)
    warnings, more_warnings = texts.first(_notes(report), sections.MOST_SENTENCES, "warnings")
    return filled(
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
        layers=layers[:MOST_LAYERS],
        more_layers=of_many("layers", len(layers), len(report.layers)) or more_layers,
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
    layers = [_planned(layer, plan.layers) for layer in plan.layers[:MOST_LAYERS]]
    notes = [*plan.notes, *plan.warnings, *(f"{each.format}: {each.detail}" for each in plan.failed_outputs)]
    shown, more_notes = texts.first(notes, sections.MOST_SENTENCES, "notes")
    steps = Table(["Step", "Parameters", "Non-zero", "File"])
    for name, size in [("upload", before), *((texts.name(step.type), step) for step in plan.steps)]:
        counts = numbers.count(size.parameters), numbers.count(size.nonzero_parameters), numbers.size(size.file_bytes)
        steps.rows.append([name, *counts])
    return filled(
        "plan.html.j2",
        label="Plan",
        verdict=texts.sentence(plan.verdict, texts.PARAGRAPH),
        goal=plan.goal,
        exact=plan.exact,
        tiles=tiles,
        files=files,
        layers=layers,
        more_layers=of_many("layers", len(layers), len(plan.layers)),
        has_reason=any(layer.reason for layer in plan.layers),
        steps=steps if plan.steps else None,
        notes=[texts.sentence(note) for note in shown],
        more_notes=more_notes,
    )


def _renamed(chart: Chart, key: str) -> Chart:
    return replace(chart, key=key + chart.key)


def _notes(report: Report) -> list[str]:
    failed = (f"{texts.name(one.format)} could not be written: {one.detail}" for one in report.failed_outputs)
    return [texts.sentence(note) for note in (*failed, *report.warnings)]


def _planned(layer: PlannedLayer, layers: Sequence[PlannedLayer]) -> tuple[list[str], Bars]:
    """A layer's cells, and its bars beside those of the largest."""
    largest = max(_size(each.shape_before) for each in layers)
    was, now = _size(layer.shape_before), max(0.0, _size(layer.shape_after) - layer.zeroed_weights)
    why = [texts.sentence(layer.reason or "", 160)] if any(each.reason for each in layers) else []
    bars = Bars(
        width(was, largest), width(now, largest), f"{numbers.short(was)} weights before, {numbers.short(now)} after"
    )
    shapes = texts.shape(layer.shape_before), texts.shape(layer.shape_after)
    return [texts.name(layer.name), *shapes, what_goes(layer), *why], bars


def _size(shape: list[int]) -> float:
    return numbers.product(shape) or 0.0
