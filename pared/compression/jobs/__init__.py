"""The methods of jobs, from spec and files to artifacts and report. `pared.job_types` says whose each is."""

from __future__ import annotations

from pared.compression.jobs.against_upload import result_module
from pared.compression.jobs.distill import distilled
from pared.compression.jobs.pipeline import pipeline
from pared.compression.jobs.prune import pruned
from pared.compression.jobs.quantize import quantized

__all__ = ["distilled", "pipeline", "pruned", "quantized", "result_module"]
