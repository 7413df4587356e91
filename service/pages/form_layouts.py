"""Which controls the form of each type of job has, in which order, and which are folded away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from pared.job_types import STEPS
from pared.specs import DistillSpec, PipelineSpec, PruneSpec, QuantizeSpec, Spec, TeacherCut
from pared.specs.pipelines import MAX_STEPS
from service.pages.form_controls import Control, controls_of

USUAL_GOAL = {"file_bytes": 0.25}
"""Where a form asks for a goal alone, and none is given. It stands in no control, where it would stay beside others."""
MORE = "more"
"""The field that takes any other field of the spec, as JSON."""


@dataclass(frozen=True)
class Group:
    """Controls that stand together."""

    title: str
    controls: Sequence[Control]
    folded: bool = False
    says: str = ""


@dataclass(frozen=True)
class JobForm:
    """The form of one type of job."""

    name: str
    type: str
    """Of the spec that it makes."""
    title: str
    says: str
    groups: Sequence[Group]
    usual: dict[str, str] = field(default_factory=dict)
    """What stands in a new form."""
    steps: Sequence[tuple[Control, Control]] = ()

    @property
    def controls(self) -> list[Control]:
        """All but those of steps."""
        return [control for group in self.groups for control in group.controls]

    @property
    def with_steps(self) -> bool:
        """Whether the person says the steps."""
        return bool(self.steps)

    @property
    def model(self) -> str:
        """The control of the model that is made smaller."""
        return "teacher" if self.type == "distill" else "model"


@dataclass(frozen=True)
class _Title:
    text: str
    names: Sequence[str]
    """Of controls; `retrain.*`: all within it that no other group has."""
    folded: bool = True
    says: str = ""


_DATA = _Title("The task and the data", ("task", "output", "ignore_index", "preprocess.*"))
_RESULT = _Title("More about the result", ("dynamic", "onnx_opset", "latency_device", "target.latency_batch_size"))
_RUN = _Title("How it runs", ("device", "time_limit_s", "seed"))
_ARGUMENTS = _Title("The model's architecture and arguments", ("architecture", "example_inputs"))
_GOALS = ("target.file_bytes", "target.params", "target.macs", "target.latency", "target.max_quality_drop")


def _grouped(controls: Sequence[Control], titles: Sequence[_Title]) -> list[Group]:
    left = {control.name: control for control in controls}
    named = {name for title in titles for name in title.names}

    def taken(name: str) -> Iterator[Control]:
        if name.endswith(".*"):
            names = [each for each in left if each.startswith(name[:-1]) and each not in named]
        else:
            names = [name]
        yield from (left.pop(each) for each in names if each in left)

    groups = [
        Group(title.text, [each for name in title.names for each in taken(name)], title.folded, title.says)
        for title in titles
    ]
    if left:
        groups.append(Group("Other fields", list(left.values()), folded=True))
    return groups


def _of(spec: type[Spec], *nested: str, without: Sequence[str] = ()) -> list[Control]:
    return [each for each in controls_of(spec, nested=nested) if each.name not in without]


def _prune() -> JobForm:
    titles = (
        _Title("Model and data", ("model", "dataset"), folded=False),
        _Title(
            "How much goes",
            (
                "amount",
                "target.params",
                "target.macs",
                "target.file_bytes",
                "target.latency",
                "target.max_quality_drop",
            ),
            folded=False,
            says="An amount to remove, or a goal: what may be left, of one thing or of several.",
        ),
        _Title("What goes", ("granularity", "criterion"), folded=False),
        _Title("Retraining", ("retrain", "retrain.epochs", "retrain.lr"), folded=False),
        _Title("The result", ("outputs",), folded=False),
        _Title("More about retraining", ("retrain.*",)),
        _Title(
            "More about what goes",
            (
                "scope",
                "amounts",
                "round_to",
                "include",
                "exclude",
                "uniform",
                "streamed",
                "output_width",
                "n_m",
                "block",
            ),
        ),
        _Title("Schedule", ("schedule", "steps", "stages", "ramp", "regrow")),
        _Title("Weights that share values", ("quantize.*",)),
        _DATA,
        _ARGUMENTS,
        replace(_RESULT, names=(*_RESULT.names, "target.max_accuracy_drop")),
        _RUN,
    )
    controls = _of(PruneSpec, "target", "retrain", "quantize", "preprocess")
    says = "Remove channels or weights by score, then retrain."
    return JobForm("prune", "prune", "Prune", says, _grouped(controls, titles), {"amount": "0.5"})


def _distill() -> JobForm:
    cut = controls_of(TeacherCut, ("student", "from_teacher"), nested=("student.from_teacher.target",))
    student = next(each for each in _of(DistillSpec) if each.name == "student")
    upload = replace(student, kind="upload", label="An uploaded student", placeholder="", required=False)
    architecture = replace(
        student,
        label="The student's architecture",
        suffix="@architecture",
        placeholder='such as {"layers": [["Flatten", {}], ["Linear", {"in_features": 64, "out_features": 10}]]}',
        required=False,
    )
    titles = (
        _Title("Model and data", ("teacher", "dataset"), folded=False),
        _Title(
            "The student",
            ("student.from_teacher.width", "student.from_teacher.depth", "student"),
            folded=False,
            says="Cut from the teacher by width or depth, or another upload.",
        ),
        _Title("Training", ("train.epochs", "train.lr", "compare_with_labels_only"), folded=False),
        _Title("The result", ("outputs",), folded=False),
        _Title(
            "More about the student",
            ("student.from_teacher.*", "student@architecture", "student_architecture", "student_weights"),
        ),
        _Title("Loss", ("loss",)),
        _Title("More about training", ("train.*",)),
        _Title("Several teachers", ("teachers", "teacher_weight", "combine")),
        _DATA,
        _Title("The teacher's architecture and arguments", ("teacher_architecture", "example_inputs", "made_samples")),
        _RESULT,
        _RUN,
    )
    controls = [*_of(DistillSpec, "train", "preprocess", without=("student",)), *cut, upload, architecture]
    says = "Train a smaller model, the student, to answer as the uploaded one does."
    groups = _grouped(controls, titles)
    return JobForm("distill", "distill", "Distill", says, groups, {"student.from_teacher.width": "0.5"})


def _quantize() -> JobForm:
    titles = (
        _Title("Model and data", ("model", "dataset"), folded=False),
        _Title("int8", ("method", "target.max_quality_drop"), folded=False),
        _Title("The result", ("outputs",), folded=False),
        _Title("Training", ("retrain", "retrain.epochs", "retrain.lr", "retrain.*")),
        _Title("Calibration", ("calibration.*",)),
        _Title("Layers", ("include", "exclude")),
        _DATA,
        _ARGUMENTS,
        replace(_RESULT, names=(*_RESULT.names, "target.max_accuracy_drop")),
        _RUN,
    )
    sizes = ("target.params", "target.macs", "target.file_bytes", "target.latency", "target.latency_batch_size")
    controls = _of(QuantizeSpec, "target", "calibration", "retrain", "preprocess", without=sizes)  # int8 says them
    says = "Make weights int8, and what is multiplied with them."
    return JobForm("quantize", "quantize", "Quantize", says, _grouped(controls, titles))


def _compress() -> JobForm:
    epochs = Control(
        ("epochs",), "number", "Epochs", "Of each training. Empty: as many as each step has.", (), 1, 1000, whole=True
    )
    titles = (
        _Title("Model and data", ("model", "dataset"), folded=False),
        _Title(
            "Goal",
            _GOALS,
            folded=False,
            says="What may be left of the upload; one goal, or several. The steps are chosen for it. If you give none, "
            "it is a quarter of the file's bytes.",
        ),
        _Title("Training", ("epochs",), folded=False),
        _Title("The result", ("outputs",), folded=False),
        _DATA,
        _ARGUMENTS,
        _RESULT,
        _RUN,
    )
    controls = [*_of(PipelineSpec, "target", "preprocess", without=("steps", "target.max_accuracy_drop")), epochs]
    says = "Say how small the model must be; what is done is chosen for it."
    groups = _grouped(controls, titles)
    return JobForm("compress", "pipeline", "Reach a goal", says, groups)


def _pipeline() -> JobForm:
    titles = (
        _Title("Model and data", ("model", "dataset"), folded=False),
        _Title(
            "Goal of the whole",
            _GOALS,
            folded=False,
            says="May stay empty. For a goal leave the `amount` of one prune step out: as little as meets it goes.",
        ),
        _Title("The result", ("outputs",), folded=False),
        _DATA,
        _ARGUMENTS,
        replace(_RESULT, names=(*_RESULT.names, "target.max_accuracy_drop")),
        _RUN,
    )
    controls = _of(PipelineSpec, "target", "preprocess", without=("steps",))
    usual = {"steps.0": "prune", "steps.0.fields": '{"amount": 0.5}', "steps.1": "distill"}
    steps = [_step(row) for row in range(MAX_STEPS)]
    says = "Several steps on one model, each on the result of the one before it."
    return JobForm("pipeline", "pipeline", "Pipeline", says, _grouped(controls, titles), usual, steps)


def _step(row: int) -> tuple[Control, Control]:
    kinds = (("", "no step"), *((name, name) for name in STEPS))
    path = ("steps", str(row))
    placeholder = 'such as {"amount": 0.5}, or nothing'
    fields = Control((*path, "fields"), "json", f"Fields of step {row + 1}", "", placeholder=placeholder)
    return Control(path, "choice", f"Step {row + 1}", "", kinds), fields


@cache
def forms() -> Mapping[str, JobForm]:
    """All of them by name. Made when first asked for: the schemas of the specs take a quarter of a second."""
    return {form.name: form for form in (_compress(), _prune(), _distill(), _quantize(), _pipeline())}
