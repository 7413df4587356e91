"""Refuses, before any training, a loss that has nothing to compare, and answers that nothing can be learned from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pared.compression.distillation.lessons import Part
from pared.compression.tasks import TaskRules
from pared.errors import ValidationError
from pared.specs import OF_CLASSES, Combined, CosineTerm, DecoupledTerm


def hold_terms(kind: Combined, task: TaskRules, answer: Tensor, targets: Tensor, pointer: str) -> None:
    """Raises ValidationError where a term has no part in the task. Args: answer, targets: of some samples."""
    for place, term in enumerate(kind.terms):
        why = None
        if isinstance(term, OF_CLASSES) and not task.softens:
            why = f"compares odds of classes, which task={task.name} does not have: use `output_mse` or inner layers"
        elif isinstance(term, DecoupledTerm) and task.independent:
            why = (
                "parts the label's class from the others, but here each class is a question of its own: use `kl`, "
                "which compares them one by one"
            )
        elif isinstance(term, CosineTerm) and term.features is None and not _has_direction(answer, targets, task):
            why = "compares directions, and one number has none: use `output_mse` or `kl`"
        if why is not None:
            text = f"`{term.kind}` {why}."
            raise ValidationError(text, errors=[{"pointer": f"{pointer}/terms/{place}", "detail": text}])


def _has_direction(answer: Tensor, targets: Tensor, task: TaskRules) -> bool:
    """Whether rows have more numbers than one; a lone logit has a 0 beside it."""
    rows = task.rows(answer, targets)[0]
    return rows.shape[1] > 1 and bool(rows[:, 0].any())


def hold_answers(answers: Tensor, task: TaskRules) -> None:
    """Raises ValidationError where a teacher answers NaN or infinity, (samples, …): such a loss is none.

    −∞ is an answer: that a class is masked.
    """
    if task.has_references:
        return  # places without a number are left out there
    bad = ~(answers.isfinite() | (answers == -torch.inf)).reshape(len(answers), -1).all(1)
    count = int(bad.sum())
    if count:
        text = (
            f"The teacher answers NaN or infinity for {count:,} of {len(answers):,} training samples (the first is "
            f"number {int(bad.int().argmax())}, from 0), from which nothing can be learned. Leave these out, or look "
            "whether the data must be scaled (`preprocess`)."
        )
        raise ValidationError(text, errors=[{"pointer": "/teacher", "detail": text}])


def hold_finite(parts: Sequence[Part], student: Tensor, pointer: str) -> None:
    """Raises ValidationError where a part of the loss is no finite number for the first samples.

    Args:
        student: its answers to these.
        pointer: to the loss in the spec.
    """
    if bool(student.isnan().any()):
        text = (
            "The student answers NaN before it is trained, from which nothing can be learned. Look for NaN among its "
            "weights."
        )
        raise ValidationError(text, errors=[{"pointer": "/student", "detail": text}])
    for place, value in parts:
        if not bool(value.isfinite()):
            masks = bool((student == -torch.inf).any())
            why = (
                "the student masks classes with −inf that the teacher does not mask. Use a student that answers them."
                if masks
                else "numbers in it are too large, or none. Use another loss or layers, or other scales of the data."
            )
            text = f"The loss is {float(value)} for the first training samples: {why}"
            raise ValidationError(text, errors=[{"pointer": f"{pointer}{place}", "detail": text}])
