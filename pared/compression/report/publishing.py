"""Puts a report together from what every kind of job has, and publishes it beside the artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pared.compression.export.formats import Written
from pared.compression.measuring.quality import Assessment
from pared.compression.report.parts import Measured, reproduce, sizes, unanswered_warning, unfit_warning
from pared.compression.report.verdict import missing_formats, not_written, warnings_of
from pared.compression.work import Work
from pared.reports import LayerReport, Measurement, Report
from pared.specs import DistillSpec, Granularity, PruneSpec, QuantizeSpec, Training


def publish(
    spec: PruneSpec | DistillSpec | QuantizeSpec,
    work: Work,
    *,
    verdict: str,
    sizes_and_scores: tuple[Measurement, Measurement],
    layers: list[LayerReport],
    granularity: Granularity | None,
    baseline: Assessment | None,
    measured: Measured,
    written: Written,
    training: Training | None,
    warnings: Sequence[str],
    **fields: Any,
) -> Report:
    """The report, which is also written as a file beside the artifacts.

    Args:
        sizes_and_scores: of the upload and of the result.
        granularity: of what was pruned, if anything was.
        warnings: of the kind of job; those that all share follow them.
        fields: of the report, as they are.
    """
    before, after = sizes_and_scores
    report = Report(
        type=spec.type,
        task=None if baseline is None else baseline.task.name,
        verdict=verdict + not_written(written.failed),
        before=before,
        after=after,
        layers=layers,
        failed_outputs=written.failed,
        warnings=[
            *warnings,
            *unanswered_warning(baseline),
            *unfit_warning(baseline),
            *measured.warnings,
            *work.notes,
            *warnings_of(granularity, before, after, layers, sizes(written.paths)),
            *written.notes,
            *missing_formats(written.failed),
        ],
        sandbox=work.sandbox,
        reproduce=reproduce(spec, work, written.paths, training),
        **fields,
    )
    (work.directory / "report.json").write_text(report.model_dump_json(indent=1) + "\n")
    work.observer.log(report.verdict)
    work.observer.progress(1.0)
    return report
