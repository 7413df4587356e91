"""Says what a distill job starts from: its teachers, its student, and samples that are made up where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pared.compression.architectures import build
from pared.compression.data import Data
from pared.compression.devices.placement import place
from pared.compression.devices.values import CPU
from pared.compression.distillation.kept_answers import KeptAnswers
from pared.compression.distillation.made_inputs import made_data, make_inputs
from pared.compression.distillation.students import CutStudent, Taken, cut_student, take_weights
from pared.compression.distillation.teachers import Member, Teachers
from pared.compression.jobs.inputs import called_on_tensors, example_of
from pared.compression.jobs.stages import EXAMPLE_BATCH, Stages, plain
from pared.compression.jobs.tasking import for_student
from pared.compression.jobs.timing import candidate_time, result_time
from pared.compression.loading import (
    LoadedModel,
    confirmed,
    load_model,
)
from pared.compression.loading.arguments import needs_values, takes
from pared.compression.measuring.latency import batch_of
from pared.compression.measuring.quality import Assessment
from pared.compression.measuring.running import forward, predict
from pared.compression.measuring.size import count_parameters
from pared.compression.pruning.importance import CalibrationStatistics
from pared.compression.tasks import TASKS, TaskRules
from pared.compression.training.calibration import some_batches
from pared.compression.training.seeds import seed_of
from pared.compression.work import Work
from pared.errors import ParedError, ValidationError
from pared.reports import Measurement, StudentStart, TeacherScore
from pared.specs import WITHOUT_LABELS, Combined, DistillLoss, DistillSpec, FromTeacher, Knowledge, StudentTarget
from pared.wording import metric_name

_TARGET = "/student/from_teacher/target"

# -- samples ------------------------------------------------------------------------------------


def made_samples(spec: DistillSpec, teacher: LoadedModel, stages: Stages) -> Data:
    """Samples without labels for a job without data.

    Raises:
        ValidationError: the shapes of the teacher's inputs are not known, or it does not take those that are given.
    """
    example = batch_of(example_of(spec.example_inputs, teacher, None, is_run=True), EXAMPLE_BATCH)
    generator = torch.Generator().manual_seed(seed_of(spec.seed, "made"))
    made = make_inputs(
        teacher,
        example,
        spec.made_samples,
        generator=generator,
        of_classes=spec.task == "classification",
        tick=stages.beat,
    )
    return made_data(made, TASKS[spec.task if spec.task in WITHOUT_LABELS else "match"]())


def called(spec: DistillSpec, loaded: LoadedModel) -> LoadedModel:
    """A teacher or an uploaded student as it is called on tensors alone; the others may take other arguments.

    Raises:
        ValidationError: it must be given values, and they are missing or do not fit.
    """
    specs = spec.example_inputs or []
    if loaded.format != "torchscript" or not isinstance(loaded.module, torch.jit.ScriptModule):
        return loaded
    described = needs_values(loaded.module) or takes(loaded.module, len(specs))
    return called_on_tensors(specs if described else None, loaded, is_run=True)


# -- teachers -----------------------------------------------------------------------------------


def teachers_of(spec: DistillSpec, work: Work, teacher: LoadedModel, data: Data, example: Sequence[Tensor]) -> Teachers:
    """All teachers of a job, the first one being `teacher`.

    Raises:
        ValidationError: with a pointer to one that does not fit the data, or has outputs of another shape.
    """
    with torch.no_grad():
        shape = forward(teacher.module, tuple(example), data.task).shape
    members = [Member(teacher.module, data.task, spec.teacher_weight)]
    for index, each in enumerate(spec.teachers):
        pointer = f"/teachers/{index}/model"
        try:
            loaded = called(spec, load_model(work.models[f"teachers.{index}.model"], plain(each.architecture)))
            task = for_student(data, loaded, teacher).task
            loaded = confirmed(loaded, example)
            with torch.no_grad():
                own = forward(loaded.module, tuple(example), task).shape
        except ParedError as error:
            text = f"The teacher at {pointer} cannot teach beside the first one. {error.detail}"
            raise type(error)(text, errors=[{"pointer": pointer, "detail": text}]) from error
        if own != shape:
            text = (
                f"For {len(example[0])} samples the teacher at {pointer} answers {tuple(own)}, and the first teacher "
                f"{tuple(shape)}: teachers that teach together have outputs of the same shape. Leave it out."
            )
            raise ValidationError(text, errors=[{"pointer": pointer, "detail": text}])
        members.append(Member(loaded.module.eval(), task, each.weight))
    temperature = _temperature(spec.loss)
    if spec.train.augment is not None and spec.train.trains:
        work.observer.log("the teacher runs beside the student: `augment` changes samples, and no answers can be kept")
    kept = KeptAnswers(_described(spec, work, members, temperature), data.task, work.answers, work.observer.log)
    return Teachers(members, spec.combine, temperature, kept)


def _temperature(loss: DistillLoss) -> float | None:
    """At which a loss softens classes, in the first of its terms that does; None: none does."""
    if isinstance(loss, Knowledge) and loss.alpha == 1:
        return None
    terms = loss.terms if isinstance(loss, Combined) else [loss]
    return next((each.temperature for each in terms if hasattr(each, "temperature")), None)


def _described(
    spec: DistillSpec, work: Work, members: Sequence[Member], temperature: float | None
) -> dict[str, object]:
    """All that the teachers' answers depend on beside the samples."""
    files = {role: file for role, file in work.models.items() if role.startswith("teacher")}
    return {
        "files": {
            role: [file.sha256, file.architecture, file.weights, file.prefix] for role, file in sorted(files.items())
        },
        "architectures": [plain(spec.teacher_architecture), *(plain(each.architecture) for each in spec.teachers)],
        "tasks": [
            [each.task.name, each.task.output, each.task.head, getattr(each.task, "flat", None)] for each in members
        ],
        "weights": [each.weight for each in members],
        "combine": spec.combine if len(members) > 1 else "mean",
        "temperature": temperature if len(members) > 1 else None,
        "device": work.device if work.device == "cpu" else torch.cuda.get_device_name(),
        "threads": work.threads,
    }


