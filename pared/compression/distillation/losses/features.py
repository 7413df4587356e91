"""Losses between inner layers, or embeddings, of a student and a teacher that were brought to the same shape."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pared.compression.distillation.losses.masked import mean_of, with_zeros

MOST_ANGLES = 64
"""Samples of a batch whose angles are compared: there are as many as its cube."""


def hint(student: Tensor, teacher: Tensor, counted: Tensor | None = None) -> Tensor:
    """L = ½ · Σ_i ‖t_i − r(s_i)‖² / Σ_i ‖t_i‖²: hints of FitNets (arXiv:1412.6550), in units of the teacher's size.

    The paper's ½ ‖t − r(s)‖² grows with the width and the scale of a layer; divided by the mean square of the
    teacher's numbers it is a share, so that one weight serves layers of any size.

    Args:
        student: r(s), features that were brought to the teacher's shape (N, …), with gradient.
        teacher: (N, …), without.
        counted: (N,) which rows count; None: all.
    """
    error = (teacher - student).square().reshape(len(student), -1).mean(1)
    size = mean_of(teacher.square().reshape(len(teacher), -1).mean(1), counted)
    return 0.5 * mean_of(error, counted) / torch.where(size > 0, size, 1.0)


def activity(features: Tensor) -> Tensor:
    """Q_p = Σ_c A_pc²: how active a layer is at each position. (N, …, C) -> (N, …)."""
    return features.square().sum(-1)


def attention(student: Tensor, teacher: Tensor, counted: Tensor | None = None) -> Tensor:
    """L = ½ · (1/N) Σ_i ‖Q_s,i / ‖Q_s,i‖ − Q_t,i / ‖Q_t,i‖‖²: attention transfer (arXiv:1612.03928).

    Where a layer is active, whatever its channels mean: those of both may differ in number.

    Args:
        student: `activity` at P positions (N, P), with gradient.
        teacher: (N, P), without.
        counted: (N, P) which positions count; None: all.
    """
    maps = []
    for each in (student, teacher):
        where = each if counted is None else torch.where(counted, each, 0.0)
        maps.append(functional.normalize(where, dim=1, eps=torch.finfo(where.dtype).tiny ** 0.5))
    return 0.5 * (maps[0] - maps[1]).square().sum(1).mean()


def relational(student: Tensor, teacher: Tensor, *, distance: float, angle: float) -> Tensor:
    """λ_D · mean_{i≠j} h(δ_s,ij − δ_t,ij) + λ_A · mean_{i≠j≠k} h(cos_s,ijk − cos_t,ijk): relational (arXiv:1904.05068).

    δ_ij = ‖x_i − x_j‖ / μ with μ their mean over the batch, cos_ijk the cosine of the angle at x_j between x_i and x_k,
    and h Huber's loss: x² / 2 up to 1, |x| − ½ above. What samples are to each other has no width, so nothing is
    projected. Angles are those of the first `MOST_ANGLES` samples.

    Args:
        student: (N, D), with gradient.
        teacher: (N, D′), without.
        distance, angle: λ_D and λ_A.
    """
    with torch.autocast(student.device.type, enabled=False):  # products in half precision are no angles
        of_distance = _huber_between(_distances(student), _distances(teacher))
        if not angle:
            return distance * of_distance
        of_angle = _huber_between(_angles(student[:MOST_ANGLES]), _angles(teacher[:MOST_ANGLES]))
        return distance * of_distance + angle * of_angle


def cosine(student: Tensor, teacher: Tensor, counted: Tensor | None = None) -> Tensor:
    """L = (1/N) Σ_i (1 − cos(s_i, t_i)): the direction of an embedding, whatever its length.

    Args:
        student: (N, …), with gradient.
        teacher: of the same shape, without.
        counted: (N,) which rows count; None: all.
    """
    student, teacher = (each.reshape(len(each), -1) for each in with_zeros(student, teacher))
    return mean_of(1 - functional.cosine_similarity(student, teacher, dim=1), counted)


def _distances(x: Tensor) -> tuple[Tensor, Tensor]:
    """δ (N, N), and which entries are of two samples."""
    apart = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    lengths = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    mean = torch.where(apart, lengths, 0.0).sum() / apart.sum().clamp_min(1)
    return lengths / torch.where(mean > 0, mean, 1.0), apart


def _angles(x: Tensor) -> tuple[Tensor, Tensor]:
    """cos_ijk as (N, N, N), j first, and which entries are of three samples."""
    apart = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    towards = x[None] - x[:, None]  # [j, i] = x_i − x_j
    lengths = _root(towards.square().sum(2, keepdim=True))
    towards = towards / torch.where(lengths > 0, lengths, 1.0)
    return towards @ towards.transpose(1, 2), apart[:, :, None] & apart[:, None] & apart[None]


def _root(squares: Tensor) -> Tensor:
    """√, with the gradient 0 at 0, where it has none."""
    some = squares > 0
    return torch.where(some, torch.where(some, squares, 1.0).sqrt(), 0.0)


def _huber_between(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    each = functional.smooth_l1_loss(student[0], teacher[0], reduction="none")
    return torch.where(student[1], each, 0.0).sum() / student[1].sum().clamp_min(1)
