"""Writes the vision transformer (ViT), with torchvision's tensor names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pared.compression.architectures.torchvision.entries import Layers, conv, layer_norm, linear, residual
from pared.errors import InvalidArchitecture


class ViT(NamedTuple):
    """Side of a patch in pixels, number of layers and heads, features of a token and within a layer."""

    patch: int
    layers: int
    heads: int
    features: int
    hidden: int
    image: int = 224


def member(name: str, setting: ViT) -> Callable[..., Layers]:
    """One of the family; unlike others it has one image size, for the position of each patch is learned."""

    def layers(num_classes: int = 1000, in_channels: int = 3, image_size: int = setting.image) -> Layers:
        if image_size % setting.patch:
            raise InvalidArchitecture(f"{name}: image_size must be a multiple of {setting.patch}, not {image_size}.")
        width = setting.features
        tokens = (image_size // setting.patch) ** 2 + 1
        return [
            conv(in_channels, width, setting.patch, "conv_proj", stride=setting.patch, padding=0, bias=True),
            ["Flatten", {"start_dim": 2}],
            ["Transpose", {"dim0": 1, "dim1": 2}],
            ["Prepend", {"shape": [1, 1, width]}, "class_token"],
            ["Shift", {"shape": [1, tokens, width]}, "encoder.pos_embedding"],
            *[_layer(setting, f"encoder.layers.encoder_layer_{number}") for number in range(setting.layers)],
            layer_norm(width, "encoder.ln", eps=1e-6),
            ["Select", {"dim": 1, "index": 0}],
            linear(width, num_classes, "heads.head"),
        ]

    return layers


def _layer(setting: ViT, name: str) -> list[Any]:
    width = setting.features
    attention = ["MultiheadAttention", {"embed_dim": width, "num_heads": setting.heads}, "self_attention"]
    hidden = [linear(width, setting.hidden, "mlp.0"), ["GELU", {}], linear(setting.hidden, width, "mlp.3")]
    blocks = [
        residual([layer_norm(width, "ln_1", eps=1e-6), attention]),
        residual([layer_norm(width, "ln_2", eps=1e-6), *hidden]),
    ]
    return ["Sequential", {"layers": blocks}, name]


_SETTINGS = {
    "vit_b_16": ViT(16, 12, 12, 768, 3072),
    "vit_b_32": ViT(32, 12, 12, 768, 3072),
    "vit_l_16": ViT(16, 24, 16, 1024, 4096),
    "vit_l_32": ViT(32, 24, 16, 1024, 4096),
    "vit_h_14": ViT(14, 32, 16, 1280, 5120),
}

ARCHITECTURES = {name: member(name, setting) for name, setting in _SETTINGS.items()}