def teacher_scores(
    spec: DistillSpec, work: Work, teachers: Teachers, data: Data, baseline: Assessment | None, stages: Stages
) -> list[TeacherScore]:
    """How well each of several teachers does on the validation split, where there is data."""
    if len(teachers.members) == 1:
        return []
    scores = []
    pointers = ["/teacher", *(f"/teachers/{index}" for index in range(len(spec.teachers)))]
    for pointer, member in zip(pointers, teachers.members, strict=True):
        score = None
        if baseline is not None:
            score = _validation(member.module, data, member.task, baseline, work, stages)
        scores.append(TeacherScore(pointer=pointer, weight=member.weight, validation=score))
    return scores


# -- the student --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The student as it starts; what was cut from the teacher for it, or taken into it, if anything was."""

    loaded: LoadedModel
    cut: CutStudent | None = None
    taken: Taken | None = None

    @property
    def found(self) -> tuple[float, int | None] | None:
        """The width and the number of layers of a student that was cut from the teacher."""
        if self.cut is None:
            return None
        return self.cut.width, None if self.cut.layers is None else self.cut.layers - len(self.cut.dropped)

    def report(self, spec: DistillSpec, validation: float | None) -> StudentStart:
        """In the report. `validation`: its score before it was taught."""
        count = count_parameters(self.loaded.module)[0]
        if self.cut is not None:
            return StudentStart(
                source="from_teacher",
                parameters=count,
                parameters_from_teacher=count,
                width=self.cut.width,
                layers=self.cut.layers,
                dropped=self.cut.dropped,
            )
        return StudentStart(
            source="upload" if isinstance(spec.student, str) else "architecture",
            parameters=count,
            parameters_from_teacher=0 if self.taken is None else self.taken.parameters,
            tensors_from_teacher=[] if self.taken is None else self.taken.tensors,
            validation=validation,
        )


