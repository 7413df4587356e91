"""Writes ResNet, wide ResNet and ResNeXt, with the tensor names that torchvision gives them."""

from __future__ import annotations

from dataclasses import dataclass

from pared.compression.architectures.torchvision.entries import (
    POOL,
    RELU,
    Layers,
    batch_norm,
    conv,
    linear,
    max_pool,
    members,
    residual,
)


@dataclass(frozen=True)
class ResNet:
    """Blocks in each of the four stages; with `group_width`, blocks of three convolutions instead of two."""

    blocks: tuple[int, int, int, int]
    group_width: int | None = 64
    groups: int = 1


def layers(setting: ResNet, num_classes: int, in_channels: int) -> Layers:
    """The classifier."""
    return [
        *features(setting, in_channels),
        *POOL,
        linear(512 if setting.group_width is None else 2048, num_classes, "fc"),
    ]


def features(setting: ResNet, in_channels: int, prefix: str = "", *, dilated: bool = False) -> Layers:
    """All but the head. `dilated`: the last two stages dilate their kernels instead of halving the image."""
    entries = [
        conv(in_channels, 64, 7, f"{prefix}conv1", stride=2),
        batch_norm(64, f"{prefix}bn1"),
        RELU,
        max_pool(3, 2, padding=1),
    ]
    channels, dilation = 64, 1
    for stage, count in enumerate(setting.blocks, start=1):
        for block in range(count):
            stride = 2 if stage > 1 and block == 0 else 1
            before = dilation
            if dilated and stage > 2 and stride == 2:
                stride, dilation = 1, dilation * 2
            name = f"{prefix}layer{stage}.{block}"
            body, width = _body(setting, channels, 32 << stage, stride, before)
            shortcut = None
            if block == 0 and (stage > 1 or channels != width):
                shortcut = [
                    conv(channels, width, 1, "downsample.0", stride=stride),
                    batch_norm(width, "downsample.1"),
                ]
            entries += [residual(body, shortcut, name), RELU]
            channels = width
    return entries


def _body(setting: ResNet, channels: int, planes: int, stride: int, dilation: int) -> tuple[Layers, int]:
    """The convolutions of a block, and how many channels come out of it."""
    if setting.group_width is None:
        return [
            conv(channels, planes, 3, "conv1", stride=stride),
            batch_norm(planes, "bn1"),
            RELU,
            conv(planes, planes, 3, "conv2"),
            batch_norm(planes, "bn2"),
        ], planes
    inner = planes * setting.group_width // 64 * setting.groups
    return [
        conv(channels, inner, 1, "conv1"),
        batch_norm(inner, "bn1"),
        RELU,
        conv(inner, inner, 3, "conv2", stride=stride, groups=setting.groups, dilation=dilation),
        batch_norm(inner, "bn2"),
        RELU,
        conv(inner, 4 * planes, 1, "conv3"),
        batch_norm(4 * planes, "bn3"),
    ], 4 * planes


RESNETS = {
    "resnet18": ResNet((2, 2, 2, 2), None),
    "resnet34": ResNet((3, 4, 6, 3), None),
    "resnet50": ResNet((3, 4, 6, 3)),
    "resnet101": ResNet((3, 4, 23, 3)),
    "resnet152": ResNet((3, 8, 36, 3)),
    "wide_resnet50_2": ResNet((3, 4, 6, 3), 128),
    "wide_resnet101_2": ResNet((3, 4, 23, 3), 128),
    "resnext50_32x4d": ResNet((3, 4, 6, 3), 4, 32),
    "resnext101_32x8d": ResNet((3, 4, 23, 3), 8, 32),
    "resnext101_64x4d": ResNet((3, 4, 23, 3), 4, 64),
}

ARCHITECTURES = members(layers, RESNETS)
