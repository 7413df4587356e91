"""Writes the Swin transformer (version 1), with torchvision's tensor names."""

from __future__ import annotations

from typing import Any

from pared.compression.architectures.torchvision.entries import (
    POOL,
    Layers,
    conv,
    layer_norm,
    linear,
    members,
    residual,
    sequential,
)

Setting = tuple[int, tuple[int, int, int, int], float]
"""Features of the first stage (each next one has twice as many), blocks in each, stochastic depth of the last."""

_WINDOW = 7
_HEAD = 32


def layers(setting: Setting, num_classes: int, in_channels: int) -> Layers:
    """The classifier. Between stages the images are (batch, height, width, features)."""
    width, stages, drop = setting
    to_last: list[Any] = ["Permute", {"dims": [0, 2, 3, 1]}]
    stem = [conv(in_channels, width, 4, stride=4, padding=0, bias=True), to_last, layer_norm(width)]
    features = [sequential(stem)]
    total = sum(stages)
    number = 0
    for stage, count in enumerate(stages):
        blocks: Layers = []
        for index in range(count):
            shift = _WINDOW // 2 if index % 2 else 0
            blocks.append(_block(width, shift, drop * number / (total - 1)))
            number += 1
        features.append(sequential(blocks))
        if stage < 3:
            merged = [
                ["PatchMerge", {}],
                layer_norm(4 * width, "norm"),
                linear(4 * width, 2 * width, "reduction", bias=False),
            ]
            features.append(["Sequential", {"layers": merged}])
            width *= 2
    return [
        sequential(features, "features"),
        layer_norm(width, "norm"),
        ["Permute", {"dims": [0, 3, 1, 2]}],
        *POOL,
        linear(width, num_classes, "head"),
    ]


def _block(width: int, shift: int, drop: float) -> list[Any]:
    attention = {"features": width, "heads": width // _HEAD, "window": _WINDOW, "shift": shift}
    hidden = [linear(width, 4 * width, "mlp.0"), ["GELU", {}], linear(4 * width, width, "mlp.3")]
    blocks = [
        residual([layer_norm(width, "norm1"), ["WindowAttention", attention, "attn"]], drop=drop),
        residual([layer_norm(width, "norm2"), *hidden], drop=drop),
    ]
    return ["Sequential", {"layers": blocks}]


ARCHITECTURES = members(
    layers,
    {
        "swin_t": (96, (2, 2, 6, 2), 0.2),
        "swin_s": (96, (2, 2, 18, 2), 0.3),
        "swin_b": (128, (2, 2, 18, 2), 0.5),
    },
)
