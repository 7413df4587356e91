"""What a student learns from its teacher in the training loop: the loss, and the samples with the teacher's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pared.compression.data.samples import Inputs
from pared.compression.devices.placement import place
from pared.compression.distillation.features import Probe
from pared.compression.distillation.losses import knowledge, output_mse, with_labels
from pared.compression.distillation.teachers import Member, Teachers
from pared.compression.measuring.references import KEPT_BYTES
from pared.compression.measuring.running import Samples, forward, own_failures
from pared.compression.tasks import TaskRules
from pared.compression.training.augmentation import Mix, label_loss, parted
from pared.compression.training.calibration import copied, learn_labels
from pared.compression.training.gradients import Loss, WeightedLoss, weight_of
from pared.compression.training.seeds import seed_of
from pared.errors import ShapeMismatch, ValidationError
from pared.specs import Augment, Knowledge, OutputMse

MAX_PROJECTION = 1 << 26
"""Most weights of one learned projection: 256 MiB, and three times that with its optimizer state."""


class TeachableSamples(Samples, Protocol):
    """Samples that something computed once can travel with."""

    def taught(self, answers: Tensor) -> Samples:
        """The same samples with a teacher's answers, (training samples, …), as their last input in training."""


@dataclass(frozen=True)
class Objective:
    """What `train.fit` is handed to teach: the data, the loss, and projections that are learned along."""

    data: Samples
    loss: Loss
    companion: nn.Module | None


def make_objective(
    kind: OutputMse | Knowledge,
    teacher: nn.Module,
    student: nn.Module,
    data: TeachableSamples,
    example: Sequence[Tensor],
    *,
    task: TaskRules,
    teacher_task: TaskRules | None = None,
    seed: int,
    device: str = "cpu",
    augment: Augment | None = None,
    teachers: Teachers | None = None,
) -> Objective:
    """Prepare what the student learns from the teacher, which stays as it is: in eval mode, without gradients.

    Without feature pairs the teacher's logits are computed once, over the training split in its stored order, and
    travel with the samples, where they are few. With pairs, whose outputs can be many times larger, and where samples
    change in each epoch, the teacher runs beside the student, on the same samples.

    Args:
        example: inputs of both models, with a batch of at least 2.
        task: of the student, whose outputs may be probabilities where the teacher's are none.
        teacher_task: of the teacher; without one, the same.
        augment: how the training changes its batches.
        teachers: several that teach by their outputs, the teacher among them; without any, it teaches alone.

    Raises:
        ShapeMismatch: the outputs of teacher and student differ in shape.
        ValidationError: a named layer does not exist, gives no tensor, or is too narrow or too wide.
    """
    teacher_task = teacher_task or task
    place(teacher.eval(), device)
    place(student.eval(), device)
    inputs = tuple(tensor.to(device) for tensor in example)
    pairs = kind.features or [] if isinstance(kind, Knowledge) else []
    of_both = Probe(teacher, [pair[0] for pair in pairs], "teacher"), Probe(student, [p[1] for p in pairs], "student")
    with torch.no_grad():
        of_teacher, wide = of_both[0](inputs, teacher_task)
        of_student, narrow = of_both[1](inputs, task)
    if of_teacher.shape != of_student.shape:
        raise ShapeMismatch(
            f"For {len(example[0])} samples the teacher answers {tuple(of_teacher.shape)} and the student "
            f"{tuple(of_student.shape)}. A student has as many outputs as its teacher."
        )
    if task.has_references:  # what the student learns is the teacher's answers, and these are its targets
        return Objective(data, learn_labels(task, augment), None)
    if pairs and isinstance(kind, Knowledge):
        projections = _projections(pairs, narrow, wide, seed).to(device)
        return Objective(data, _feature_loss(kind, task, teacher_task, of_both, projections, augment), projections)
    teachers = teachers or Teachers([Member(teacher, teacher_task)])
    for each in teachers.members:
        place(each.module, device)
    few = 4 * of_teacher[:1].numel() * data.samples("train") <= KEPT_BYTES
    of_any_length = of_teacher.dim() > 2 and getattr(data, "padding", None) is not None
    if few and augment is None and not of_any_length:
        answered = teachers.answers(data, device=device)
        return Objective(data.taught(answered), _output_loss(kind, task, _travelling), None)
    return Objective(data, _output_loss(kind, task, _beside(teachers.beside(device), augment)), None)


