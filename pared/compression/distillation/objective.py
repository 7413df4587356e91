"""What a student learns from its teacher in the training loop: the loss, and the samples with the teacher's answers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pared.compression.data.samples import Inputs
from pared.compression.devices.placement import place
from pared.compression.distillation.checks import hold_answers, hold_finite, hold_terms
from pared.compression.distillation.choosing import BothLayers
from pared.compression.distillation.features import Probe
from pared.compression.distillation.lessons import Lesson, Part, lesson_of
from pared.compression.distillation.teachers import Member, Teachers
from pared.compression.distillation.terms import Answered
from pared.compression.measuring.references import KEPT_BYTES
from pared.compression.measuring.running import Samples, forward, own_failures
from pared.compression.tasks import TaskRules
from pared.compression.training.augmentation import Mix, parted
from pared.compression.training.calibration import copied, learn_labels
from pared.compression.training.gradients import Loss, WeightedLoss, weight_of
from pared.errors import ShapeMismatch
from pared.reports import FeaturePair
from pared.specs import Augment, Combined, DistillLoss


class TeachableSamples(Samples, Protocol):
    """Samples that something computed once can travel with."""

    def taught(self, answers: Tensor) -> Samples:
        """The same samples with a teacher's answers, (training samples, …), as their last input in training."""


@dataclass(frozen=True)
class Objective:
    """What `train.fit` is handed to teach: the data, the loss, and projections that are learned along.

    `features`: the pairs of inner layers that the loss compares.
    """

    data: Samples
    loss: Loss
    companion: nn.Module | None
    features: list[FeaturePair] = field(default_factory=list)


def make_objective(
    kind: DistillLoss,
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
    of_pruning: bool = False,
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
        of_pruning: the loss is `retrain.teach`, and the teacher is the student as it was: no answer of it is refused.

    Raises:
        ShapeMismatch: the outputs of teacher and student differ in shape.
        ValidationError: layers that the loss names do not exist, give no features or cannot be compared; a term has
            nothing to compare; the teacher answers NaN, or the loss is no finite number for the first samples.
    """
    teacher_task, pointer = teacher_task or task, "/retrain/teach" if of_pruning else "/loss"
    place(teacher.eval(), device)
    place(student.eval(), device)
    inputs = tuple(tensor.to(device) for tensor in example)
    with torch.no_grad():
        of_teacher = forward(teacher, inputs, teacher_task)
        of_student = forward(student, inputs, task)
    if of_teacher.shape != of_student.shape:
        text = (
            f"For {len(example[0])} samples the teacher answers {tuple(of_teacher.shape)} and the student "
            f"{tuple(of_student.shape)}. A student has as many outputs as its teacher."
        )
        raise ShapeMismatch(text, errors=[{"pointer": "/student", "detail": text}])
    if task.has_references and not isinstance(kind, Combined):
        return Objective(data, learn_labels(task, augment), None)  # whose targets are the teacher's answers
    first = next(iter(data.on(device).batches("train", len(example[0]))))
    if isinstance(kind, Combined):
        with torch.no_grad():
            hold_terms(kind, task, forward(student, first[0], task), first[1], pointer)
    lesson = lesson_of(kind, BothLayers(teacher, student, inputs), seed, pointer)
    if lesson.companion is not None:
        lesson.companion.to(device)
    probes = _probes(lesson, teacher, student, inputs)
    teachers = teachers or Teachers([Member(teacher, teacher_task)])
    for each in teachers.members:
        place(each.module, device)
    padding = getattr(data, "padding", None)
    if not of_pruning:
        _try_out(lesson, _beside(teachers, None, probes), student, first, task, probes, padding, pointer)

    taught: Taught
    samples: Samples = data
    few = 4 * of_teacher[:1].numel() * data.samples("train") <= KEPT_BYTES
    of_any_length = of_teacher.dim() > 2 and padding is not None
    if task.has_references:
        taught = _among_targets(teacher, teacher_task, augment, probes)
    elif few and augment is None and not of_any_length and not lesson.pairs:
        answered = teachers.answers(data, device=device)
        if not of_pruning:
            hold_answers(answered, task)
        samples, taught = data.taught(answered), _travelling
    else:
        taught = _beside(teachers if lesson.pairs else teachers.beside(device), augment, probes)

    def loss(module: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        parts = _parts(lesson, taught, module, (inputs, targets), task, probes, padding)
        return functools.reduce(operator.add, [value for _, value in parts])

    return Objective(samples, WeightedLoss(loss, task.weight), lesson.companion, lesson.features)


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

    return replace(objective, loss=WeightedLoss(loss, weight_of(objective.loss)))


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


Taught = Callable[[Inputs, Tensor], tuple[Inputs, Tensor, list[Tensor], Mix | None]]
"""Of the inputs and targets of a batch as a loss is handed them: the student's inputs, the teacher's answer to these,
what its layers gave, and what is mixed into them."""
Probes = tuple[Probe, Probe]
"""Of the teacher and the student, with the layers of the pairs that a loss compares."""


def _probes(lesson: Lesson, teacher: nn.Module, student: nn.Module, inputs: Inputs) -> Probes | None:
    if not lesson.pairs:
        return None
    probes = (
        Probe(teacher, [pair.teacher.name for pair in lesson.pairs], "teacher"),
        Probe(student, [pair.student.name for pair in lesson.pairs], "student"),
    )
    for probe in probes:
        probe.look(inputs)
    return probes


def _travelling(inputs: Inputs, _: Tensor) -> tuple[Inputs, Tensor, list[Tensor], Mix | None]:
    """The teacher's answers are the last of the inputs."""
    return inputs[:-1], inputs[-1], [], None


def _beside(teachers: Teachers, augment: Augment | None, probes: Probes | None) -> Taught:
    """The teachers run beside the student; one that is looked into is alone."""

    def taught(inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor, list[Tensor], Mix | None]:
        samples, mix = parted(inputs, augment)
        if probes is None:
            return samples, teachers.answer(samples, targets), [], mix
        with torch.no_grad():
            return samples, *probes[0](samples, teachers.members[0].task), mix

    return taught


def _among_targets(teacher: nn.Module, task: TaskRules, augment: Augment | None, probes: Probes | None) -> Taught:
    """The teacher's answers are the targets; it runs for its inner layers."""

    def taught(inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor, list[Tensor], Mix | None]:
        samples, mix = parted(inputs, augment)
        with torch.no_grad():
            return samples, targets, [] if probes is None else probes[0](samples, task)[1], mix

    return taught


def _parts(
    lesson: Lesson,
    taught: Taught,
    student: nn.Module,
    batch: tuple[Inputs, Tensor],
    task: TaskRules,
    probes: Probes | None,
    padding: int | None,
) -> list[Part]:
    """The parts of the loss of a batch."""
    inputs, targets = batch
    samples, answer, wide, mix = taught(inputs, targets)
    output, narrow = (forward(student, samples, task), []) if probes is None else probes[1](samples, task)
    return lesson.parts(task, Answered(samples, targets, output, answer, mix, padding), narrow, wide)


def _try_out(
    lesson: Lesson,
    taught: Taught,
    student: nn.Module,
    first: tuple[Inputs, Tensor],
    task: TaskRules,
    probes: Probes | None,
    padding: int | None,
    pointer: str,
) -> None:
    """Refuse a loss that is no finite number for the first samples."""
    with torch.no_grad():
        hold_answers(taught(*first)[1], task)
        output = forward(student, first[0], task)
        parts = _parts(lesson, taught, student, first, task, probes, padding)
    hold_finite(parts, output, pointer)
