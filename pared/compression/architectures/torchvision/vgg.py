"""Writes AlexNet, VGG and SqueezeNet, the families without residuals, with torchvision's tensor names."""

from __future__ import annotations

from typing import Any

from pared.compression.architectures.torchvision.entries import (
    FLATTEN,
    RELU,
    Layers,
    batch_norm,
    conv,
    dropout,
    linear,
    max_pool,
    members,
    sequential,
)

_POOL = 0
"""Where the settings below have a max-pooling instead of a convolution."""


def vgg(setting: tuple[list[int], bool], num_classes: int, in_channels: int) -> Layers:
    """VGG: 3×3 convolutions (with batch norm or without) and three linear layers."""
    widths, norm = setting
    features: Layers = []
    for width in widths:
        if width == _POOL:
            features.append(max_pool(2, 2))
            continue
        features += [conv(in_channels, width, 3, bias=True), *([batch_norm(width)] if norm else []), RELU]
        in_channels = width
    classifier = [
        linear(512 * 7 * 7, 4096),
        RELU,
        dropout(0.5),
        linear(4096, 4096),
        RELU,
        dropout(0.5),
        linear(4096, num_classes),
    ]
    return [sequential(features, "features"), _pooled(7), FLATTEN, sequential(classifier, "classifier")]


def alexnet(_: None, num_classes: int, in_channels: int) -> Layers:
    """AlexNet with one stream."""
    features = [
        conv(in_channels, 64, 11, stride=4, padding=2, bias=True),
        RELU,
        max_pool(3, 2),
        conv(64, 192, 5, bias=True),
        RELU,
        max_pool(3, 2),
        conv(192, 384, 3, bias=True),
        RELU,
        conv(384, 256, 3, bias=True),
        RELU,
        conv(256, 256, 3, bias=True),
        RELU,
        max_pool(3, 2),
    ]
    classifier = [
        dropout(0.5),
        linear(256 * 6 * 6, 4096),
        RELU,
        dropout(0.5),
        linear(4096, 4096),
        RELU,
        linear(4096, num_classes),
    ]
    return [sequential(features, "features"), _pooled(6), FLATTEN, sequential(classifier, "classifier")]


def squeezenet(setting: tuple[int, int, list[int]], num_classes: int, in_channels: int) -> Layers:
    """SqueezeNet: the first convolution's channels and kernel, then the channels that each module squeezes to."""
    channels, kernel, squeezed = setting
    features = [conv(in_channels, channels, kernel, stride=2, padding=0, bias=True), RELU]
    expanded = iter([64, 64, 128, 128, 192, 192, 256, 256])
    for narrow in squeezed:
        if narrow == _POOL:
            features.append(max_pool(3, 2, ceil_mode=True))
            continue
        wide = next(expanded)
        branches = [[conv(narrow, wide, kernel, f"expand{kernel}x{kernel}", bias=True), RELU] for kernel in (1, 3)]
        fire = [conv(channels, narrow, 1, "squeeze", bias=True), RELU, ["Concat", {"branches": branches}]]
        features.append(["Sequential", {"layers": fire}])
        channels = 2 * wide
    head = conv(channels, num_classes, 1, bias=True)
    return [
        sequential(features, "features"),
        sequential([dropout(0.5), head, RELU], "classifier"),
        _pooled(1),
        FLATTEN,
    ]


def _pooled(size: int) -> list[Any]:
    return ["AdaptiveAvgPool2d", {"output_size": size}]


def _stages(*stages: list[int]) -> list[int]:
    return [width for stage in stages for width in (*stage, _POOL)]


_VGG = {
    "vgg11": _stages([64], [128], [256] * 2, [512] * 2, [512] * 2),
    "vgg13": _stages([64] * 2, [128] * 2, [256] * 2, [512] * 2, [512] * 2),
    "vgg16": _stages([64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3),
    "vgg19": _stages([64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4),
}
_SQUEEZENET = {
    "squeezenet1_0": (96, 7, [0, 16, 16, 32, 0, 32, 48, 48, 64, 0, 64]),
    "squeezenet1_1": (64, 3, [0, 16, 16, 0, 32, 32, 0, 48, 48, 64, 64]),
}

ARCHITECTURES = (
    members(alexnet, {"alexnet": None})
    | members(vgg, {name: (widths, False) for name, widths in _VGG.items()})
    | members(vgg, {f"{name}_bn": (widths, True) for name, widths in _VGG.items()})
    | members(squeezenet, _SQUEEZENET)
)
