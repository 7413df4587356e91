"""What a student learns from its teacher in the training loop: the loss, and the samples with the teacher's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pared.compression.data.samples import Inputs
from pared.compression.devices.placement import place
from pared.compression.distillation.features import Probe
from pared.compression.distillation.losses import knowledge, output_mse, with_labels
from pared.compression.measuring.running import Samples, answers, forward
from pared.compression.tasks import TASKS
from pared.compression.training.gradients import Loss
from pared.compression.training.seeds import seed_of
from pared.errors import ShapeMismatch, ValidationError
from pared.specs import Knowledge, OutputMse, Task

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
) -> Objective:
    """Prepare what the student learns from the teacher, which stays as it is: in eval mode, without gradients.

    Without feature pairs the teacher's logits are computed once, over the training split in its stored order, and
    travel with the samples. With pairs, whose outputs can be many times larger, the teacher runs beside the student.

    Args:
        example: inputs of both models, with a batch of at least 2.

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
    if not isinstance(kind, Knowledge):
        return Objective(_taught(teacher, data, task, device), _output_loss(task), None)
    if not pairs:
        return Objective(_taught(teacher, data, task, device), _logit_loss(kind, task), None)
    projections = _projections(pairs, narrow, wide, seed).to(device)
    return Objective(data, _feature_loss(kind, task, seen_by["teacher"], seen_by["student"], projections), projections)


def _taught(teacher: nn.Module, data: TeachableSamples, task: Task, device: str) -> Samples:
    """The samples with the teacher's outputs over the training split, computed once, where the student runs."""
    return data.taught(answers(teacher, data, "train", task, device=device)[0])


def _output_loss(task: Task) -> Loss:
    def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        *samples, answer = inputs
        return output_mse(forward(student, tuple(samples), task), answer)

    return loss


def _logit_loss(kind: Knowledge, task: Task) -> Loss:
    def loss(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        *samples, answer = inputs
        output = forward(student, tuple(samples), task)
        taught = knowledge(output, answer, [(output, answer)], alpha=kind.alpha, temperature=kind.temperature)
        return with_labels(taught, TASKS[task].loss(output, targets), kind.labels)

    return loss


def _feature_loss(kind: Knowledge, task: Task, teacher: Probe, student: Probe, projections: nn.ModuleList) -> Loss:
    def loss(_: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        with torch.no_grad():
            answer, wide = teacher(inputs, task)
        output, narrow = student(inputs, task)
        softened = [(project(z_s), z_t) for project, z_s, z_t in zip(projections, narrow, wide, strict=True)]
        taught = knowledge(output, answer, softened, alpha=kind.alpha, temperature=kind.temperature)
        return with_labels(taught, TASKS[task].loss(output, targets), kind.labels)

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
