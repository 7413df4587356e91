"""The types of jobs: one entry each, with all that depends on which type a job is.

To add one, write its spec (a `JobSpec`), its method, and its entry here. The API, the worker and the client read the
rest from the entry.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias, get_args

from pydantic import BaseModel, Field, TypeAdapter

from pared.reports import DatasetInspection, ModelInspection, Plan, Report
from pared.specs import (
    CompressionSpec,
    DistillSpec,
    InspectSpec,
    JobSpec,
    PipelineSpec,
    PlanSpec,
    PruneSpec,
    QuantizeSpec,
    Reference,
    UploadKind,
    examples,
)
from pared.specs.pipelines import with_steps
from pared.specs.uploads import references, upload_fields

Method = Callable[[Any, Any], BaseModel]
"""Takes a spec and a `pared.compression.work.Work`, leaves its files there, and returns the report."""


class TimeLimits(Protocol):
    """The settings that say how long a job may take when its spec does not."""

    inspect_time_s: float
    plan_time_s: float
    job_time_s: float


@dataclass(frozen=True)
class JobType:
    """What there is to know of one type of job."""

    name: str
    """The spec's `type`, and the column's; at most 16 characters."""
    spec: type[JobSpec]
    report: type[BaseModel] | Mapping[UploadKind, type[BaseModel]]
    """What the method returns; where this depends on the upload that the job is about, one for each kind."""
    method: str
    """Where the method is, as `package.module:function`. Only a worker's child imports it."""
    time_limit: Literal["inspect_time_s", "plan_time_s", "job_time_s"] = "job_time_s"
    """The setting that limits a job whose spec has no `time_limit_s`."""
    when_out_of_time: str = "Use fewer epochs, a smaller model or a higher time_limit_s."
    """What to do about a job that was ended after its time limit."""
    when_out_of_memory: str = "Use a smaller batch size, data set or model."
    """What to do about a job that was ended at its memory limit."""
    listed: bool = True
    """Whether owners post, list and cancel such jobs. The API makes the others for itself: they are over in seconds,
    and do not wait for a job that takes hours."""
    report_goes_to: Literal["job", "upload"] = "job"
    """Whose the report is when a job succeeds. `upload`: of the upload that the spec names, which becomes ready; it is
    rejected where the job fails."""
    keeps_files: bool = True
    """Whether the files that the method leaves become artifacts. False: they are thrown away."""
    uses_gpu: bool = True
    """False: it runs on the processor, on whichever worker takes it."""
    teachers: str | None = None
    """What the roles of models begin with whose answers to the data set are kept for later jobs; None: no model's."""
    kept_s: float | None = None
    """How long after its making a job is deleted; None: never."""
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Specs for the API's description: name -> `summary` and `value`."""

    def __post_init__(self) -> None:
        """Refuse an entry that could not work.

        Raises:
            TypeError: the name is too long or not the spec's, or two uploads that the spec names would be one to the
                method.
        """
        fields = upload_fields(self.spec)
        roles = [role for role, _ in fields]
        if get_args(self.spec.model_fields["type"].annotation) != (self.name,):
            raise TypeError(f'{self.name}: {self.spec.__name__} needs a field `type: Literal["{self.name}"]`.')
        if len(self.name) > 16:
            raise TypeError(f"{self.name}: the name of a job type has at most 16 characters.")
        if len(set(roles)) < len(roles):
            raise TypeError(f"{self.name}: two fields that name uploads have one name: {', '.join(sorted(roles))}.")
        if sum(kind != "model" for _, kind in fields) > 1:
            raise TypeError(f"{self.name}: a job has one data set, and the spec has several fields that name one.")

    def references(self, spec: Mapping[str, Any]) -> list[Reference]:
        """The uploads and built-in data sets that a spec of this type (as JSON) names."""
        return references(self.spec, spec)

    def report_class(self, spec: Mapping[str, Any]) -> type[BaseModel]:
        """What the method returns for this spec (as JSON)."""
        if isinstance(self.report, Mapping):
            return self.report[self.references(spec)[0].kind]
        return self.report

    def time_limit_s(self, spec: Mapping[str, Any], settings: TimeLimits) -> float:
        """How long a job with this spec (as JSON) may be held, over all its attempts."""
        return float(spec.get("time_limit_s") or getattr(settings, self.time_limit))

    def trains(self, spec: Mapping[str, Any]) -> bool:
        """Whether a job with this spec (as JSON) trains a model."""
        return self.spec.model_validate(spec).trains

    def load_method(self) -> Method:
        """Import the method, and torch with it."""
        module, _, function = self.method.partition(":")
        loaded: Method = getattr(import_module(module), function)
        return loaded


