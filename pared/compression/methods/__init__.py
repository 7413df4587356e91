"""The methods of jobs, from spec and files to artifacts and report. `pared.job_types` says whose each is."""

from __future__ import annotations

from pared.compression.methods.distilling import distilled
from pared.compression.methods.pruning import pruned

__all__ = ["distilled", "pruned"]
