"""What a student learns from its teacher in the training loop: the loss, and the samples with the teacher's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pared.compression.data.samples import Inputs
from pared.compression.devices.placement import place
from pared.compression.distillation.features import Probe
from pared.compression.distillation.losses import knowledge, output_mse, with_labels
from pared.compression.measuring.running import Samples, answers, forward
from pared.compression.training.augmentation import Mix, label_loss, parted
from pared.compression.training.gradients import Loss
from pared.compression.training.seeds import seed_of
from pared.errors import ShapeMismatch, ValidationError
from pared.specs import Augment, Knowledge, OutputMse, Task

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
    task: Task,
    seed: int,
    device: str = "cpu",
    augment: Augment | None = None,
) -> Objective:
    """Prepare what the student learns from the teacher, which stays as it is: in eval mode, without gradients.

    Without feature pairs the teacher's logits are computed once, over the training split in its stored order, and
    travel with the samples. With pairs, whose outputs can be many times larger, and where samples change in each
    epoch, the teacher runs beside the student, on the same samples: it must stay on the device.

    Args:
        example: inputs of both models, with a batch of at least 2.
        augment: how the training changes its batches.

    Raises:
        ShapeMismatch: the outputs of teacher and student differ in shape.
        ValidationError: a named layer does not exist, gives no tensor, or is too narrow or too wide.
    """
    place(teacher.eval(), device)
    place(student.eval(), device)
    inputs = tuple(tensor.to(device) for tensor in example)
    pairs = kind.features or [] if isinstance(kind, Knowledge) else []
    seen_by = {
        "teacher": Probe(teacher, [pair[0] for pair in pairs], "teacher"),
        "student": Probe(student, [pair[1] for pair in pairs], "student"),
    }
    with torch.no_grad():
        (of_teacher, wide), (of_student, narrow) = (probe(inputs, task) for probe in seen_by.values())
    if of_teacher.shape != of_student.shape:
        raise ShapeMismatch(
            f"For {len(example[0])} samples the teacher answers {tuple(of_teacher.shape)} and the student "
            f"{tuple(of_student.shape)}. A student has as many outputs as its teacher."
        )
    if pairs and isinstance(kind, Knowledge):
        projections = _projections(pairs, narrow, wide, seed).to(device)
        probes = seen_by["teacher"], seen_by["student"]
        return Objective(data, _feature_loss(kind, task, *probes, projections, augment), projections)
    samples = _taught(teacher, data, task, device) if augment is None else data
    lesson = _told if augment is None else _asked(teacher, task, augment)
    loss = _logit_loss(kind, task, lesson) if isinstance(kind, Knowledge) else _output_loss(task, lesson)
    return Objective(samples, loss, None)


def _taught(teacher: nn.Module, data: TeachableSamples, task: Task, device: str) -> Samples:
    """The samples with the teacher's outputs over the training split, computed once, where the student runs."""
    return data.taught(answers(teacher, data, "train", task, device=device)[0])


Lesson = Callable[[Inputs], tuple[Inputs, Tensor, Mix | None]]
"""Of a batch as a loss is handed it: the student's inputs, the teacher's answer to them, and what is mixed in."""


def _told(inputs: Inputs) -> tuple[Inputs, Tensor, Mix | None]:
    """With the answer that travelled with the samples."""
    *samples, answer = inputs
    return tuple(samples), answer, None


def _asked(teacher: nn.Module, task: Task, augment: Augment) -> Lesson:
    """With the answer to these very samples."""

    def lesson(inputs: Inputs) -> tuple[Inputs, Tensor, Mix | None]:
        samples, mix = parted(inputs, augment)
        with torch.no_grad():
            return samples, forward(teacher, samples, task), mix

    return lesson


def _output_loss(task: Task, lesson: Lesson) -> Loss:
    def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        samples, answer, _ = lesson(inputs)
        return output_mse(forward(student, samples, task), answer)

    return loss


def _logit_loss(kind: Knowledge, task: Task, lesson: Lesson) -> Loss:
    def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        samples, answer, mix = lesson(inputs)
        output = forward(student, samples, task)
        taught = knowledge(output, answer, [(output, answer)], alpha=kind.alpha, temperature=kind.temperature)
        return with_labels(taught, label_loss(task, output, targets, mix), kind.labels)

    return loss


def _feature_loss(
    kind: Knowledge,
    task: Task,
    teacher: Probe,
    student: Probe,
    projections: nn.ModuleList,
    augment: Augment | None,
) -> Loss:
    def loss(_: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        samples, mix = parted(inputs, augment)
        with torch.no_grad():
            answer, wide = teacher(samples, task)
        output, narrow = student(samples, task)
        softened = [(project(z_s), z_t) for project, z_s, z_t in zip(projections, narrow, wide, strict=True)]
        taught = knowledge(output, answer, softened, alpha=kind.alpha, temperature=kind.temperature)
        return with_labels(taught, label_loss(task, output, targets, mix), kind.labels)

    return loss


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