def start_of(
    spec: DistillSpec,
    work: Work,
    teacher: LoadedModel,
    data: Data,
    example: Sequence[Tensor],
    stages: Stages,
    *,
    found: tuple[float, int | None] | None = None,
) -> Start:
    """Make or open the student.

    Args:
        found: what `Start.found` was in an earlier attempt.

    Raises:
        ParedError: it cannot be made or opened; the text says why.
    """
    if isinstance(spec.student, FromTeacher):
        seed = seed_of(spec.seed, "evidence", 0)
        statistics = CalibrationStatistics(list, dict, lambda: [inputs for inputs, _ in some_batches(data, seed)])
        cut = cut_student(
            spec.student.from_teacher,
            teacher,
            example,
            uniform=teacher.folder is not None and "huggingface" in (spec.outputs or []),
            statistics=statistics,
            timed=lambda student, batch_size: candidate_time(
                work, teacher, student, example, batch_size=batch_size, pointer=_TARGET, tick=stages.beat
            ),
            found=found,
            log=work.observer.log,
            tick=stages.beat,
        )
        return Start(cut.loaded, cut)
    if isinstance(spec.student, str):
        loaded = called(spec, load_model(work.models["student"], plain(spec.student_architecture)))
    else:
        torch.manual_seed(seed_of(spec.seed, "student"))
        module = build(spec.student)
        loaded = LoadedModel(module.eval(), "state_dict", "state_dict", architecture=module.architecture)
    taken = None
    if spec.student_weights == "teacher":
        taken = take_weights(teacher.module, loaded.module)
        count = count_parameters(loaded.module)[0]
        work.observer.log(f"{taken.parameters:,} of the student's {count:,} parameters are the teacher's")
    return Start(loaded, taken=taken)


def timed_target(spec: DistillSpec) -> StudentTarget | None:
    """The target of a student that is to be as fast as its spec says; None: it may take its time."""
    target = spec.student.from_teacher.target if isinstance(spec.student, FromTeacher) else None
    return None if target is None or target.latency is None else target


def too_slow(target: StudentTarget | None, before: Measurement, after: Measurement) -> list[str]:
    """A warning where the student came out slower than its target, by the report's own measurement."""
    if target is None or target.latency is None:
        return []
    share = result_time(before, after, batch_size=target.latency_batch_size, pointer=_TARGET)
    if share <= target.latency:
        return []
    note = (
        f"The student takes {share:.1%} of the teacher's time at batch {target.latency_batch_size}, and at most "
        f"{target.latency:.1%} was asked for; while it was looked for, it took less. Ask for a little less, or repeat "
        "the job on a machine with nothing else to do."
    )
    return [note]


def before_teaching(
    spec: DistillSpec, work: Work, student: nn.Module, data: Data, baseline: Assessment | None, stages: Stages
) -> tuple[float | None, list[str]]:
    """The validation score of an uploaded student before it is taught, and a warning where its teacher's is no better.

    Args:
        data: with the task of the student.
    """
    if baseline is None or not isinstance(spec.student, str) or data.task.has_references:
        return None, []  # no student is nearer to a teacher's answers than the teacher
    score = _validation(student, data, data.task, baseline, work, stages)
    of_teacher = baseline.quality.validation
    if not score >= of_teacher:
        return score, []
    name = metric_name(baseline.quality.metric)
    better = "better than" if score > of_teacher else "as good as"
    note = (
        f"Before it was taught the student was {better} its teacher already: a validation {name} of {score:.4f}, and "
        f"{of_teacher:.4f} of the teacher. Such a teacher has little to teach: name a better one, or let the two "
        "change places."
    )
    return score, [note]


def _validation(
    module: nn.Module, data: Data, task: TaskRules, baseline: Assessment, work: Work, stages: Stages
) -> float:
    """The score of a model on the validation split, over the samples of the teacher's score; it ends on the CPU."""
    place(module, work.device)
    outputs, targets = predict(module, data, "val", task, device=work.device, tick=stages.beat)
    place(module, CPU)
    counted = baseline.counted_validation
    return task.score(outputs[counted], targets[counted])
