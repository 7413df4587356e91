"""Losses between a student's answers and a teacher's, row by row: of samples, or of their pixels or tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pared.compression.distillation.losses.masked import any_known, both, known_of, mean_of, with_least, with_zeros

_LEAST = 1e-12  # of a sum of squared probabilities that counts as different from 0


def output_mse(student: Tensor, teacher: Tensor, counted: Tensor | None = None) -> Tensor:
    """L = (1/N) Σ_i ‖f(x_i; θ_t) − f′(x_i; θ_s)‖²: summed over outputs, mean over the batch.

    Matching logits by their squared distance is Ba and Caruana 2014 (arXiv:1312.6184). Classes that the teacher masks
    with −inf have no distance.

    Args:
        student: outputs (N, …), with gradient; of pixels or tokens a row for each.
        teacher: outputs of the same shape, without.
        counted: (N,) which rows count; None: all.
    """
    student, teacher = with_zeros(student, teacher)
    return mean_of((teacher - student).square().reshape(len(student), -1).sum(1), counted)


def softened_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    counted: Tensor | None = None,
    *,
    independent: bool = False,
) -> Tensor:
    """T² · (1/N) Σ_i KL(σ(z_t,i / T) ‖ σ(z_s,i / T)), σ the softmax.

    The factor T² keeps the gradients' size, which softening divides by T² (Hinton et al. 2015, arXiv:1503.02531). Of a
    class that the teacher masks with −inf, 0 · log 0 is 0.

    Args:
        student: logits (N, C), with gradient.
        teacher: logits (N, C), without.
        temperature: T.
        counted: (N,) which rows count; None: all.
        independent: σ is the sigmoid, and the KL that of each of C yes-or-no answers, summed.
    """
    if independent:
        student, teacher = (torch.stack([each, torch.zeros_like(each)], -1) for each in (student, teacher))
    told = any_known(teacher)
    student, teacher = with_least(student, teacher)
    # kl_div takes log-probabilities of the student first, and gives p_t · (log p_t − log p_s).
    student_log = functional.log_softmax(student / temperature, dim=-1 if independent else 1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=-1 if independent else 1)
    each = functional.kl_div(student_log, teacher_log, reduction="none", log_target=True)
    if counted is None:
        kl = torch.where(told.reshape(-1, *[1] * (each.dim() - 1)), each, 0.0).sum() / len(each)
    else:
        kl = mean_of(torch.where(told, each.reshape(len(each), -1).sum(1), 0.0), counted)
    return kl * temperature**2


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
        alpha: α, the weight of the output distance.
        temperature: T.
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


def decoupled(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
    counted: Tensor | None = None,
) -> Tensor:
    """T² · (1/N) Σ_i [α · KL(b_t,i ‖ b_s,i) + β · KL(q_t,i ‖ q_s,i)]: decoupled distillation (arXiv:2203.08679).

    With p = σ(z / T) and y the class of the label, b = (p_y, 1 − p_y), and q is the softmax over all classes but y. The
    plain KL is both with α = 1 and β = 1 − p_t,y, so that it says the less of the other classes the surer the teacher
    is of y; here β is a weight of its own.

    Args:
        student: logits (N, C), with gradient.
        teacher: logits (N, C), without; −inf masks a class.
        labels: (N,) classes, 0 where a row does not count.
        alpha, beta: α and β.
        temperature: T.
        counted: (N,) which rows count; None: all.
    """
    of_label = functional.one_hot(labels, student.shape[1]).bool()
    others_known = (known_of(teacher) & ~of_label).any(1)
    told = any_known(teacher)
    student, teacher = (each / temperature for each in with_least(student, teacher))
    binary, others = [], []
    for logits in (student, teacher):
        whole = logits.logsumexp(1)
        # Of a masked row or class the least number stays least: no logarithm here is of 0.
        rest = logits.masked_fill(of_label, -1e9 / temperature)
        binary.append(torch.stack([logits.gather(1, labels[:, None])[:, 0] - whole, rest.logsumexp(1) - whole], 1))
        others.append(rest.log_softmax(1))
    target = functional.kl_div(binary[0], binary[1], reduction="none", log_target=True).sum(1)
    apart = functional.kl_div(others[0], others[1], reduction="none", log_target=True).masked_fill(of_label, 0.0).sum(1)
    rows = alpha * target + beta * torch.where(others_known, apart, 0.0)
    return mean_of(torch.where(told, rows, 0.0), counted) * temperature**2


def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float,
    gamma: float,
    temperature: float,
    counted: Tensor | None = None,
    independent: bool = False,
) -> Tensor:
    """T² · [β · (1/N) Σ_i (1 − ρ(Y_s,i·, Y_t,i·)) + γ · (1/C) Σ_c (1 − ρ(Y_s,·c, Y_t,·c))]: DIST (arXiv:2205.10536).

    Y = σ(z / T), (N, C), and ρ is Pearson's correlation: within each row, over classes, and within each class, over
    the rows of the batch. A student far smaller than its teacher follows the order of answers where it cannot follow
    their sizes. A row or class in which the teacher says the same throughout has no correlation, and is left out.

    Args:
        student: logits (N, C), with gradient.
        teacher: logits (N, C), without; −inf masks a class.
        beta, gamma: β, the weight within rows, and γ, that within classes.
        temperature: T.
        counted: (N,) which rows count; None: all.
        independent: σ is the sigmoid.
    """
    counts = both(counted, any_known(teacher))
    both_logits = with_least(student, teacher)
    y_s, y_t = (
        torch.sigmoid(z / temperature) if independent else torch.softmax(z / temperature, 1) for z in both_logits
    )
    whole = torch.ones_like(y_t)
    rows, told_rows = _correlation(y_s, y_t, whole)
    classes, told_classes = _correlation(y_s.T, y_t.T, whole.T * counts)
    inter = mean_of(1 - rows, counts & told_rows)
    intra = mean_of(1 - classes, told_classes)
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson's correlation of each row, (R,), over the entries whose weight is 1; and which rows of y have one."""
    count = weights.sum(1, keepdim=True).clamp_min(1)
    x, y = ((each - (each * weights).sum(1, keepdim=True) / count) * weights for each in (x, y))
    of_x, of_y = x.square().sum(1), y.square().sum(1)
    varies = of_x > _LEAST  # a student that says the same throughout has no direction, and no gradient
    size = (torch.where(varies, of_x, 1.0) * torch.where(of_y > _LEAST, of_y, 1.0)).sqrt()
    return torch.where(varies, (x * y).sum(1) / size, 0.0), of_y > _LEAST
