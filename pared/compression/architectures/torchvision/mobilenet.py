"""Writes MobileNet v2 and v3, with torchvision's tensor names."""

from __future__ import annotations

from typing import Any, NamedTuple

from pared.compression.architectures.torchvision.entries import (
    POOL,
    Layers,
    batch_norm,
    conv,
    conv_norm,
    divisible,
    dropout,
    linear,
    members,
    residual,
    sequential,
    squeeze_excite,
)


def v2(stages: list[tuple[int, int, int, int]], num_classes: int, in_channels: int) -> Layers:
    """MobileNet v2; each stage is (expansion, channels, blocks, first stride)."""
    features = [conv_norm(in_channels, 32, 3, "ReLU6", stride=2)]
    channels = 32
    for expansion, width, count, first_stride in stages:
        for block in range(count):
            stride = first_stride if block == 0 else 1
            inner = channels * expansion
            body = [conv_norm(channels, inner, 1, "ReLU6")] if expansion > 1 else []
            body += [
                conv_norm(inner, inner, 3, "ReLU6", stride=stride, groups=inner),
                conv(inner, width),
                batch_norm(width),
            ]
            features.append(_block(body, "conv", skip=stride == 1 and channels == width))
            channels = width
    features.append(conv_norm(channels, 1280, 1, "ReLU6"))
    return [
        sequential(features, "features"),
        *POOL,
        sequential([dropout(0.2), linear(1280, num_classes)], "classifier"),
    ]


class Block(NamedTuple):
    """An inverted residual block of MobileNet v3: its sizes, whether it squeezes and excites, and its activation."""

    kernel: int
    expanded: int
    channels: int
    excite: bool
    activation: str
    stride: int


def v3(setting: tuple[list[Block], int], num_classes: int, in_channels: int) -> Layers:
    """MobileNet v3 with `hidden` features before the last layer."""
    blocks, hidden = setting
    last = 6 * blocks[-1].channels
    classifier = [linear(last, hidden), ["Hardswish", {}], dropout(0.2), linear(hidden, num_classes)]
    return [
        sequential(v3_features(blocks, in_channels), "features"),
        *POOL,
        sequential(classifier, "classifier"),
    ]


def v3_features(blocks: list[Block], in_channels: int, *, dilated: bool = False) -> Layers:
    """All but the head, an entry a block. `dilated`: the last three blocks dilate instead of halving the image."""
    channels = blocks[0].channels
    features = [conv_norm(in_channels, channels, 3, "Hardswish", _NORM, stride=2)]
    for number, (kernel, inner, width, excite, activation, stride) in enumerate(blocks):
        dilation = 2 if dilated and number >= len(blocks) - 3 else 1
        body = [conv_norm(channels, inner, 1, activation, _NORM)] if inner != channels else []
        own_stride = 1 if dilation > 1 else stride
        body.append(
            conv_norm(inner, inner, kernel, activation, _NORM, stride=own_stride, groups=inner, dilation=dilation)
        )
        if excite:
            body.append(squeeze_excite(inner, divisible(inner // 4), "ReLU", "Hardsigmoid"))
        body.append(conv_norm(inner, width, 1, None, _NORM))
        features.append(_block(body, "block", skip=stride == 1 and channels == width))
        channels = width
    return [*features, conv_norm(channels, 6 * channels, 1, "Hardswish", _NORM)]


def _block(body: Layers, name: str, *, skip: bool) -> list[Any]:
    inner = [sequential(body, name)]
    return residual(inner) if skip else ["Sequential", {"layers": inner}]


_NORM = {"eps": 0.001, "momentum": 0.01}

_V2 = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]
V3_LARGE = [
    Block(3, 16, 16, False, "ReLU", 1),
    Block(3, 64, 24, False, "ReLU", 2),
    Block(3, 72, 24, False, "ReLU", 1),
    Block(5, 72, 40, True, "ReLU", 2),
    Block(5, 120, 40, True, "ReLU", 1),
    Block(5, 120, 40, True, "ReLU", 1),
    Block(3, 240, 80, False, "Hardswish", 2),
    Block(3, 200, 80, False, "Hardswish", 1),
    Block(3, 184, 80, False, "Hardswish", 1),
    Block(3, 184, 80, False, "Hardswish", 1),
    Block(3, 480, 112, True, "Hardswish", 1),
    Block(3, 672, 112, True, "Hardswish", 1),
    Block(5, 672, 160, True, "Hardswish", 2),
    Block(5, 960, 160, True, "Hardswish", 1),
    Block(5, 960, 160, True, "Hardswish", 1),
]
_V3_SMALL = [
    Block(3, 16, 16, True, "ReLU", 2),
    Block(3, 72, 24, False, "ReLU", 2),
    Block(3, 88, 24, False, "ReLU", 1),
    Block(5, 96, 40, True, "Hardswish", 2),
    Block(5, 240, 40, True, "Hardswish", 1),
    Block(5, 240, 40, True, "Hardswish", 1),
    Block(5, 120, 48, True, "Hardswish", 1),
    Block(5, 144, 48, True, "Hardswish", 1),
    Block(5, 288, 96, True, "Hardswish", 2),
    Block(5, 576, 96, True, "Hardswish", 1),
    Block(5, 576, 96, True, "Hardswish", 1),
]

ARCHITECTURES = members(v2, {"mobilenet_v2": _V2}) | members(
    v3, {"mobilenet_v3_large": (V3_LARGE, 1280), "mobilenet_v3_small": (_V3_SMALL, 1024)}
)
