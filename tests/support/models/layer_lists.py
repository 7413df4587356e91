"""The families as JSON layer lists, named so that the state dicts of `families` fit them."""

from __future__ import annotations

from typing import Any


def conv(inputs: int, outputs: int, size: int, name: str, **more: Any) -> list[Any]:
    """A `Conv2d` entry."""
    return ["Conv2d", {"in_channels": inputs, "out_channels": outputs, "kernel_size": size, **more}, name]


def norm(channels: int, name: str) -> list[Any]:
    """A `BatchNorm2d` entry."""
    return ["BatchNorm2d", {"num_features": channels}, name]


def linear(inputs: int, outputs: int, name: str) -> list[Any]:
    """A `Linear` entry."""
    return ["Linear", {"in_features": inputs, "out_features": outputs}, name]


def residual_block(name: str, inputs: int, outputs: int, stride: int) -> list[list[Any]]:
    """`families.ResidualBlock`."""
    body = [
        conv(inputs, outputs, 3, "conv1", stride=stride, padding=1, bias=False),
        norm(outputs, "bn1"),
        ["ReLU"],
        conv(outputs, outputs, 3, "conv2", padding=1, bias=False),
        norm(outputs, "bn2"),
    ]
    block: dict[str, Any] = {"layers": body}
    if stride != 1 or inputs != outputs:
        block["shortcut"] = [
            conv(inputs, outputs, 1, "shortcut.0", stride=stride, bias=False),
            norm(outputs, "shortcut.1"),
        ]
    return [["Residual", block, name], ["ReLU"]]


def depthwise_block(name: str, inputs: int, outputs: int, stride: int) -> list[Any]:
    """A block of `families.Depthwise`."""
    layers = [
        conv(inputs, inputs, 3, "0", stride=stride, padding=1, groups=inputs, bias=False),
        norm(inputs, "1"),
        ["ReLU6"],
        conv(inputs, outputs, 1, "3", bias=False),
        norm(outputs, "4"),
        ["ReLU6"],
    ]
    return ["Sequential", {"layers": layers}, name]


def dense_layer(name: str, inputs: int) -> list[Any]:
    """`families.DenseLayer`."""
    new = [norm(inputs, "norm"), ["ReLU"], conv(inputs, 12, 3, "conv", padding=1, bias=False)]
    return ["Concat", {"branches": [[], new], "dim": 1}, name]


def squeeze_excite(name: str, channels: int) -> list[Any]:
    """`families.SqueezeExcite`."""
    gate = [
        ["AdaptiveAvgPool2d", {"output_size": 1}],
        conv(channels, 8, 1, "fc1"),
        ["ReLU"],
        conv(8, channels, 1, "fc2"),
        ["Sigmoid"],
    ]
    return ["Gate", {"layers": gate}, name]


ENCODER = {"d_model": 32, "nhead": 4, "dim_feedforward": 96, "dropout": 0.1, "batch_first": True}

