"""The spec of a pipeline: several steps on one model, each a type of job with the fields that it has of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from pared.specs.architectures import Architecture
from pared.specs.base import Spec
from pared.specs.common import CompressionSpec, TensorSpec
from pared.specs.targets import Target
from pared.specs.uploads import DatasetReference, ModelId
from pared.wording import listed

MAX_STEPS = 8
ENDS = ("quantize",)
"""Steps that nothing follows: what they make can be neither pruned nor trained."""

TeacherOfStep = Annotated[
    Literal["upload", "previous"],
    Field(
        description="Who teaches: the upload, or the result of the step before, such as an assistant between a large "
        "teacher and a small student.",
    ),
]
Location = tuple[str | int, ...]


def _error(location: Location, why: str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("advice", "{why}", {"why": why}), loc=location, input=None)


def _refusal(errors: list[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data("PipelineSpec", errors)


class StepFields(Spec):
    """Base of the fields that a type of job has as a step: all that the pipeline does not say once."""

    @model_validator(mode="before")
    @classmethod
    def _says_nothing_twice(cls, values: Any) -> Any:
        own = cls.model_fields.keys()
        twice = [name for name in values if name in SAID_ONCE and name not in own] if isinstance(values, dict) else []
        if twice:
            raise _refusal([_error((name,), SAID_ONCE[name]) for name in twice])
        return values


class OneStep(Spec):
    """Base of a step: an object with one entry, from the name of a type of job to its fields."""

    @model_validator(mode="before")
    @classmethod
    def _names_one_type(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        names = listed(cls.model_fields, "or")
        for name in values:
            if name == "pipeline":
                raise _refusal([_error((name,), f"cannot be a step of one: write its steps here, each {names}")])
            if name not in cls.model_fields:
                raise _refusal([_error((name,), f"is no type of step: use {names}")])
        given = [name for name, fields in values.items() if fields is not None]
        if len(given) != 1:
            raise ValueError(f'must name one type of step, {names}, as in {{"prune": {{"amount": 0.5}}}}')
        return values

    @model_serializer(mode="wrap")
    def _as_given(self, serialized: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def] # noqa: ANN202 - a return type would stand in the API's schema
        """The one entry that it has."""
        return {name: fields for name, fields in serialized(self).items() if fields is not None}

    @property
    def name(self) -> str:
        """The type of job that it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def own(self) -> StepFields:
        """The fields that it has."""
        fields: StepFields = getattr(self, self.name)
        return fields


if TYPE_CHECKING:
    Step = OneStep  # made by `with_steps`, once all types of jobs are known


