"""The methods that a job can name, from spec and files to artifacts and report: a literal table, a function each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pared.compression.jobs.distill import distill, distilled
from pared.compression.jobs.inspect import inspect
from pared.compression.jobs.plan import plan
from pared.compression.jobs.prune import prune, pruned
from pared.compression.work import Work
from pared.reports import DatasetInspection, ModelInspection, Plan, Report
from pared.specs import DistillSpec, InspectSpec, PlanSpec, PruneSpec, Spec

__all__ = ["METHODS", "distilled", "pruned"]

METHODS: Mapping[type[Spec], Callable[[Any, Work], Report | Plan | ModelInspection | DatasetInspection]] = {
    InspectSpec: inspect,
    PlanSpec: plan,
    PruneSpec: prune,
    DistillSpec: distill,
}
