"""What each part of the page says: a report turned into rows of text and widths of bars, for the templates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pared.report_page import numbers, texts
from pared.report_words import TESTS, factor, latency_change
from pared.reports import Goal, Latency, LayerReport, Measurement, Precision, Quality, Report, Size, StepReport
from pared.specs.targets import missed
from pared.wording import metric_name

MOST_LAYERS, MOST_CLASSES, MOST_ROWS, MOST_SENTENCES = 150, 50, 30, 20
"""Rows of the tables of layers, of classes and of all others, and warnings."""

_PRECISIONS: dict[Precision, str] = {"int8": "int8", "int8_weights": "int8 weights alone", "float32": "float32"}


@dataclass(frozen=True)
class Cell:
    """A figure, with smaller print beneath."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Tile:
    """One of the figures that the page begins with."""

    name: str
    figure: str
    small: str


@dataclass(frozen=True)
class Bars:
    """A pair of bars, in percent of what is drawn as full."""

    before: float
    after: float
    label: str


@dataclass(frozen=True)
class MeasureRow:
    """A line of the before/after table."""

    name: str
    before: Cell
    after: Cell
    change: str


@dataclass(frozen=True)
class GoalRow:
    """One thing that was asked for."""

    name: str
    asked: str
    reached: str
    met: bool


@dataclass(frozen=True)
class LayerRow:
    """A layer before and after."""

    name: str
    before: str
    after: str
    bars: Bars
    gone: str
    precision: str
    sensitivity: str
    reason: str


@dataclass(frozen=True)
class ClassRow:
    """A class before and after."""

    name: str
    samples: str
    before: str
    after: str
    change: str
    bars: Bars


@dataclass
class Table:
    """Rows that the template draws cell by cell; the first column names them."""

    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""
    links: list[str] = field(default_factory=list)
    """Where the first cell of each row leads, on a page that leads anywhere; an empty text: nowhere."""


def tiles(report: Report) -> Iterator[Tile]:
    """The figures that say most: file, parameters or non-zeros, latency at the largest batch, quality."""
    before, after = report.before, report.after
    yield Tile("File", factor(before.file_bytes, after.file_bytes, "smaller", "larger") or numbers.NOTHING,
               f"{numbers.size(before.file_bytes)} → {numbers.size(after.file_bytes)}")  # fmt: skip
    name, was, now = "Parameters", before.parameters, after.parameters
    if was == now and after.nonzero_parameters < 0.95 * before.nonzero_parameters:
        name, was, now = "Non-zero parameters", before.nonzero_parameters, after.nonzero_parameters
    yield Tile(name, factor(was, now, "fewer", "more") or numbers.NOTHING,
               f"{numbers.short(was)} → {numbers.short(now)}")  # fmt: skip
    pairs = latency_pairs(before, after)
    if pairs:
        old, new = pairs[-1]
        small = f"{numbers.milliseconds(old.p50_ms)} → {numbers.milliseconds(new.p50_ms)}, median"
        yield Tile(f"Latency at batch {numbers.count(old.batch_size)}", latency_change(old, new), small)
    if before.quality and after.quality:
        metric = after.quality.metric
        ends = [numbers.score(metric, quality.test.value) for quality in (before.quality, after.quality)]
        lost = after.quality.test.value - before.quality.test.value
        yield Tile(f"Test {metric_name(metric)}", numbers.change(metric, lost), " → ".join(ends))


def latency_pairs(before: Measurement, after: Measurement) -> list[tuple[Latency, Latency]]:
    """Latencies of both models at the same batch size on the same device, by batch size."""
    of_after = {(latency.batch_size, latency.device): latency for latency in after.latency}
    pairs = [(old, of_after.get((old.batch_size, old.device))) for old in before.latency]
    both = [(old, new) for old, new in pairs if new is not None]
    return sorted(both, key=lambda pair: pair[0].batch_size)[:MOST_ROWS]


def measures(report: Report) -> Iterator[MeasureRow]:
    """The before/after table."""
    before, after = report.before, report.after
    for name, one, other in (
        ("File", before.file_bytes, after.file_bytes),
        ("File, compressed by gzip", before.compressed_bytes, after.compressed_bytes),
    ):
        was, now = (Cell(numbers.size(value), f"{numbers.count(value)} bytes") for value in (one, other))
        yield MeasureRow(name, was, now, factor(one, other, "smaller", "larger"))
    for name, first, second in (
        ("Parameters", before.parameters, after.parameters),
        ("Non-zero parameters", before.nonzero_parameters, after.nonzero_parameters),
        ("Multiply-adds of a sample", before.macs, after.macs),
    ):
        change = "" if first is None or second is None else factor(first, second, "fewer", "more")
        yield MeasureRow(name, Cell(numbers.count(first)), Cell(numbers.count(second)), change)
    for old, new in latency_pairs(before, after):
        name = f"Latency at batch {numbers.count(old.batch_size)}{' on the GPU' if old.device == 'cuda' else ''}"
        yield MeasureRow(name, _latency(old), _latency(new), latency_change(old, new))
    if before.quality and after.quality:
        yield from _quality_rows(before.quality, after.quality)


