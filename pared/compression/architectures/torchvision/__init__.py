"""Lists torchvision's architectures by torchvision's names; their tensors have the names of its published weights."""

from __future__ import annotations

from collections.abc import Callable

from pared.compression.architectures.torchvision import (
    convnext,
    densenet,
    efficientnet,
    mobilenet,
    resnet,
    segmentation,
    swin,
    vgg,
    vit,
)
from pared.compression.architectures.torchvision.entries import Layers

__all__ = ["TORCHVISION"]

_FAMILIES = (resnet, vgg, mobilenet, efficientnet, convnext, densenet, vit, swin, segmentation)

TORCHVISION: dict[str, Callable[..., Layers]] = {
    name: write for family in _FAMILIES for name, write in family.ARCHITECTURES.items()
}
"""Name to the function of `num_classes` and `in_channels` that writes its layer list."""