JOB_TYPES = (
    JobType(
        name="prune",
        spec=PruneSpec,
        report=Report,
        method="pared.compression.jobs.prune:prune",
        examples=examples.PRUNING,
    ),
    JobType(
        name="distill",
        spec=DistillSpec,
        report=Report,
        method="pared.compression.jobs.distill:distill",
        teachers="teacher",
        examples=examples.DISTILLATION,
    ),
    JobType(
        name="quantize",
        spec=QuantizeSpec,
        report=Report,
        method="pared.compression.jobs.quantize:quantize",
        examples=examples.QUANTIZATION,
    ),
    JobType(
        name="pipeline",
        spec=PipelineSpec,
        report=Report,
        method="pared.compression.jobs.pipeline:pipeline",
        examples=examples.PIPELINES,
    ),
    JobType(
        name="inspect",
        spec=InspectSpec,
        report={"model": ModelInspection, "dataset": DatasetInspection},
        method="pared.compression.jobs.inspect:inspect",
        time_limit="inspect_time_s",
        when_out_of_memory="Upload it in a smaller form, or ask whoever runs this server for a higher "
        "PARED_INSPECT_MEMORY_BYTES or PARED_MEMORY_BYTES.",
        listed=False,
        report_goes_to="upload",
        uses_gpu=False,
    ),
    JobType(
        name="plan",
        spec=PlanSpec,
        report=Plan,
        method="pared.compression.jobs.plans:plan",
        time_limit="plan_time_s",
        when_out_of_time="Post the job itself, or ask whoever runs this server for a higher PARED_PLAN_TIME_S.",
        listed=False,
        keeps_files=False,
        kept_s=3_600.0,
    ),
)

STEPS = {
    each.name: each.spec
    for each in JOB_TYPES
    if each.listed and issubclass(each.spec, CompressionSpec) and each.spec is not PipelineSpec
}
"""The types that can be a step of a pipeline: all that owners post and that make a model of one."""
with_steps(STEPS)
PlanSpec.model_rebuild()

BY_NAME = {each.name: each for each in JOB_TYPES}
BY_SPEC = {each.spec: each for each in JOB_TYPES}
LISTED = tuple(each for each in JOB_TYPES if each.listed)
UNLISTED = tuple(each.name for each in JOB_TYPES if not each.listed)
"""Names of the types that the API makes for itself."""

if TYPE_CHECKING:
    ListedName: TypeAlias = str
    ListedReport: TypeAlias = BaseModel
else:
    ListedName = Literal[tuple(each.name for each in LISTED)]
    ListedReport = reduce(operator.or_, dict.fromkeys(each.report for each in LISTED))


def _one_of(types: tuple[JobType, ...]) -> Any:
    """The union of their specs, told apart by `type`."""
    return Annotated[reduce(operator.or_, (each.spec for each in types)), Field(discriminator="type")]


listed_spec: TypeAdapter[JobSpec] = TypeAdapter(_one_of(LISTED))
"""Any spec that may be posted."""
job_spec: TypeAdapter[JobSpec] = TypeAdapter(_one_of(JOB_TYPES))
"""Any spec that a job may have."""


def type_of(spec: JobSpec) -> JobType:
    """The entry of a spec's type."""
    return BY_SPEC[type(spec)]