def _latency(latency: Latency) -> Cell:
    spread = numbers.percent(latency.noise, 0)
    small = f"p95 {numbers.milliseconds(latency.p95_ms)}, spread {spread}, {numbers.count(latency.runs)} runs"
    return Cell(f"p50 {numbers.milliseconds(latency.p50_ms)}", small)


def quality_cell(quality: Quality) -> Cell:
    """A score on the test split with its interval."""
    metric, test = quality.metric, quality.test
    ends = f"{numbers.score(metric, test.low)} … {numbers.score(metric, test.high)}"
    return Cell(numbers.score(metric, test.value), f"95 % interval {ends}")


def _quality_rows(was: Quality, now: Quality) -> Iterator[MeasureRow]:
    metric, name = now.metric, metric_name(now.metric)
    lost = numbers.change(metric, now.test.value - was.test.value)
    yield MeasureRow(f"Test {name}", quality_cell(was), quality_cell(now), lost)
    old, new = (Cell(numbers.score(metric, quality.validation)) for quality in (was, now))
    yield MeasureRow(f"Validation {name}", old, new, numbers.change(metric, now.validation - was.validation))
    yield MeasureRow("Test loss", Cell(numbers.short(was.loss)), Cell(numbers.short(now.loss)), "")
    for beside in sorted(was.beside.keys() & now.beside.keys())[:MOST_ROWS]:
        values = Cell(numbers.short(was.beside[beside])), Cell(numbers.short(now.beside[beside]))
        yield MeasureRow(f"Test {texts.name(beside.replace('_', ' '))}", *values, "")


_GOALS = {
    "params": "Parameters left",
    "macs": "Multiply-adds left",
    "file_bytes": "Bytes of the file left",
    "latency": "Latency left",
    "max_quality_drop": "Quality lost on the test split",
    "max_accuracy_drop": "Quality lost on the test split",
}


def verdict_without_goal(report: Report) -> str:
    """What was gained and lost; what it says of the goal is told beside it."""
    whole, goal = report.verdict, report.goal
    return (whole.removeprefix(goal.sentence).strip() if goal else "") or whole


def goal_rows(goal: Goal, quality: Quality | None) -> Iterator[GoalRow]:
    """What was asked for, and what the result came to."""
    failed = missed(goal.target, goal.reached)
    metric = "accuracy" if quality is None else quality.metric
    for name, most in list(goal.target.items())[:MOST_ROWS]:
        drop = name.endswith("_drop")

        def said(value: Any, *, drop: bool = drop) -> str:
            if not drop:
                return numbers.percent(value)
            return numbers.change(metric, value).lstrip("+")

        reached = said(goal.reached.get(name)) if name in goal.reached else "unknown"
        yield GoalRow(_GOALS.get(name, texts.name(name)), f"at most {said(most)}", reached, name not in failed)


def comparison_sentences(report: Report) -> Iterator[str]:
    """What the test says of the difference, and how many answers are alike."""
    comparison = report.comparison
    if comparison is None:
        return
    metric = "accuracy" if report.after.quality is None else report.after.quality.metric
    difference = comparison.quality_difference
    ends = f"{numbers.change(metric, difference.low)} … {numbers.change(metric, difference.high)}"
    chance = f"p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{numbers.probability(comparison.p_value)}"
    yield (
        f"The result differs by {numbers.change(metric, difference.value)} of test {metric_name(metric)} "
        f"(95 % interval {ends}; {TESTS[comparison.test]}: {chance})."
    )
    if comparison.equal_predictions is not None:
        yield f"Both models answer {numbers.percent(comparison.equal_predictions, 2)} of the test samples alike."


def class_rows(report: Report) -> tuple[list[ClassRow], str, str]:
    """Of each class its score before and after; what is left out; what the score is."""
    if report.comparison is None:
        return [], "", ""
    rows = report.comparison.per_class
    note = ""
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: -abs(numbers.finite(row.get("change")) or 0.0))[:MOST_CLASSES]
        of_all = f"{len(report.comparison.per_class):,} classes"
        note = f"These {MOST_CLASSES} of {of_all} changed most; the report as JSON has them all."
    metric = "accuracy" if report.after.quality is None else report.after.quality.metric
    score = {"mean_iou": "IoU", "f1": "F1"}.get(metric, "accuracy")
    return [_class_row(row) for row in rows], note, score


