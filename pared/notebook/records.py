"""Owns what a notebook shows of uploads and jobs. What a server says of them may be anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pared.notebook.pieces import MOST_LAYERS, filled, key_of, of_many, width
from pared.report_page import numbers, sections, texts
from pared.report_page.sections import Bars, Table

if TYPE_CHECKING:
    from pared.client.records import JobRecord, UploadRecord
    from pared.notebook.live import Course


def html_of_upload(upload: UploadRecord) -> str:
    """What was found in a model or a data set, and what of it can be made smaller."""
    found = upload.inspection or {}
    layers = _rows(found.get("layers"))
    largest = max((numbers.finite(layer.get("parameters")) or 0.0 for layer in layers), default=0.0)
    reason = upload.reason or {}
    warnings, more_warnings = texts.first(_items(found.get("warnings")), sections.MOST_SENTENCES, "warnings")
    return filled(
        "upload.html.j2",
        label=f"{'Model' if upload.id.startswith('mdl_') else 'Data set'} {texts.name(upload.filename)}",
        upload=upload,
        filename=texts.name(upload.filename),
        id=texts.name(upload.id),
        size="" if upload.size_bytes is None else numbers.size(upload.size_bytes),
        facts=list(_facts(found, layers)),
        reason=texts.sentence(str(reason.get("detail") or reason.get("code") or "")),
        layers=[_inspected(layer, largest) for layer in layers[:MOST_LAYERS]],
        more_layers=of_many("layers", MOST_LAYERS, len(layers)),
        warnings=[texts.sentence(str(warning)) for warning in warnings],
        more_warnings=more_warnings,
    )


def html_of_job(job: JobRecord, course: Course | None = None) -> str:
    """How far a job is, or how it ended.

    Args:
        course: what its events told, if they were followed.
    """
    progress, error, result = job.progress or {}, job.error or {}, job.result or {}
    chart = None if course is None else course.chart(key_of(job.id))
    return filled(
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


def _listed(label: str, table: Table, *, more: bool) -> str:
    if more:
        table.note = f"The newest {len(table.rows)}; iterate for all."
    return filled("rows.html.j2", label=label, table=table)


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
        else texts.sentence(str(layer.get("reason") or numbers.NOTHING), 160)
    )
    cells = [
        texts.name(layer.get("name", "")),
        texts.name(layer.get("kind", "")),
        shape,
        numbers.count(count and int(count)),
        can,
    ]
    return cells, Bars(width(count, largest), 0.0, f"{numbers.short(count)} parameters")


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
