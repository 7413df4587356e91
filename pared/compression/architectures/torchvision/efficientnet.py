"""Writes EfficientNet b0 to b7 and EfficientNet v2, with torchvision's tensor names."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pared.compression.architectures.torchvision.entries import (
    POOL,
    Layers,
    conv_norm,
    divisible,
    dropout,
    linear,
    members,
    residual,
    sequential,
    squeeze_excite,
)


class Stage(NamedTuple):
    """Blocks of the same size. `fused`: one full convolution in place of a pointwise and a depthwise one."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    blocks: int
    fused: bool = False


class EfficientNet(NamedTuple):
    """A member of the family. `last`: channels before the classifier."""

    stem: int
    stages: list[Stage]
    last: int
    dropout: float
    norm: dict[str, float]


def layers(setting: EfficientNet, num_classes: int, in_channels: int) -> Layers:
    """The classifier."""
    norm, channels = setting.norm, setting.stem
    features = [conv_norm(in_channels, channels, 3, "SiLU", norm, stride=2)]
    total = sum(stage.blocks for stage in setting.stages)
    number = 0
    for stage in setting.stages:
        blocks: Layers = []
        for index in range(stage.blocks):
            stride = stage.stride if index == 0 else 1
            body = [sequential(_body(stage, channels, stride, norm), "block")]
            skip = stride == 1 and channels == stage.channels
            blocks.append(residual(body, drop=0.2 * number / total) if skip else ["Sequential", {"layers": body}])
            channels = stage.channels
            number += 1
        features.append(sequential(blocks))
    features.append(conv_norm(channels, setting.last, 1, "SiLU", norm))
    return [
        sequential(features, "features"),
        *POOL,
        sequential([dropout(setting.dropout), linear(setting.last, num_classes)], "classifier"),
    ]


def _body(stage: Stage, channels: int, stride: int, norm: dict[str, Any]) -> Layers:
    inner = divisible(channels * stage.expansion)
    if stage.fused and inner == channels:
        return [conv_norm(channels, stage.channels, stage.kernel, "SiLU", norm, stride=stride)]
    project = conv_norm(inner, stage.channels, 1, None, norm)
    if stage.fused:
        return [conv_norm(channels, inner, stage.kernel, "SiLU", norm, stride=stride), project]
    return [
        *([conv_norm(channels, inner, 1, "SiLU", norm)] if inner != channels else []),
        conv_norm(inner, inner, stage.kernel, "SiLU", norm, stride=stride, groups=inner),
        squeeze_excite(inner, max(1, channels // 4), "SiLU", "Sigmoid"),
        project,
    ]


_B0 = [
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
]
_SCALES = {  # width, depth, dropout
    "efficientnet_b0": (1.0, 1.0, 0.2),
    "efficientnet_b1": (1.0, 1.1, 0.2),
    "efficientnet_b2": (1.1, 1.2, 0.3),
    "efficientnet_b3": (1.2, 1.4, 0.3),
    "efficientnet_b4": (1.4, 1.8, 0.4),
    "efficientnet_b5": (1.6, 2.2, 0.4),
    "efficientnet_b6": (1.8, 2.6, 0.5),
    "efficientnet_b7": (2.0, 3.1, 0.5),
}
_V2_S = [
    Stage(1, 3, 1, 24, 2, fused=True),
    Stage(4, 3, 2, 48, 4, fused=True),
    Stage(4, 3, 2, 64, 4, fused=True),
    Stage(4, 3, 2, 128, 6),
    Stage(6, 3, 1, 160, 9),
    Stage(6, 3, 2, 256, 15),
]
_V2_M = [
    Stage(1, 3, 1, 24, 3, fused=True),
    Stage(4, 3, 2, 48, 5, fused=True),
    Stage(4, 3, 2, 80, 5, fused=True),
    Stage(4, 3, 2, 160, 7),
    Stage(6, 3, 1, 176, 14),
    Stage(6, 3, 2, 304, 18),
    Stage(6, 3, 1, 512, 5),
]
_V2_L = [
    Stage(1, 3, 1, 32, 4, fused=True),
    Stage(4, 3, 2, 64, 7, fused=True),
    Stage(4, 3, 2, 96, 7, fused=True),
    Stage(4, 3, 2, 192, 10),
    Stage(6, 3, 1, 224, 19),
    Stage(6, 3, 2, 384, 25),
    Stage(6, 3, 1, 640, 7),
]


def _scaled(width: float, depth: float, drop: float, *, large: bool) -> EfficientNet:
    stages = [
        stage._replace(channels=divisible(stage.channels * width), blocks=math.ceil(stage.blocks * depth))
        for stage in _B0
    ]
    norm = {"eps": 0.001, "momentum": 0.01} if large else {}
    return EfficientNet(divisible(32 * width), stages, 4 * stages[-1].channels, drop, norm)


ARCHITECTURES = members(
    layers,
    {name: _scaled(*scale, large=name >= "efficientnet_b5") for name, scale in _SCALES.items()}
    | {
        "efficientnet_v2_s": EfficientNet(24, _V2_S, 1280, 0.2, {"eps": 0.001}),
        "efficientnet_v2_m": EfficientNet(24, _V2_M, 1280, 0.3, {"eps": 0.001}),
        "efficientnet_v2_l": EfficientNet(32, _V2_L, 1280, 0.4, {"eps": 0.001}),
    },
)
