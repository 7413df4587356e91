"""Writes ConvNeXt, with torchvision's tensor names."""

from __future__ import annotations

from typing import Any

from pared.compression.architectures.torchvision.entries import (
    FLATTEN,
    Layers,
    conv,
    layer_norm,
    linear,
    members,
    residual,
    sequential,
)

Setting = tuple[int, tuple[int, int, int, int], float]
"""Width of the first stage (each next one has twice as much), blocks in each stage, stochastic depth of the last."""

_EPS = 1e-6
_TO_LAST: list[Any] = ["Permute", {"dims": [0, 2, 3, 1]}]
_TO_FIRST: list[Any] = ["Permute", {"dims": [0, 3, 1, 2]}]


def layers(setting: Setting, num_classes: int, in_channels: int) -> Layers:
    """The classifier."""
    width, stages, drop = setting
    features = [_named([conv(in_channels, width, 4, "0", stride=4, padding=0, bias=True), *_norm(width, "1")], "0")]
    total = sum(stages)
    number = 0
    for stage, count in enumerate(stages):
        blocks = []
        for _ in range(count):
            blocks.append(_block(width << stage, drop * number / (total - 1)))
            number += 1
        features.append(sequential(blocks, str(2 * stage + 1)))
        if stage < 3:
            narrow = width << stage
            down = conv(narrow, 2 * narrow, 2, "1", stride=2, padding=0, bias=True)
            features.append(_named([*_norm(narrow, "0"), down], str(2 * stage + 2)))
    last = width << 3
    return [
        _named(features, "features"),
        ["AdaptiveAvgPool2d", {"output_size": 1}],
        _named([*_norm(last, "0"), FLATTEN, linear(last, num_classes, "2")], "classifier"),
    ]


def _block(width: int, drop: float) -> list[Any]:
    body = [
        conv(width, width, 7, groups=width, bias=True),
        _TO_LAST,
        layer_norm(width, eps=_EPS),
        linear(width, 4 * width),
        ["GELU", {}],
        linear(4 * width, width),
        _TO_FIRST,
    ]
    scale = ["Scale", {"shape": [width, 1, 1], "value": 1e-6}, "layer_scale"]
    return residual([sequential(body, "block"), scale], drop=drop)


def _norm(width: int, name: str) -> Layers:
    """Layer norm over the channels of images."""
    return [_TO_LAST, layer_norm(width, name, eps=_EPS), _TO_FIRST]


def _named(entries: Layers, name: str) -> list[Any]:
    return ["Sequential", {"layers": entries}, name]


ARCHITECTURES = members(
    layers,
    {
        "convnext_tiny": (96, (3, 3, 9, 3), 0.1),
        "convnext_small": (96, (3, 3, 27, 3), 0.4),
        "convnext_base": (128, (3, 3, 27, 3), 0.5),
        "convnext_large": (192, (3, 3, 27, 3), 0.5),
    },
)
