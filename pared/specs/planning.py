"""The spec of the job that the API makes for each plan: find out what another job would do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pared.specs.base import Device, JobSpec
from pared.specs.pipelines import PipelineSpec
from pared.specs.pruning import PruneSpec
from pared.specs.quantization import QuantizeSpec
from pared.specs.targets import Target


class PlanSpec(JobSpec):
    """Say what a job would do, without training and without a result. Made by the API itself when asked."""

    type: Literal["plan"]
    job: Annotated[PruneSpec | QuantizeSpec | PipelineSpec, Field(discriminator="type")]

    @property
    def needs_device(self) -> Device:
        """That of the job. A plan times nothing, so where the job's latency is measured does not matter to it."""
        return self.job.device

    @model_validator(mode="after")
    def _is_known_beforehand(self) -> PlanSpec:
        if unknown := unknown_beforehand(self.job):
            raise ValueError(unknown[1])
        return self


def unknown_beforehand(job: PruneSpec | QuantizeSpec | PipelineSpec) -> tuple[str, str] | None:
    """A target that no plan can look for: a JSON pointer to it in the job's spec, and why."""
    targets: dict[str, Target | None] = {"/target": job.target}
    if isinstance(job, PipelineSpec):
        if job.target is not None and job.target.sizes:  # which alone are looked for; the plan leaves out quality
            targets = {"/target": job.target.sizes_alone()}
        if job.searched is None:  # the target is only judged, by what the plan knows of it
            targets = {}
        targets |= {
            f"/steps/{index}/{step.name}/target": getattr(step.own, "target", None)
            for index, step in enumerate(job.steps)
        }
    for pointer, target in targets.items():
        of_quality = "measuring" if "quantize" in (job.type, *pointer.split("/")) else "retraining"
        by = {"latency": "measuring", "max_quality_drop": of_quality, "max_accuracy_drop": of_quality}
        means = sorted({how for name, how in by.items() if getattr(target, name, None) is not None})
        if means:
            return pointer, f"is met by {' and '.join(means)}, which a plan does without: post the job itself"
    return None
