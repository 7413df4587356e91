"""Writes FCN, DeepLab v3 and Lite R-ASPP, which label each pixel, with torchvision's tensor names."""

from __future__ import annotations

from pared.compression.architectures.torchvision.entries import (
    RELU,
    Layers,
    batch_norm,
    conv,
    conv_norm,
    dropout,
    members,
    sequential,
)
from pared.compression.architectures.torchvision.mobilenet import V3_LARGE, v3_features
from pared.compression.architectures.torchvision.resnet import RESNETS, ResNet, features


def fcn(backbone: ResNet, num_classes: int, in_channels: int) -> Layers:
    """Two convolutions over a dilated ResNet. The result has the images' size: (batch, classes, height, width)."""
    head = [conv(2048, 512, 3), batch_norm(512), RELU, dropout(0.1), conv(512, num_classes, bias=True)]
    return _over_resnet(backbone, in_channels, head)


def deeplab(backbone: ResNet, num_classes: int, in_channels: int) -> Layers:
    """Convolutions of several dilations, side by side, over a dilated ResNet."""
    branches: list[Layers] = [[conv_norm(2048, 256, name="convs.0")]]
    branches += [
        [conv_norm(2048, 256, 3, name=f"convs.{number}", dilation=dilation)]
        for number, dilation in enumerate((12, 24, 36), start=1)
    ]
    mean = [
        ["AdaptiveAvgPool2d", {"output_size": 1}],
        conv(2048, 256, 1, "convs.4.1"),
        batch_norm(256, "convs.4.2"),
        RELU,
    ]
    branches.append([["Resized", {"layers": mean}]])
    pyramid = [["Concat", {"branches": branches}], conv_norm(5 * 256, 256, name="project"), dropout(0.5)]
    head = [
        ["Sequential", {"layers": pyramid}],
        conv(256, 256, 3),
        batch_norm(256),
        RELU,
        conv(256, num_classes, bias=True),
    ]
    return _over_resnet(backbone, in_channels, head)


def lraspp(_: None, num_classes: int, in_channels: int) -> Layers:
    """Lite R-ASPP over MobileNet v3: coarse features, weighted by their mean, beside those of an eighth of the size."""
    blocks = [
        [*entry, f"backbone.{number}"] for number, entry in enumerate(v3_features(V3_LARGE, in_channels, dilated=True))
    ]
    near = 5  # the blocks up to the last with an eighth of the images' size
    mean = [["AdaptiveAvgPool2d", {"output_size": 1}], conv(960, 128, 1, "classifier.scale.1"), ["Sigmoid", {}]]
    weighted = ["Gate", {"layers": mean, "shortcut": [conv_norm(960, 128, name="classifier.cbr")]}]
    coarse = [
        ["Resized", {"layers": [*blocks[near:], weighted]}],
        conv(128, num_classes, 1, "classifier.high_classifier", bias=True),
    ]
    fine = [conv(40, num_classes, 1, "classifier.low_classifier", bias=True)]
    return [["Resized", {"layers": [*blocks[:near], ["Residual", {"layers": coarse, "shortcut": fine}]]}]]


def _over_resnet(backbone: ResNet, in_channels: int, head: Layers) -> Layers:
    body = features(backbone, in_channels, "backbone.", dilated=True)
    return [["Resized", {"layers": [*body, sequential(head, "classifier")]}]]


_CLASSES = 21

ARCHITECTURES = (
    members(fcn, {f"fcn_{name}": RESNETS[name] for name in ("resnet50", "resnet101")}, _CLASSES)
    | members(deeplab, {f"deeplabv3_{name}": RESNETS[name] for name in ("resnet50", "resnet101")}, _CLASSES)
    | members(lraspp, {"lraspp_mobilenet_v3_large": None}, _CLASSES)
)