def hold_others(
    objective: Objective, original: nn.Module, task: TaskRules, *, device: str = "cpu", augment: Augment | None = None
) -> Objective:
    """The same, with the outputs that no labels belong to held to what the original answers, which runs beside.

    Args:
        original: in eval mode.
        augment: how the training changes its batches.
    """
    held = task.held
    if held is None:
        return objective
    original = copied(original).eval()  # whoever made it may move it on
    place(original, device)

    def loss(module: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        kept = _Kept(module)
        value = objective.loss(kept, inputs, targets)  # type: ignore[arg-type]
        if kept.inputs is None:  # what captures inner layers runs the module by itself
            kept(*parted(inputs, augment)[0])
        samples = len(targets)
        with torch.no_grad(), own_failures():
            reference = held.taken(original(*kept.inputs), samples)
        return value + held.loss(held.taken(kept.answer, samples), reference)

    return Objective(objective.data, WeightedLoss(loss, weight_of(objective.loss)), objective.companion)


class _Kept:
    """Runs a module, and keeps what it was given and what it answered."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.inputs: Any = None
        self.answer: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        self.inputs = inputs
        self.answer = self._module(*inputs)
        return self.answer


Taught = Callable[[Inputs, Tensor], tuple[Inputs, Tensor, Mix | None]]
"""Of the inputs and targets of a batch as a loss is handed them: the student's inputs, the teacher's answer to these,
and what is mixed into them."""


def _travelling(inputs: Inputs, _: Tensor) -> tuple[Inputs, Tensor, Mix | None]:
    """The teacher's answers are the last of the inputs."""
    return inputs[:-1], inputs[-1], None


def _beside(teachers: Teachers, augment: Augment | None) -> Taught:
    """The teachers run beside the student."""

    def taught(inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor, Mix | None]:
        samples, mix = parted(inputs, augment)
        return samples, teachers.answer(samples, targets), mix

    return taught


def _output_loss(kind: OutputMse | Knowledge, task: TaskRules, taught: Taught) -> Loss:
    def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        samples, answer, mix = taught(inputs, targets)
        output = forward(student, samples, task)
        return _from_answers(kind, task, output, answer, targets, mix)

    return WeightedLoss(loss, task.weight)


def _from_answers(
    kind: OutputMse | Knowledge,
    task: TaskRules,
    output: Tensor,
    answer: Tensor,
    targets: Tensor,
    mix: Mix | None,
    features: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """The loss of a batch; `features`: pairs in the place of the logits."""
    (own, counted), (expected, _) = (task.rows(each, targets) for each in (output, answer))
    if isinstance(kind, OutputMse):
        return output_mse(own, expected, counted)
    lesson = knowledge(
        own,
        expected,
        [(own, expected)] if features is None else features,
        alpha=kind.alpha,
        temperature=kind.temperature,
        counted=counted,
        independent=task.independent,
    )
    return with_labels(lesson, label_loss(task, output, targets, mix), kind.labels)


def _feature_loss(
    kind: Knowledge,
    task: TaskRules,
    teacher_task: TaskRules,
    of_both: tuple[Probe, Probe],
    projections: nn.ModuleList,
    augment: Augment | None,
) -> Loss:
    teacher, student = of_both

    def loss(_: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        samples, mix = parted(inputs, augment)
        with torch.no_grad():
            answer, wide = teacher(samples, teacher_task)
        output, narrow = student(samples, task)
        softened = [(project(z_s), z_t) for project, z_s, z_t in zip(projections, narrow, wide, strict=True)]
        return _from_answers(kind, task, output, answer, targets, mix, softened)

    return WeightedLoss(loss, task.weight)


def _projections(
    pairs: Sequence[tuple[str, str]], narrow: Sequence[Tensor], wide: Sequence[Tensor], seed: int
) -> nn.ModuleList:
    """For each pair what takes the student's features to the teacher's width: a linear map where they differ."""
    projections = nn.ModuleList()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "projections"))
        for index, ((of_teacher, of_student), z_s, z_t) in enumerate(zip(pairs, narrow, wide, strict=True)):
            if z_t.shape[1] < 2:
                text = (
                    f"The teacher's {of_teacher} gives one number a sample; the softmax of one number says nothing: "
                    'name a wider layer, or use {"kind": "output_mse"}.'
                )
                raise ValidationError(text, errors=[{"pointer": f"/loss/features/{index}", "detail": text}])
            if z_s.shape[1] == z_t.shape[1]:
                projections.append(nn.Identity())
                continue
            if z_s.shape[1] * z_t.shape[1] > MAX_PROJECTION:
                text = (
                    f"The student's {of_student} gives {z_s.shape[1]:,} numbers a sample, the teacher's {of_teacher} "
                    f"{z_t.shape[1]:,}: too many to project. Name later layers, after pooling."
                )
                raise ValidationError(text, errors=[{"pointer": f"/loss/features/{index}", "detail": text}])
            projections.append(nn.Linear(z_s.shape[1], z_t.shape[1]))
    return projections
