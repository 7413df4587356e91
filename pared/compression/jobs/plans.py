"""The method of a plan: what another job will do, without training anything or keeping a result."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from pared.compression.jobs.plan import plan_prune
from pared.compression.jobs.plan_pipeline import plan_pipeline
from pared.compression.jobs.plan_quantized import plan_quantized
from pared.compression.work import Work
from pared.reports import Plan
from pared.specs import PipelineSpec, PlanSpec, QuantizeSpec


def plan(spec: PlanSpec, work: Work) -> Plan:
    """What a job will do: what goes of each layer and what cannot, and how large each file will be.

    It is chosen and removed as the job does it, with the same seeds and data. Quality is left out, for only training
    tells it; what else training can still change is marked.

    Raises:
        NothingToPrune: nothing can go.
        ParedError: whatever else the job would fail with before it trains.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = replace(work, directory=Path(folder))
        if isinstance(spec.job, PipelineSpec):
            return plan_pipeline(spec.job, work)
        if isinstance(spec.job, QuantizeSpec):
            return plan_quantized(spec.job, work)
        return plan_prune(spec.job, work)