def _class_row(row: dict[str, Any]) -> ClassRow:
    before, after = numbers.percent(row.get("before")), numbers.percent(row.get("after"))
    bars = Bars(_width(row.get("before")), _width(row.get("after")), f"{before} before, {after} after")
    changed = numbers.change("accuracy", row.get("change"))
    return ClassRow(texts.name(row.get("class", "?")), numbers.count(row.get("samples")), before, after, changed, bars)


def _width(part: Any) -> float:
    number = numbers.finite(part)
    return 0.0 if number is None else round(100 * min(1.0, max(0.0, number)), 1)


# -- layers -------------------------------------------------------------------------------------


def layer_rows(layers: list[LayerReport], most: int = MOST_LAYERS) -> tuple[list[LayerRow], str]:
    """A row for each of the largest layers, in the model's order, and what is left out."""
    sizes = [numbers.product(layer.shape_before) or 0.0 for layer in layers]
    chosen = set(sorted(range(len(layers)), key=lambda at: -sizes[at])[:most])
    note = ""
    if len(chosen) < len(layers):
        others = [at for at in range(len(layers)) if at not in chosen]
        was = sum(sizes[at] for at in others)
        now = sum(numbers.product(layers[at].shape_after) or 0.0 for at in others)
        note = (
            f"These are the {most} largest of {len(layers):,} layers. The other {len(others):,} had "
            f"{numbers.short(was)} weights and have {numbers.short(now)}; the report as JSON has them all."
        )
    largest = max(sizes, default=0.0)
    return [_layer_row(layers[at], largest) for at in sorted(chosen)], note


def _layer_row(layer: LayerReport, largest: float) -> LayerRow:
    was, now = numbers.product(layer.shape_before), numbers.product(layer.shape_after)
    left = numbers.share(now, was)
    gone = []
    if left is not None and left < 1:
        units = len(layer.removed_units or ())
        channels = f" ({units:,} channel{'s' if units > 1 else ''})" if units else ""
        gone.append(f"{numbers.percent(1 - left)} removed{channels}")
    elif left is not None and left > 1:
        gone.append(f"{numbers.percent(left - 1)} more")
    if layer.sparsity > 0:
        gone.append(f"{numbers.percent(layer.sparsity)} zero")
    nonzero = 0.0 if now is None else now * (1 - min(1.0, max(0.0, numbers.finite(layer.sparsity) or 0.0)))
    bars = Bars(
        _width(numbers.share(was, largest)),
        _width(numbers.share(nonzero, largest)),
        f"{numbers.short(was)} weights before, {numbers.short(nonzero)} other than zero after",
    )
    return LayerRow(
        texts.name(layer.name),
        texts.shape(layer.shape_before),
        texts.shape(layer.shape_after),
        bars,
        "; ".join(gone) or "as it was",
        "" if layer.precision is None else _PRECISIONS[layer.precision],
        "" if layer.sensitivity is None else numbers.short(layer.sensitivity),
        texts.sentence(layer.reason, 160),
    )


def precision_sentence(layers: list[LayerReport]) -> str:
    """How many layers compute in what."""
    counted = Counter(layer.precision for layer in layers if layer.precision)
    parts = [f"{counted[each]:,} in {words}" for each, words in _PRECISIONS.items() if counted[each]]
    return f"Layers by precision: {', '.join(parts)}." if parts else ""


# -- what belongs to one type of job ------------------------------------------------------------


def step_rows(report: Report) -> Table:
    """pipeline: the upload and each step."""
    table = Table(["Step", "Parameters", "Non-zero", "Multiply-adds", "File", "Test", "Time", "Artifact"])
    table.rows.append(["upload", *_sizes(report.before, report.before.quality), "", ""])
    steps, table.note = texts.first(report.steps, MOST_ROWS, "steps")
    for number, step in enumerate(steps, 1):
        cells = [*_sizes(step, step.quality), numbers.seconds(step.seconds), texts.name(step.artifact or "")]
        table.rows.append([f"{number} {texts.name(step.type)}", *cells])
    return table


def _sizes(model: Size | StepReport, quality: Quality | None) -> list[str]:
    test = numbers.NOTHING if quality is None else numbers.score(quality.metric, quality.test.value)
    counts = (model.parameters, model.nonzero_parameters, model.macs)
    return [*map(numbers.count, counts), numbers.size(model.file_bytes), test]


