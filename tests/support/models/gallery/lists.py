"""Architectures as JSON layer lists, whose state dicts can be uploaded."""

from __future__ import annotations

from typing import Any

Layers = list[Any]


def _conv(inputs: int, outputs: int, size: int = 3, kind: str = "Conv2d", **more: Any) -> list[Any]:
    sizes = {"in_channels": inputs, "out_channels": outputs, "kernel_size": size}
    if kind.startswith("Conv") and not kind.startswith("ConvTranspose"):
        sizes["padding"] = size // 2
    return [kind, sizes | more]


def _bn(channels: int, kind: str = "BatchNorm2d") -> list[Any]:
    return [kind, {"num_features": channels}]


def _linear(inputs: int, outputs: int) -> list[Any]:
    return ["Linear", {"in_features": inputs, "out_features": outputs}]


def _residual(layers: Layers, shortcut: Layers | None = None) -> list[Any]:
    return ["Residual", {"layers": layers} | ({"shortcut": shortcut} if shortcut else {})]


def _concat(*branches: Layers) -> list[Any]:
    return ["Concat", {"branches": list(branches)}]


def _gate(channels: int, squeezed: int) -> list[Any]:
    layers = [
        ["AdaptiveAvgPool2d", {"output_size": 1}],
        _conv(channels, squeezed, 1),
        ["ReLU"],
        _conv(squeezed, channels, 1),
        ["Sigmoid"],
    ]
    return ["Gate", {"layers": layers}]


def _classified(channels: int, classes: int = 4) -> Layers:
    return [["AdaptiveAvgPool2d", {"output_size": 1}], ["Flatten"], _linear(channels, classes)]


def _inverted(inputs: int, outputs: int, act: str, *, gated: bool) -> Layers:
    wide = 3 * inputs
    layers = [
        _conv(inputs, wide, 1, bias=False), _bn(wide), [act], _conv(wide, wide, groups=wide, bias=False), _bn(wide),
        [act], *([_gate(wide, 6)] if gated else []), _conv(wide, outputs, 1, bias=False), _bn(outputs),
    ]  # fmt: skip
    return [_residual(layers)] if inputs == outputs else layers


def _mixer_block(tokens: int, features: int) -> Layers:
    norm = ["LayerNorm", {"normalized_shape": features}]
    across = [["Transpose", {"dim0": 1, "dim1": 2}]]
    return [
        _residual([norm, *across, _linear(tokens, 24), ["GELU"], _linear(24, tokens), *across]),
        _residual([norm, _linear(features, 32), ["GELU"], _linear(32, features)]),
    ]


def _attention_block(features: int, *, causal: bool, norm: str) -> Layers:
    normed = [norm, {"normalized_shape": features}]
    attention = ["SelfAttention", {"features": features, "heads": 2, "causal": causal}]
    return [
        _residual([normed, attention]),
        _residual([normed, _linear(features, 64), ["GLU", {"dim": -1}], _linear(32, features)]),
    ]


_EMBEDDED = [
    ["Embedding", {"num_embeddings": 30, "embedding_dim": 16}],
    ["PositionalEmbedding", {"tokens": 6, "features": 16}],
]
_BOTTLENECK = [
    _conv(16, 8, 1, bias=False), _bn(8), ["ReLU"], _conv(8, 8, bias=False, groups=2), _bn(8), ["ReLU"],
    _conv(8, 32, 1, bias=False), _bn(32),
]  # fmt: skip
_DENSE = [["BatchNorm2d", {"num_features": 8}], ["ReLU"], _conv(8, 6)]
_SHUFFLE = [_conv(12, 12, 1, groups=2), _bn(12), ["ReLU"], ["ChannelShuffle", {"groups": 2}], _conv(12, 12, groups=12)]