class PipelineSpec(CompressionSpec):
    """Steps on one model, each on the result of the one before it."""

    type: Literal["pipeline"]
    model: ModelId
    architecture: Architecture | None = Field(None, description="For a state dict that was uploaded without one.")
    dataset: DatasetReference | None = Field(
        None, description="What all steps train on and are measured on. Without it only steps that need no data run."
    )
    example_inputs: list[TensorSpec] | None = Field(
        None, max_length=8, description="The arguments of the model's forward, as in a prune job."
    )
    target: Target | None = Field(
        None,
        description="What the last result must come to, as shares of the upload's. A prune step without `amount` and "
        "`target` of its own then removes as little as meets it, with all that later steps change; without such a step "
        "the report only says whether it is met.",
        examples=[{"file_bytes": 0.1, "max_quality_drop": 0.01}],
    )
    steps: list[Step] = Field(
        min_length=1,
        max_length=MAX_STEPS,
        description="In order: each an object with one entry, from a type of job to the fields that it has of its own. "
        "What the pipeline says once, such as the data set, is not said again. The upload stays what every result is "
        "compared with, and the teacher of a distill step, whose student is the result of the step before.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _steps_are_valid_jobs(cls, values: Any, handler: ModelWrapValidatorHandler[PipelineSpec]) -> PipelineSpec:
        """Check each step by the spec of its type, and write out what that fills in."""
        spec = handler(values)
        spec.check_steps()
        filled = [{step.name: spec.filled(index)} for index, step in enumerate(spec.steps)]
        given = {name: getattr(spec, name) for name in spec.model_fields_set}
        return handler({**given, "steps": filled})

    @property
    def trains(self) -> bool:
        """Whether a step does."""
        return any(self.job(index).trains for index in range(len(self.steps)))

    @property
    def searched(self) -> int | None:
        """Which step's amount the `target` of the whole is met by, if any."""
        return next(self._without_amount(), None) if self.target is not None else None

    @property
    def with_search(self) -> int | None:
        """Which step's search a report shows: that for the `target` of the whole, else the first for a step's own."""
        own = (index for index, step in enumerate(self.steps) if step.name == "prune" and _target_of(step) is not None)
        return next(own, None) if self.searched is None else self.searched

    def _without_amount(self) -> Iterator[int]:
        for index, step in enumerate(self.steps):
            own = step.own
            if step.name == "prune" and getattr(own, "granularity", None) != "n:m":
                given = getattr(own, "amount", None), getattr(own, "target", None)
                if given == (None, None):
                    yield index

    def job(self, index: int, *, handed_on: str = "torchscript", target: Target | None = None) -> CompressionSpec:
        """The whole spec of the job that a step is.

        Args:
            handed_on: the format of its result, where another step follows.
            target: of the step whose amount is searched for, where it is not that of the whole.

        Raises:
            pydantic.ValidationError: it is none.
        """
        step, kind = self.steps[index], step_types()[self.steps[index].name]
        shared = {name: getattr(self, name) for name in kind.model_fields if name in _shared_fields()}
        if index < len(self.steps) - 1:
            shared |= {"outputs": [handed_on], "dynamic": None, "onnx_opset": None}
        own = {name: getattr(step.own, name) for name in step.own.model_fields_set}
        before = self.model if index == 0 else _result_id(index - 1)
        if "student" in kind.model_fields:
            by_upload = own.pop("teacher", "upload") == "upload"
            shared |= {"teacher": self.model if by_upload else before}
            shared |= {"teacher_architecture": self.architecture if by_upload else None}
            if own.get("student") is None:
                own["student"] = before
            shown = self.dataset is not None and all(each.is_plain for each in self.example_inputs or [])
            if shown:  # by the data
                shared.pop("example_inputs", None)
        elif index > 0:
            shared |= {"model": before, "architecture": None}
        if index == self.searched:
            own["target"] = target or self._target_of_search(index)
        if "streamed" in kind.model_fields:  # steps keep their results in memory
            shared["streamed"] = False
        document = {"type": step.name, **shared, **own}
        given = {name: value for name, value in document.items() if value is not None or name in own}
        return kind.model_validate({name: _dumped(value) for name, value in given.items()})

    def _target_of_search(self, index: int) -> Target | None:
        """What a searched step is to come to, as far as it can be said before later steps are known."""
        target = self.target
        if target is None or index == len(self.steps) - 1 or target.file_bytes is None:
            return target
        share = target.params or target.file_bytes  # later steps have a part in bytes: parameters are looked for
        return target.model_copy(update={"file_bytes": None, "params": share})

    # -- what is refused ------------------------------------------------------------------------

    def check_steps(self) -> None:
        """Refuse steps that undo, or only repeat, what another one does."""
        for index, step in enumerate(self.steps):
            if step.name in ENDS and index < len(self.steps) - 1:
                why = f"makes what can be neither pruned nor trained: let {step.name} be the last step"
                raise _refusal([_error(("steps", index, step.name), why)])
            if "student" in type(step.own).model_fields:
                self._check_student(index, step)
        if self.target is not None and self.target.quality_drop is not None and self.dataset is None:
            field, why = self.target.needs_data
            raise _refusal([_error(("target", field), why)])
        several = list(self._without_amount())
        if self.target is not None and len(several) > 1:
            why = f"is looked for in one step, and /steps/{several[0]}/prune has none either: give one of them"
            raise _refusal([_error(("steps", several[1], "prune", "amount"), why)])

    def _check_student(self, index: int, step: Step) -> None:
        here: Location = ("steps", index, step.name)
        own_student, teacher = getattr(step.own, "student", None), getattr(step.own, "teacher", "upload")
        if index == 0:
            if teacher == "previous":
                raise _refusal([_error((*here, "teacher"), "is the result of the step before, and none is: leave it")])
            if own_student is None:
                why = 'is required in the first step, which no result comes before: {"from_teacher": {"width": 0.5}}'
                raise _refusal([_error((*here, "student"), why)])
            return
        if teacher == "previous" and own_student is None:
            why = "is required where the result of the step before teaches, which would learn from itself"
            raise _refusal([_error((*here, "student"), why)])
        if teacher == "upload" and own_student is not None:
            why = (
                "leaves nothing of the steps before it: leave it out, and the student is the result of the step "
                'before; or make `teacher` "previous", and that result teaches'
            )
            raise _refusal([_error((*here, "student"), why)])
        earlier = self.steps[index - 1]
        if teacher == "upload" and earlier.name == step.name and getattr(earlier.own, "teacher", "upload") == teacher:
            why = f"only goes on with /steps/{index - 1}: put another step between, or give that one more epochs"
            raise _refusal([_error(here, why)])

    def pointer(self, index: int, pointer: str) -> str:
        """Where in the pipeline stands what a JSON pointer into the whole spec of a step leads to."""
        field = pointer.split("/")[1] if pointer else ""
        of_whole = field in _shared_fields() or (field == "target" and index == self.searched)
        return pointer if of_whole else f"/steps/{index}/{self.steps[index].name}{pointer}"

    def filled(self, index: int) -> dict[str, Any]:
        """The fields of a step with what the spec of its type fills in.

        Raises:
            pydantic.ValidationError: the step is no valid job; each error points into the step, or at the field of the
                pipeline that it is about.
        """
        step = self.steps[index]
        try:
            whole = self.job(index)
        except ValidationError as error:
            raise _refusal([self._located(each, index) for each in error.errors()]) from None
        filled = {name: value for name, value in whole.model_dump().items() if name in type(step.own).model_fields}
        # What only stands for what other steps give is theirs to say.
        kept = {name: getattr(step.own, name, None) for name in ("student", "teacher")}
        if index == self.searched:
            kept["target"] = None
        return filled | {name: _dumped(value) for name, value in kept.items() if name in filled}

    def _located(self, error: Mapping[str, Any], index: int) -> InitErrorDetails:
        """One error of a step's whole spec, at its place in the pipeline."""
        name, location = self.steps[index].name, error["loc"]
        why = str((error.get("ctx") or {}).get("error", error["msg"]))
        field = location[0] if location else None
        if error["type"] == "missing" or (field == "dataset" and self.dataset is None):
            why = f"is required: the step {name} needs one"
        of_whole = field in _shared_fields() or (field == "target" and index == self.searched)
        return _error(tuple(location) if of_whole else ("steps", index, name, *location), why)


# -- the types of steps -----------------------------------------------------------------------------

_STEP_TYPES: dict[str, type[CompressionSpec]] = {}

SAID_ONCE = {
    name: "is said once, for all steps: put it beside `steps`"
    for name in PipelineSpec.model_fields
    if name not in ("target", "type", "steps")
} | {
    "type": "is the name of the step itself: leave it out",
    "teacher_architecture": "is that of the upload: put `architecture` beside `steps`",
    "streamed": "is of prune jobs alone, for a pipeline has its models in memory: post one job after the other",
}
"""What a step must not say -> why, and what to do."""


def step_types() -> Mapping[str, type[CompressionSpec]]:
    """The name of each type of step -> the spec of such a job."""
    return _STEP_TYPES


def with_steps(types: Mapping[str, type[CompressionSpec]]) -> None:
    """Complete the spec of a pipeline with the types that its steps may have: once, where all of them are known."""
    _STEP_TYPES.update(types)
    kinds = {name: _fields_of(kind) for name, kind in types.items()}
    fields: dict[str, Any] = {name: (kind | None, None) for name, kind in kinds.items()}
    step = create_model("PipelineStep", __base__=OneStep, __doc__="One step, by the name of its type.", **fields)
    made: list[type[Spec]] = [step, *kinds.values()]
    # Where pickle, and what looks at annotations, finds classes that were not written out.
    globals().update({"Step": step} | {each.__name__: each for each in made})
    PipelineSpec.model_rebuild()


def _fields_of(kind: type[CompressionSpec]) -> type[StepFields]:
    """The fields of a type of job that a pipeline does not say once."""
    hints = get_type_hints(kind, include_extras=True)
    once = _shared_fields() | {"type", "teacher_architecture", "streamed"}
    fields: dict[str, Any] = {
        name: (field.annotation, field)
        for name, field in kind.model_fields.items()
        if name not in once and name not in ("student", "teacher")
    }
    if "student" in kind.model_fields:
        fields["teacher"] = (TeacherOfStep, "upload")
        student = Field(None, description="Without one: the result of the step before.")
        fields["student"] = (hints["student"] | None, student)
    name = f"{kind.__name__.removesuffix('Spec')}Step"
    return create_model(name, __base__=StepFields, __doc__=f"{kind.__doc__} As a step of a pipeline.", **fields)


def _shared_fields() -> set[str]:
    return PipelineSpec.model_fields.keys() - {"type", "steps", "target"}


def _target_of(step: OneStep) -> Any:
    return getattr(step.own, "target", None)


def _result_id(index: int) -> str:
    """Stands for the result of a step where a spec names a model."""
    return f"mdl_{f'resultofstep{index + 1}'.ljust(26, '0')}"


def _dumped(value: Any) -> Any:
    """A value as plain data, as a spec is made from."""
    if isinstance(value, Spec):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, list):
        return [_dumped(each) for each in value]
    return value