def output_rows(report: Report) -> Table:
    """Of each output that is compared with the original's, how near it is."""
    table = Table(["Output", "Relative error", "Cosine", "Agreement"])
    outputs, table.note = texts.first(report.comparison.outputs if report.comparison else [], MOST_ROWS, "outputs")
    for output in outputs:
        error, cosine = (numbers.short(numbers.finite(output.get(name))) for name in ("relative_error", "cosine"))
        table.rows.append(
            [texts.name(output.get("output", "?")), error, cosine, numbers.percent(output.get("agreement"), 2)]
        )
    return table


def teacher_rows(report: Report) -> Table:
    """distill: each of several teachers."""
    table = Table(["Teacher", "Weight", "Validation"])
    teachers, table.note = texts.first(report.teachers, MOST_ROWS, "teachers")
    metric = "match" if report.after.quality is None else report.after.quality.metric
    for teacher in teachers:
        score = numbers.score(metric, teacher.validation)
        table.rows.append([texts.name(teacher.pointer), numbers.short(teacher.weight), score])
    return table


def feature_rows(report: Report) -> Table:
    """distill: pairs of inner layers."""
    table = Table(["Loss", "Teacher's layer", "Student's layer", "Compared"])
    features, table.note = texts.first(report.features, MOST_ROWS, "pairs")
    for pair in features:
        sides = ((pair.teacher, pair.teacher_shape), (pair.student, pair.student_shape))
        layers = [f"{texts.name(layer)} ({texts.shape(shape)})" for layer, shape in sides]
        table.rows.append([texts.name(pair.term), *layers, texts.sentence(pair.compared, 200)])
    return table


def student_sentences(report: Report) -> Iterator[str]:
    """distill: where the student began, and what the teacher was worth."""
    student = report.student
    if student is not None:
        sources = {
            "from_teacher": "was cut from its teacher",
            "upload": "was uploaded",
            "architecture": "was built new",
        }
        of_teacher = f"{numbers.count(student.parameters_from_teacher)} of its {numbers.count(student.parameters)}"
        yield f"The student {sources[student.source]}; {of_teacher} parameters began with the teacher's values."
        if student.width is not None:
            yield f"It has {numbers.percent(student.width)} of the teacher's channels."
        if student.dropped:
            names, more = texts.first(student.dropped, 10, "layers")
            yield f"Layers of the teacher that went: {', '.join(map(texts.name, names))}. {more}".rstrip()
        if student.validation is not None and report.after.quality is not None:
            metric = report.after.quality.metric
            score = numbers.score(metric, student.validation)
            yield f"Its validation {metric_name(metric)} before it was taught: {score}."
    if report.labels_only and report.after.quality:
        alone, taught = quality_cell(report.labels_only), quality_cell(report.after.quality)
        yield (
            f"The same student trained on labels alone: {alone.text} ({alone.small}); with the teacher: {taught.text} "
            f"({taught.small})."
        )


def before_retraining_sentence(report: Report) -> str:
    """prune: what the model could do after removal, before any retraining."""
    if report.before_retraining is None:
        return ""
    cell = quality_cell(report.before_retraining)
    name = metric_name(report.before_retraining.metric)
    return f"After removal and before any retraining, test {name} was {cell.text} ({cell.small})."


def stage_rows(report: Report) -> Table:
    """How long each stage took."""
    table = Table(["Stage", "Time"])
    stages, table.note = texts.first(list(report.seconds.items()), MOST_ROWS, "stages")
    table.rows = [[texts.name(name), numbers.seconds(value)] for name, value in stages]
    return table


def digests(files: dict[str, str], what: str) -> Table:
    """Files with their SHA-256."""
    table = Table([what, "SHA-256"])
    shown, table.note = texts.first(list(files.items()), MOST_ROWS, "files")
    table.rows = [[texts.name(name), texts.name(digest)] for name, digest in shown]
    return table


def machine_rows(report: Report) -> Table:
    """Where it ran, and on what."""
    reproduce = report.reproduce
    table = Table(["", ""])
    table.rows = [
        ["seed", numbers.count(reproduce.seed)],
        ["device", texts.name(reproduce.device)],
        *([["driver", texts.name(reproduce.driver)]] if reproduce.driver else []),
        ["threads", numbers.count(reproduce.threads)],
        *([["processes", numbers.count(reproduce.ranks)]] if reproduce.ranks > 1 else []),
        *([["trained in", reproduce.precision]] if reproduce.precision else []),
        ["sandbox", texts.name(report.sandbox)],
    ]
    versions, table.note = texts.first(list(reproduce.versions.items()), MOST_ROWS, "versions")
    table.rows += [[texts.name(name), texts.name(version)] for name, version in versions]
    return table