LISTS: dict[str, Layers] = {
    "AlexNet": [
        _conv(3, 12, 5, stride=2), ["ReLU"], ["MaxPool2d", {"kernel_size": 2}], _conv(12, 16), ["ReLU"],
        ["AdaptiveAvgPool2d", {"output_size": [2, 2]}], ["Flatten"], ["Dropout"], _linear(64, 24), ["ReLU"],
        _linear(24, 4),
    ],
    "Vgg": [
        _conv(3, 8), _bn(8), ["ReLU"], _conv(8, 8), _bn(8), ["ReLU"], ["MaxPool2d", {"kernel_size": 2}],
        _conv(8, 16), _bn(16), ["ReLU"], ["MaxPool2d", {"kernel_size": 2}], ["Flatten"], _linear(256, 4),
    ],
    "BottleneckResNet": [
        _conv(3, 16), ["ReLU"], _residual(_BOTTLENECK, [_conv(16, 32, 1)]), ["ReLU"], *_classified(32),
    ],
    "PreActivation": [
        _conv(3, 12), _residual([_bn(12), ["ReLU"], _conv(12, 12), _bn(12), ["ReLU"], _conv(12, 12)]),
        _residual([_bn(12), ["ReLU"], _conv(12, 12)]), _bn(12), ["ReLU"], *_classified(12),
    ],
    "DenseNet": [
        _conv(3, 8), _concat([], _DENSE), _concat([], [_bn(14), ["ReLU"], _conv(14, 6)]), _bn(20), ["ReLU"],
        *_classified(20),
    ],
    "Inception": [
        _conv(3, 8), ["ReLU"],
        _concat(
            [_conv(8, 6, 1)], [_conv(8, 4, 1), ["ReLU"], _conv(4, 8)], [_conv(8, 4, 1), ["ReLU"], _conv(4, 4, 5)],
            [["MaxPool2d", {"kernel_size": 3, "stride": 1, "padding": 1}], _conv(8, 6, 1)],
        ),
        _bn(24), ["ReLU"], *_classified(24),
    ],
    "SqueezeNet": [
        _conv(3, 8, stride=2), ["ReLU"], _conv(8, 4, 1), ["ReLU"], _concat([_conv(4, 8, 1)], [_conv(4, 8)]), ["ReLU"],
        _conv(16, 4, 1), ["AdaptiveAvgPool2d", {"output_size": 1}], ["Flatten"],
    ],
    "MobileNetV2": [
        _conv(3, 8), _bn(8), ["ReLU6"], *_inverted(8, 8, "ReLU6", gated=False), *_inverted(8, 12, "ReLU6", gated=False),
        *_classified(12),
    ],
    "MobileNetV3": [
        _conv(3, 8), _bn(8), ["Hardswish"], *_inverted(8, 8, "Hardswish", gated=True),
        *_inverted(8, 12, "Hardswish", gated=True), *_classified(12),
    ],
    "EfficientNet": [_conv(3, 8), _bn(8), ["SiLU"], *_inverted(8, 16, "SiLU", gated=True), *_classified(16)],
    "GroupedShuffle": [_conv(3, 12), ["ReLU"], _residual([*_SHUFFLE, _conv(12, 12, 1)]), ["ReLU"], *_classified(12)],
    "UNet": [
        _conv(3, 8), ["ReLU"],
        _concat(
            [],
            [
                ["MaxPool2d", {"kernel_size": 2}], _conv(8, 12), ["GroupNorm", {"num_groups": 3, "num_channels": 12}],
                ["ReLU"], _conv(12, 8, 2, "ConvTranspose2d", stride=2),
            ],
        ),
        _conv(16, 8), ["ReLU"], _conv(8, 2, 1),
    ],
    "Segmentation": [
        _conv(3, 12, stride=2), ["ReLU"],
        _concat(*([["Conv2d", {"in_channels": 12, "out_channels": 8, "kernel_size": 3, "padding": r, "dilation": r}],
                   ["ReLU"]] for r in (1, 2, 3))),
        _conv(24, 3, 1), ["Upsample", {"scale_factor": 2, "mode": "nearest"}],
    ],
    "SuperResolution": [
        _conv(3, 12), _residual([_conv(12, 12), ["PReLU", {"num_parameters": 12}], _conv(12, 12)]), _conv(12, 32),
        ["PixelShuffle", {"upscale_factor": 2}], _conv(8, 3),
    ],
    "SpaceToDepth": [
        ["PixelUnshuffle", {"downscale_factor": 2}], _conv(12, 8), ["ReLU"],
        ["PixelUnshuffle", {"downscale_factor": 2}], _conv(32, 12),
        ["InstanceNorm2d", {"num_features": 12, "affine": True}], ["ReLU"],
        ["AdaptiveMaxPool2d", {"output_size": 1}], ["Flatten"], _linear(12, 4),
    ],
    "Generator": [
        _linear(10, 256), ["Reshape", {"shape": [16, 4, 4]}], _bn(16), ["ReLU"],
        _conv(16, 8, 4, "ConvTranspose2d", stride=2, padding=1), ["ReLU"],
        _conv(8, 3, 4, "ConvTranspose2d", stride=2, padding=1), ["Tanh"],
    ],
    "Autoencoder": [
        _conv(3, 8, stride=2), ["ELU"], _conv(8, 12, stride=2), ["ELU"], ["Flatten"], _linear(192, 6), _linear(6, 192),
        ["ELU"], ["Reshape", {"shape": [12, 4, 4]}], _conv(12, 3, 4, "ConvTranspose2d", stride=4),
    ],
    "Volume": [
        _conv(1, 8, 3, "Conv3d"), ["GroupNorm", {"num_groups": 2, "num_channels": 8}], ["ReLU"],
        ["MaxPool3d", {"kernel_size": 2}], _conv(8, 12, 3, "Conv3d"), _bn(12, "BatchNorm3d"), ["ReLU"],
        ["AdaptiveAvgPool3d", {"output_size": 1}], ["Flatten"], _linear(12, 3),
    ],
    "Mixer": [
        ["Conv2d", {"in_channels": 3, "out_channels": 12, "kernel_size": 4, "stride": 4}],
        ["Flatten", {"start_dim": 2}], ["Transpose", {"dim0": 1, "dim1": 2}], *_mixer_block(16, 12),
        *_mixer_block(16, 12), ["LayerNorm", {"normalized_shape": 12}], ["Mean", {"dim": 1}], _linear(12, 4),
    ],
    "VisionTransformer": [
        ["Conv2d", {"in_channels": 3, "out_channels": 16, "kernel_size": 4, "stride": 4}],
        ["Flatten", {"start_dim": 2}], ["Transpose", {"dim0": 1, "dim1": 2}],
        ["PositionalEmbedding", {"tokens": 16, "features": 16}],
        ["TransformerEncoderLayer", {"d_model": 16, "nhead": 2, "dim_feedforward": 32}],
        ["Mean", {"dim": 1}], _linear(16, 4),
    ],
    "TemporalConv": [
        _conv(2, 12, 1, "Conv1d"),
        *(_residual([["Conv1d", {"in_channels": 12, "out_channels": 12, "kernel_size": 3, "padding": r, "dilation": r}],
                     ["ReLU"]]) for r in (1, 2)),
        ["AdaptiveAvgPool1d", {"output_size": 1}], ["Flatten"], _linear(12, 4),
    ],
    "Speech": [
        _conv(4, 12, 5, "Conv1d", stride=2), _bn(12, "BatchNorm1d"), ["ReLU"], _conv(12, 12, 3, "Conv1d", groups=12),
        _conv(12, 16, 1, "Conv1d"), _bn(16, "BatchNorm1d"), ["ReLU"], ["AdaptiveMaxPool1d", {"output_size": 1}],
        ["Flatten"], _linear(16, 4),
    ],
    "TextCnn": [
        ["Embedding", {"num_embeddings": 30, "embedding_dim": 12}], ["Permute", {"dims": [0, 2, 1]}],
        _concat(*([_conv(12, 8, width, "Conv1d", padding=0), ["ReLU"], ["AdaptiveMaxPool1d", {"output_size": 1}]]
                  for width in (2, 3, 4))),
        ["Flatten"], _linear(24, 4),
    ],
    "TextEncoder": [
        *_EMBEDDED, *_attention_block(16, causal=False, norm="LayerNorm"), ["Mean", {"dim": 1}], _linear(16, 4),
    ],
    "Llama": [
        *_EMBEDDED, *_attention_block(16, causal=True, norm="RMSNorm"), ["RMSNorm", {"normalized_shape": 16}],
        _linear(16, 30),
    ],
    "Perceptron": [
        _linear(16, 24), _bn(24, "BatchNorm1d"), ["ReLU"], _linear(24, 20), ["SELU"], _linear(20, 12), ["Softplus"],
        _linear(12, 3),
    ],
    "Highway": [
        _linear(16, 20), ["Gate", {"layers": [_linear(20, 20), ["Sigmoid"]]}], _residual([_linear(20, 20), ["ReLU"]]),
        _linear(20, 3),
    ],
    "TabNet": [
        _bn(16, "BatchNorm1d"), _linear(16, 24), ["GLU"], _residual([_linear(12, 24), ["GLU"]]), ["ReLU"],
        _linear(12, 3),
    ],
    "SharedSteps": [
        _linear(8, 16),
        ["Repeat", {"times": 3, "layers": [_residual([_linear(16, 24), ["Tanh"], _linear(24, 16)])]}], _linear(16, 2),
    ],
}  # fmt: skip
"""Name of an architecture of the gallery -> its layers, or those of one like it."""
