"""The losses of distillation as pure functions of a student's answers and a teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def output_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """L = (1/N) Σ_i ‖f(x_i; θ_t) − f′(x_i; θ_s)‖²: summed over outputs, mean over the batch.

    Matching logits by their squared distance is Ba and Caruana 2014 (arXiv:1312.6184).

    Args:
        student: outputs (N, …), with gradient.
        teacher: outputs of the same shape, without.
    """
    return (teacher - student).square().reshape(len(student), -1).sum(1).mean()


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · (1/N) Σ_i KL(σ(z_t,i / T) ‖ σ(z_s,i / T)), σ the softmax.

    The factor T² keeps the gradients' size, which softening divides by T² (Hinton et al. 2015, arXiv:1503.02531).

    Args:
        student: logits (N, C), with gradient.
        teacher: logits (N, C), without.
        temperature: T.
    """
    # kl_div takes log-probabilities of the student first, and sums p_t · (log p_t − log p_s) a sample.
    student_log = functional.log_softmax(student / temperature, dim=1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=1)
    return functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True) * temperature**2


def knowledge(
    student: Tensor,
    teacher: Tensor,
    softened: Sequence[tuple[Tensor, Tensor]],
    *,
    alpha: float,
    temperature: float,
) -> Tensor:
    """L = α · (1/N) Σ_i ‖f_t(x_i) − f_s(x_i)‖² + (1−α) · T² · (1/N) Σ_i KL(σ(z_t,i / T) ‖ σ(z_s,i / T)).

    Args:
        student, teacher: outputs (N, C).
        softened: pairs (z_s, z_t), each (N, D): the logits, or the outputs of intermediate layers ("hints", Romero
            et al. 2015, arXiv:1412.6550). Of several pairs the KL terms are averaged.
    """
    kl = torch.stack([softened_kl(z_s, z_t, temperature) for z_s, z_t in softened]).mean()
    return alpha * output_mse(student, teacher) + (1 - alpha) * kl


def with_labels(loss: Tensor, label: Tensor, share: float) -> Tensor:
    """(1−λ) · L + λ · CE, the share λ of the loss being what the labels say."""
    return (1 - share) * loss + share * label
