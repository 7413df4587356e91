"""Brings what a layer of the student gives to the shape of the teacher's: positions averaged, channels projected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pared.compression.distillation.features import Layer
from pared.compression.distillation.losses import activity

MAX_PROJECTION = 1 << 26
"""Most weights of one learned projection: 256 MiB, and three times that with its optimizer state."""

_POOLS = {1: functional.adaptive_avg_pool1d, 2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}


class Adapter(nn.Module):
    """Two features -> both as (N, P, C), P positions and the channels C of the teacher.

    Where both have positions of the same number of dimensions, such as images (H, W), each size becomes the smaller of
    the two: the finer one is averaged over areas. Where the numbers differ, as of an image and a sequence, positions
    are taken in their order; beside a vector, which has none, they are averaged. Channels are the last thing: a
    learned linear map at each position, which is a 1×1 convolution, where they differ.
    """

    def __init__(self, teacher: Layer, student: Layer) -> None:
        super().__init__()
        self._dims = teacher.channel_dim, student.channel_dim
        differs = teacher.channels != student.channels
        self.project: nn.Module = nn.Linear(student.channels, teacher.channels) if differs else nn.Identity()

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """(N, …) each, as the layers give them -> (N, P, C) each, in float32 or float64."""
        of_teacher, of_student = self._dims
        student, teacher = same_places(channels_last(student, of_student), channels_last(teacher, of_teacher))
        return self.project(student).flatten(1, -2).to(teacher.dtype), teacher.flatten(1, -2)


def active_places(student: Tensor, teacher: Tensor, layers: tuple[Layer, Layer]) -> tuple[Tensor, Tensor]:
    """How active both are at the same positions, (N, P) each. `layers`: of the student and of the teacher."""
    own, expected = (
        activity(channels_last(each, layer.channel_dim))[..., None]
        for each, layer in zip((student, teacher), layers, strict=True)
    )
    own, expected = same_places(own, expected)
    return own.flatten(1), expected.flatten(1)


def channels_last(value: Tensor, channel_dim: int) -> Tensor:
    """(N, …) with the channels last; of a vector (N, C) the same. Half precision becomes float32."""
    value = value if value.dtype == torch.float64 else value.float()
    return value.movedim(1 + channel_dim, -1)


def pooled(value: Tensor, channel_dim: int) -> Tensor:
    """(N, C): the mean over all positions."""
    return channels_last(value, channel_dim).flatten(1, -2).mean(1) if value.dim() > 2 else channels_last(value, 0)


def same_places(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(N, *places, C) each -> with the same places; of a vector there is one."""
    if 2 in (student.dim(), teacher.dim()):
        return _averaged(student), _averaged(teacher)
    if student.dim() != teacher.dim() or student.dim() - 2 not in _POOLS:
        student, teacher = student.flatten(1, -2), teacher.flatten(1, -2)
    places = [min(sizes) for sizes in zip(student.shape[1:-1], teacher.shape[1:-1], strict=True)]
    return _resized(student, places), _resized(teacher, places)


def _averaged(value: Tensor) -> Tensor:
    return value[:, None] if value.dim() == 2 else value.flatten(1, -2).mean(1, keepdim=True)


def _resized(value: Tensor, places: list[int]) -> Tensor:
    if list(value.shape[1:-1]) == places:
        return value
    pool: Any = _POOLS[len(places)]
    found: Tensor = pool(value.movedim(-1, 1), places)
    return found.movedim(1, -1)


def in_words(teacher: Layer, student: Layer, *, projects: bool) -> str:
    """How the two are made alike, such as `8×8 positions averaged to 4×4, 16 channels projected to 32`."""
    parts = []
    if teacher.places != student.places:
        shown = ["×".join(map(str, each.places)) for each in (student, teacher)]
        parts.append(
            f"positions ({shown[0]} and {shown[1]}) brought to the same number"
            if all(shown)
            else f"positions ({shown[0] or shown[1]}) averaged"
        )
    if projects and teacher.channels != student.channels:
        parts.append(f"{student.channels} channels projected to {teacher.channels}")
    return ", ".join(parts) or "as they are"
