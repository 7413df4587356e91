"""The spec of the job that the API makes for each plan: find out what another job would do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pared.specs.base import Device, JobSpec
from pared.specs.pruning import PruneSpec
from pared.specs.quantization import QuantizeSpec


class PlanSpec(JobSpec):
    """Say what a job would do, without retraining and without a result. Made by the API itself when asked."""

    type: Literal["plan"]
    job: Annotated[PruneSpec | QuantizeSpec, Field(discriminator="type")]

    @property
    def needs_device(self) -> Device:
        """That of the job. A plan times nothing, so where the job's latency is measured does not matter to it."""
        return self.job.device

    @model_validator(mode="after")
    def _is_known_beforehand(self) -> PlanSpec:
        target = self.job.target
        means = [] if target is None or target.latency is None else ["measuring"]
        if target is not None and target.quality_drop is not None:
            means.append("retraining" if isinstance(self.job, PruneSpec) else "measuring")
        if means:
            raise ValueError(f"is met by {' and '.join(means)}, which a plan does without: post the job itself")
        return self
