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

__all__ = ["FAMILIES", "TORCHVISION"]

Members = dict[str, Callable[..., Layers]]

FAMILIES: list[tuple[tuple[str, ...], Members]] = [
    (("layer4.0.conv2.weight",), resnet.ARCHITECTURES),
    (("classifier.6.weight", "features.3.squeeze.weight"), vgg.ARCHITECTURES),
    (("features.2.conv.1.0.weight", "features.1.block.0.0.weight"), mobilenet.ARCHITECTURES),
    (("features.1.0.block.0.0.weight",), efficientnet.ARCHITECTURES),
    (("features.1.0.layer_scale",), convnext.ARCHITECTURES),
    (("features.denseblock1.denselayer1.norm1.weight",), densenet.ARCHITECTURES),
    (("encoder.pos_embedding",), vit.ARCHITECTURES),
    (("features.1.0.attn.relative_position_bias_table",), swin.ARCHITECTURES),
    (("backbone.layer4.0.conv2.weight", "classifier.cbr.0.weight"), segmentation.ARCHITECTURES),
]
"""Families, each with tensors one of which every member has and few other models have."""

TORCHVISION: Members = {name: write for _, members in FAMILIES for name, write in members.items()}
"""Name to the function of `num_classes` and `in_channels` that writes its layer list."""
