"""The losses of distillation as pure functions of a student's answers and a teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def output_mse(student: Tensor, teacher: Tensor, counted: Tensor | None = None) -> Tensor:
    """L = (1/N) Σ_i ‖f(x_i; θ_t) − f′(x_i; θ_s)‖²: summed over outputs, mean over the batch.

    Matching logits by their squared distance is Ba and Caruana 2014 (arXiv:1312.6184).

    Args:
        student: outputs (N, …), with gradient; of pixels or tokens a row for each.
        teacher: outputs of the same shape, without.
        counted: (N,) which rows count; None: all.
    """
    distances = (teacher - student).square().reshape(len(student), -1).sum(1)
    return distances.mean() if counted is None else _mean_of(distances, counted)


def softened_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    counted: Tensor | None = None,
    *,
    independent: bool = False,
) -> Tensor:
    """T² · (1/N) Σ_i KL(σ(z_t,i / T) ‖ σ(z_s,i / T)), σ the softmax.

    The factor T² keeps the gradients' size, which softening divides by T² (Hinton et al. 2015, arXiv:1503.02531).

    Args:
        student: logits (N, C), with gradient.
        teacher: logits (N, C), without.
        temperature: T.
        counted: (N,) which rows count; None: all.
        independent: σ is the sigmoid, and the KL that of each of C yes-or-no answers, summed.
    """
    if independent:
        student, teacher = (torch.stack([each, torch.zeros_like(each)], -1) for each in (student, teacher))
    # kl_div takes log-probabilities of the student first, and sums p_t · (log p_t − log p_s) a sample.
    student_log = functional.log_softmax(student / temperature, dim=-1 if independent else 1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=-1 if independent else 1)
    if counted is None:
        kl = functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
    else:
        each = functional.kl_div(student_log, teacher_log, reduction="none", log_target=True)
        kl = _mean_of(each.reshape(len(each), -1).sum(1), counted)
    return kl * temperature**2


def _mean_of(rows: Tensor, counted: Tensor) -> Tensor:
    """The mean of the rows that count; 0 where none does."""
    return torch.where(counted, rows, 0.0).sum() / counted.sum().clamp_min(1)


def knowledge(
    student: Tensor,
    teacher: Tensor,
    softened: Sequence[tuple[Tensor, Tensor]],
    *,
    alpha: float,
    temperature: float,
    counted: Tensor | None = None,
    independent: bool = False,
) -> Tensor:
    """L = α · (1/N) Σ_i ‖f_t(x_i) − f_s(x_i)‖² + (1−α) · T² · (1/N) Σ_i KL(σ(z_t,i / T) ‖ σ(z_s,i / T)).

    Args:
        student, teacher: outputs (N, C).
        softened: pairs (z_s, z_t), each (N, D): the logits, or the outputs of intermediate layers ("hints", Romero
            et al. 2015, arXiv:1412.6550). Of several pairs the KL terms are averaged.
        counted: (N,) which rows of the outputs, and of pairs that are these, count; None: all.
        independent: as in `softened_kl`, of pairs that are the outputs.
    """
    terms = [
        softened_kl(z_s, z_t, temperature, counted, independent=independent)
        if z_s is student
        else softened_kl(z_s, z_t, temperature)
        for z_s, z_t in softened
    ]
    return alpha * output_mse(student, teacher, counted) + (1 - alpha) * torch.stack(terms).mean()


def with_labels(loss: Tensor, label: Tensor, share: float) -> Tensor:
    """(1−λ) · L + λ · CE, the share λ of the loss being what the labels say."""
    return (1 - share) * loss + share * label
