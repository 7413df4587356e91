"""The spec of the job that the API makes for each plan: find out what a prune job would do."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from pared.specs.base import Device, JobSpec
from pared.specs.pruning import PruneSpec


class PlanSpec(JobSpec):
    """Say what a prune job would do, without retraining and without a result. Made by the API itself when asked."""

    type: Literal["plan"]
    job: PruneSpec

    @property
    def needs_device(self) -> Device:
        """That of the job. A plan times nothing, so where the job's latency is measured does not matter to it."""
        return self.job.device

    @model_validator(mode="after")
    def _is_known_beforehand(self) -> PlanSpec:
        goals = {"latency": "measuring", "max_accuracy_drop": "retraining"}
        means = {by for name, by in goals.items() if self.job.target and getattr(self.job.target, name) is not None}
        if means:
            raise ValueError(f"is met by {' and '.join(sorted(means))}, which a plan does without: post the job itself")
        return self
