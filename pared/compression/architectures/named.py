"""Lists the architectures known by name: functions from sizes to a layer list."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from pared.compression.architectures.torchvision import TORCHVISION
from pared.errors import InvalidArchitecture

Layers = list[list[Any]]


def lenet5(in_channels: int = 1, classes: int = 10, size: int = 28) -> Layers:
    """LeNet-5 as pruning papers use it: 20 and 50 5×5 kernels, 500 hidden units; `size` is the images' side."""
    side = (((size - 4) // 2) - 4) // 2
    if side < 1:
        raise InvalidArchitecture(f"lenet5 needs images of at least 16×16 pixels, not {size}×{size}: try cnn_small.")
    return [
        _conv(2, in_channels, 20, 5, "conv1"),
        ["ReLU", {}],
        ["MaxPool2d", {"kernel_size": 2}],
        _conv(2, 20, 50, 5, "conv2"),
        ["ReLU", {}],
        ["MaxPool2d", {"kernel_size": 2}],
        ["Flatten", {}],
        _linear(50 * side * side, 500, "fc1"),
        ["ReLU", {}],
        _linear(500, classes, "fc2"),
    ]


def lenet300(in_features: int = 784, classes: int = 10) -> Layers:
    """LeNet-300-100: a perceptron with hidden layers of 300 and 100 units."""
    return mlp(in_features, classes, [300, 100])


def mlp(in_features: int, classes: int, widths: list[int] | None = None) -> Layers:
    """Perceptron with ReLU; `widths` are its hidden layers (default 64, 64). `classes` 1 is one regression output."""
    layers: Layers = [["Flatten", {}]]
    for number, width in enumerate([64, 64] if widths is None else widths, start=1):
        layers += [_linear(in_features, width, f"fc{number}"), ["ReLU", {}]]
        in_features = width
    return [*layers, _linear(in_features, classes, f"fc{len(layers) // 2 + 1}")]


def cnn_small(
    in_channels: int = 1,
    classes: int = 10,
    size: int = 28,
    widths: list[int] | None = None,
    batch_norm: bool = False,
) -> Layers:
    """3×3 convolutions (default 32, 64 channels), each with ReLU and 2×2 max-pooling, then one linear layer."""
    layers: Layers = []
    channels = in_channels
    for number, width in enumerate([32, 64] if widths is None else widths, start=1):
        layers.append(_conv(2, channels, width, 3, f"conv{number}", padding=1))
        if batch_norm:
            layers.append(["BatchNorm2d", {"num_features": width}, f"bn{number}"])
        layers += [["ReLU", {}], ["MaxPool2d", {"kernel_size": 2}]]
        channels, size = width, size // 2
    if size < 1:
        raise InvalidArchitecture("cnn_small: the images are too small for so many poolings: give fewer widths.")
    return [*layers, ["Flatten", {}], _linear(channels * size * size, classes, "fc")]


def resnet_small(in_channels: int = 3, classes: int = 10, widths: list[int] | None = None, blocks: int = 1) -> Layers:
    """Residual network for small images: a stage of `blocks` basic blocks at each width (default 16, 32, 64)."""
    widths = [16, 32, 64] if widths is None else widths
    layers: Layers = [
        _conv(2, in_channels, widths[0], 3, "conv1", padding=1, bias=False),
        ["BatchNorm2d", {"num_features": widths[0]}, "bn1"],
        ["ReLU", {}],
    ]
    channels = widths[0]
    for stage, width in enumerate(widths, start=1):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            layers += _basic_block(channels, width, stride, f"layer{stage}.{block}")
            channels = width
    return [*layers, ["AdaptiveAvgPool2d", {"output_size": 1}], ["Flatten", {}], _linear(channels, classes, "fc")]


def mobilenet_small(in_channels: int = 3, classes: int = 10, widths: list[int] | None = None) -> Layers:
    """Depthwise-separable convolutions, each but the first with stride 2 (default 16, 32, 64, 128 channels)."""
    widths = [16, 32, 64, 128] if widths is None else widths
    layers: Layers = [
        _conv(2, in_channels, widths[0], 3, "conv1", padding=1, bias=False),
        ["BatchNorm2d", {"num_features": widths[0]}, "bn1"],
        ["ReLU6", {}],
    ]
    for number, (narrow, wide) in enumerate(pairwise(widths), start=1):
        depthwise = _conv(2, narrow, narrow, 3, "depthwise", padding=1, stride=2, groups=narrow, bias=False)
        layers += [
            [
                "Sequential",
                {
                    "layers": [
                        depthwise,
                        ["BatchNorm2d", {"num_features": narrow}, "bn1"],
                        ["ReLU6", {}],
                        _conv(2, narrow, wide, 1, "pointwise", bias=False),
                        ["BatchNorm2d", {"num_features": wide}, "bn2"],
                        ["ReLU6", {}],
                    ]
                },
                f"block{number}",
            ]
        ]
    return [*layers, ["AdaptiveAvgPool2d", {"output_size": 1}], ["Flatten", {}], _linear(widths[-1], classes, "fc")]


def conv1d(in_channels: int = 1, classes: int = 2, widths: list[int] | None = None) -> Layers:
    """1-D convolutions over time (default 32, 64 channels) with batch norm, averaged over time."""
    layers: Layers = []
    channels = in_channels
    for number, width in enumerate([32, 64] if widths is None else widths, start=1):
        layers += [
            _conv(1, channels, width, 5, f"conv{number}", padding=2),
            ["BatchNorm1d", {"num_features": width}, f"bn{number}"],
            ["ReLU", {}],
        ]
        channels = width
    return [*layers, ["AdaptiveAvgPool1d", {"output_size": 1}], ["Flatten", {}], _linear(channels, classes, "fc")]


def text_pool(vocabulary: int, classes: int = 2, features: int = 64, hidden: int = 64) -> Layers:
    """Text classifier over token ids: the mean of word vectors, then one hidden layer."""
    return [
        ["Embedding", {"num_embeddings": vocabulary, "embedding_dim": features}, "embedding"],
        ["Mean", {"dim": 1}],
        _linear(features, hidden, "fc1"),
        ["ReLU", {}],
        _linear(hidden, classes, "fc2"),
    ]


def text_transformer(
    vocabulary: int,
    classes: int = 2,
    tokens: int = 64,
    features: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 128,
) -> Layers:
    """Text classifier over up to `tokens` token ids: a pre-norm transformer encoder, averaged over the tokens."""
    entries: Layers = [
        ["Embedding", {"num_embeddings": vocabulary, "embedding_dim": features}, "embedding"],
        ["PositionalEmbedding", {"tokens": tokens, "features": features}, "position"],
    ]
    norm = {"normalized_shape": [features]}
    for number in range(layers):
        attention: Layers = [
            ["LayerNorm", norm, "norm1"],
            ["SelfAttention", {"features": features, "heads": heads}, "attention"],
        ]
        feed_forward: Layers = [
            ["LayerNorm", norm, "norm2"],
            _linear(features, hidden, "fc1"),
            ["GELU", {}],
            _linear(hidden, features, "fc2"),
        ]
        blocks = [["Residual", {"layers": attention}], ["Residual", {"layers": feed_forward}]]
        entries.append(["Sequential", {"layers": blocks}, f"block{number + 1}"])
    return [*entries, ["LayerNorm", norm, "norm"], ["Mean", {"dim": 1}], _linear(features, classes, "fc")]


ARCHITECTURES: dict[str, Callable[..., Layers]] = {
    "lenet5": lenet5,
    "lenet300": lenet300,
    "mlp": mlp,
    "cnn_small": cnn_small,
    "resnet_small": resnet_small,
    "mobilenet_small": mobilenet_small,
    "conv1d": conv1d,
    "text_pool": text_pool,
    "text_transformer": text_transformer,
    **TORCHVISION,
}
"""Name to the function that writes its layer list."""


def _basic_block(channels: int, width: int, stride: int, name: str) -> Layers:
    body: Layers = [
        _conv(2, channels, width, 3, "conv1", padding=1, stride=stride, bias=False),
        ["BatchNorm2d", {"num_features": width}, "bn1"],
        ["ReLU", {}],
        _conv(2, width, width, 3, "conv2", padding=1, bias=False),
        ["BatchNorm2d", {"num_features": width}, "bn2"],
    ]
    block: dict[str, Any] = {"layers": body}
    if stride != 1 or channels != width:
        block["shortcut"] = [
            _conv(2, channels, width, 1, "downsample.0", stride=stride, bias=False),
            ["BatchNorm2d", {"num_features": width}, "downsample.1"],
        ]
    return [["Residual", block, name], ["ReLU", {}]]


def _conv(dims: int, in_channels: int, out_channels: int, kernel_size: int, name: str, **more: Any) -> list[Any]:
    sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
    return [f"Conv{dims}d", sizes | more, name]


def _linear(in_features: int, out_features: int, name: str) -> list[Any]:
    return ["Linear", {"in_features": in_features, "out_features": out_features}, name]
