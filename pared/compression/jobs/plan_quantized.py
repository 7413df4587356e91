"""The dry run of a quantize job: which layers become int8, and how large the files will be."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pared.compression.jobs.quantize import layers_in, prepared, share_in_int8
from pared.compression.jobs.stages import Stages, settled
from pared.compression.measuring.size import count_macs, count_parameters
from pared.compression.report.parts import sizes, successor
from pared.compression.report.verdict import int8_plan_verdict, missing_formats, not_written
from pared.compression.work import Work
from pared.reports import Plan, PlannedFile, PlannedLayer, Size
from pared.specs import QuantizeSpec

_CALIBRATED_ON = 16  # samples: of the ranges, the file has the number alone


def plan_quantized(spec: QuantizeSpec, work: Work) -> Plan:
    """What a quantize job will do, found out by doing all of it save the measuring.

    Raises:
        ParedError: whatever the job would fail with before it measures.
    """
    with settled(work), tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as folder:
        stages = Stages(work.observer)
        job = prepared(spec, work, stages, Path(scratch), calibrated_on=_CALIBRATED_ON)
        stages.enter("export")
        written = job.write(job.usual, Path(folder))
        files, found = sizes(written.paths), job.precisions(written, job.usual)
        parameters, nonzero = count_parameters(job.original.module)
        macs = count_macs(job.original.module, job.example) if job.original.runs else None
        before, after = (
            Size(parameters=parameters, nonzero_parameters=nonzero, macs=macs, file_bytes=file_bytes)
            for file_bytes in (
                work.models["model"].path.stat().st_size,
                files[successor(job.original.format, written.paths).name],
            )
        )
        return Plan(
            verdict=int8_plan_verdict(before, after, list(found.values())) + not_written(written.failed),
            amount=share_in_int8(job, found),
            exact=True,
            before=before,
            after=after,
            failed_outputs=written.failed,
            files={name: PlannedFile(size_bytes=size, exact=name != "model.packed") for name, size in files.items()},
            layers=[
                PlannedLayer(
                    name=layer.name,
                    shape_before=layer.shape_before,
                    shape_after=layer.shape_after,
                    precision=layer.precision,
                    reason=layer.reason,
                )
                for layer in layers_in(job, found)
            ],
            warnings=[*job.original.warnings, *written.notes, *missing_formats(written.failed)],
        )
