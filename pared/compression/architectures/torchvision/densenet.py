"""Writes DenseNet, with torchvision's tensor names."""

from __future__ import annotations

from pared.compression.architectures.torchvision.entries import (
    POOL,
    RELU,
    Layers,
    batch_norm,
    conv,
    linear,
    max_pool,
    members,
)

Setting = tuple[int, tuple[int, int, int, int], int]
"""Channels that each layer adds, layers in each block, channels of the first convolution."""


def layers(setting: Setting, num_classes: int, in_channels: int) -> Layers:
    """The classifier."""
    growth, blocks, channels = setting
    features = [conv(in_channels, channels, 7, "conv0", stride=2), batch_norm(channels, "norm0"), RELU]
    features.append(max_pool(3, 2, padding=1))
    for number, count in enumerate(blocks, start=1):
        for layer in range(1, count + 1):
            added = [
                batch_norm(channels, "norm1"),
                RELU,
                conv(channels, 4 * growth, 1, "conv1"),
                batch_norm(4 * growth, "norm2"),
                RELU,
                conv(4 * growth, growth, 3, "conv2"),
            ]
            features.append(["Concat", {"branches": [[], added]}, f"denseblock{number}.denselayer{layer}"])
            channels += growth
        if number < len(blocks):
            transition = [batch_norm(channels, "norm"), RELU, conv(channels, channels // 2, 1, "conv")]
            pool = ["AvgPool2d", {"kernel_size": 2, "stride": 2}]
            features.append(["Sequential", {"layers": [*transition, pool]}, f"transition{number}"])
            channels //= 2
    features.append(batch_norm(channels, "norm5"))
    return [
        ["Sequential", {"layers": features}, "features"],
        RELU,
        *POOL,
        linear(channels, num_classes, "classifier"),
    ]


ARCHITECTURES = members(
    layers,
    {
        "densenet121": (32, (6, 12, 24, 16), 64),
        "densenet161": (48, (6, 12, 36, 24), 96),
        "densenet169": (32, (6, 12, 32, 32), 64),
        "densenet201": (32, (6, 12, 48, 32), 64),
    },
)