LAYER_LISTS: dict[str, list[Any]] = {
    "plain_cnn": [
        conv(1, 16, 3, "conv1", padding=1),
        ["ReLU"],
        ["MaxPool2d", {"kernel_size": 2}],
        conv(16, 32, 3, "conv2", padding=1),
        ["ReLU"],
        ["MaxPool2d", {"kernel_size": 2}],
        ["Flatten"],
        linear(288, 48, "fc1"),
        ["ReLU"],
        linear(48, 4, "fc2"),
    ],
    "resnet": [
        conv(3, 16, 3, "conv1", padding=1, bias=False),
        norm(16, "bn1"),
        ["ReLU"],
        *residual_block("layer1", 16, 16, 1),
        *residual_block("layer2", 16, 32, 2),
        ["AdaptiveAvgPool2d", {"output_size": 1}],
        ["Flatten"],
        linear(32, 4, "fc"),
    ],
    "depthwise": [
        conv(3, 16, 3, "stem.0", padding=1, bias=False),
        norm(16, "stem.1"),
        ["ReLU6"],
        depthwise_block("features.0", 16, 32, 2),
        depthwise_block("features.1", 32, 48, 1),
        ["Mean", {"dim": [2, 3]}],
        linear(48, 4, "classifier"),
    ],
    "grouped": [
        conv(3, 32, 3, "stem", padding=1),
        ["ReLU"],
        [
            "Residual",
            {
                "layers": [
                    conv(32, 32, 1, "conv1", bias=False),
                    norm(32, "bn1"),
                    ["ReLU"],
                    conv(32, 32, 3, "conv2", padding=1, groups=4, bias=False),
                    norm(32, "bn2"),
                    ["ReLU"],
                    conv(32, 32, 1, "conv3", bias=False),
                    norm(32, "bn3"),
                ]
            },
        ],
        ["ReLU"],
        ["AdaptiveAvgPool2d", {"output_size": 1}],
        ["Flatten"],
        linear(32, 4, "fc"),
    ],
    "densenet": [
        conv(3, 16, 3, "conv0", padding=1),
        dense_layer("dense1", 16),
        dense_layer("dense2", 28),
        ["AvgPool2d", {"kernel_size": 2}],
        dense_layer("dense3", 40),
        norm(52, "norm"),
        ["ReLU"],
        ["AdaptiveAvgPool2d", {"output_size": 1}],
        ["Flatten"],
        linear(52, 4, "classifier"),
    ],
    "squeeze_excite": [
        conv(3, 24, 3, "conv1", padding=1, bias=False),
        norm(24, "bn1"),
        ["ReLU"],
        squeeze_excite("se1", 24),
        conv(24, 32, 3, "conv2", stride=2, padding=1, bias=False),
        norm(32, "bn2"),
        ["ReLU"],
        squeeze_excite("se2", 32),
        ["Mean", {"dim": [2, 3]}],
        linear(32, 4, "fc"),
    ],
    "unet": [
        conv(1, 16, 3, "down1.0", padding=1),
        ["ReLU"],
        [
            "Concat",
            {
                "branches": [
                    [],
                    [
                        ["MaxPool2d", {"kernel_size": 2}],
                        conv(16, 32, 3, "down2.0", padding=1),
                        ["GroupNorm", {"num_groups": 4, "num_channels": 32}, "down2.1"],
                        ["ReLU"],
                        [
                            "ConvTranspose2d",
                            {"in_channels": 32, "out_channels": 16, "kernel_size": 2, "stride": 2},
                            "up",
                        ],
                    ],
                ],
                "dim": 1,
            },
        ],
        conv(32, 16, 3, "fuse.0", padding=1),
        ["ReLU"],
        conv(16, 1, 1, "head"),
        ["Flatten"],
    ],
    "mlp": [
        linear(16, 64, "net.0"),
        ["LayerNorm", {"normalized_shape": 64}, "net.1"],
        ["ReLU"],
        ["Dropout", {"p": 0.1}],
        linear(64, 48, "net.4"),
        ["LeakyReLU", {"negative_slope": 0.1}],
        linear(48, 4, "net.6"),
    ],
    "text_pool": [
        ["Embedding", {"num_embeddings": 60, "embedding_dim": 32}, "embedding"],
        ["Mean", {"dim": 1}],
        linear(32, 48, "fc1"),
        ["Tanh"],
        linear(48, 4, "fc2"),
    ],
    "text_transformer": [
        ["Embedding", {"num_embeddings": 60, "embedding_dim": 32}, "embedding"],
        ["PositionalEmbedding", {"tokens": 12, "features": 32}, "position"],
        ["TransformerEncoderLayer", ENCODER, "encoder"],
        ["Mean", {"dim": 1}],
        linear(32, 4, "fc"),
    ],
    "signal_cnn": [
        ["Conv1d", {"in_channels": 2, "out_channels": 24, "kernel_size": 5, "padding": 2}, "conv1"],
        ["BatchNorm1d", {"num_features": 24}, "bn1"],
        ["ReLU"],
        ["MaxPool1d", {"kernel_size": 2}],
        ["Conv1d", {"in_channels": 24, "out_channels": 32, "kernel_size": 5, "padding": 2}, "conv2"],
        ["GELU"],
        ["MaxPool1d", {"kernel_size": 2}],
        ["Flatten"],
        linear(256, 4, "head"),
    ],
    "shared": [
        linear(16, 48, "inputs"),
        ["ReLU"],
        ["Repeat", {"times": 2, "layers": [linear(48, 48, "shared"), ["ReLU"]]}],
        linear(48, 4, "outputs"),
    ],
}
