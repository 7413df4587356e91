"""Fits a layer list to a shrunk state dict: every channel and feature count read off the tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from pared.compression.architectures.building import layer_list
from pared.compression.architectures.layers import Layer, read_layers, write_layers
from pared.errors import InvalidArchitecture


def resize(architecture: Any, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The layer list whose weights have the shapes of `state_dict`.

    Args:
        architecture: the unshrunk architecture, in any form that `build` takes.
        state_dict: the shrunk tensors, under the architecture's own keys.

    Returns:
        `{"layers": [...]}` with in/out channels, features, groups, norm sizes and widths that match.

    Raises:
        InvalidArchitecture: a tensor is missing, or its shape is one that the layer cannot have.
    """
    fit = _Fit({name: list(tensor.shape) for name, tensor in state_dict.items()})
    layers, _ = fit.chain(read_layers(layer_list(architecture)), None)
    return {"layers": write_layers(layers)}


class _Fit:
    """Walks the layers with the number of features that flows between them, where it is known.

    Most layers are settled by their own tensors; the flow settles the groups of a grouped convolution and the
    sizes of norms that have no weights.
    """

    def __init__(self, shapes: dict[str, list[int]]) -> None:
        self.shapes = shapes

    def chain(self, layers: list[Layer], features: int | None) -> tuple[list[Layer], int | None]:
        fitted = []
        for layer in layers:
            one, features = self.layer(layer, features)
            fitted.append(one)
        return fitted, features

    def layer(self, layer: Layer, features: int | None) -> tuple[Layer, int | None]:
        if layer.children:
            return self.structure(layer, features)
        kwargs = dict(layer.kwargs)
        kind = layer.kind
        if kind.startswith("ConvTranspose"):
            features = self.transposed_convolution(layer, kwargs)
        elif kind.startswith("Conv"):
            features = self.convolution(layer, kwargs, features)
        elif kind == "Linear":
            features, kwargs["in_features"] = self.shape(layer, "weight", 2)
            kwargs["out_features"] = features
        elif kind == "Embedding":
            kwargs["num_embeddings"], features = self.shape(layer, "weight", 2)
            kwargs["embedding_dim"] = features
        elif kind == "PositionalEmbedding":
            kwargs["tokens"], kwargs["features"] = self.shape(layer, "weight", 2)
        elif kind.startswith(("BatchNorm", "InstanceNorm")):
            features = self.norm_size(layer, features)
            kwargs["num_features"] = features if features is not None else kwargs["num_features"]
        elif kind == "GroupNorm":
            features = self.group_norm(layer, kwargs, features)
        elif kind in {"LayerNorm", "RMSNorm"}:
            features = self.layer_norm(layer, kwargs, features)
        elif kind == "PReLU":
            size = self.shape(layer, "weight", 1)[0]
            kwargs["num_parameters"] = size if kwargs.get("num_parameters", 1) > 1 else 1
        elif kind == "SelfAttention":
            features = self.attention(layer, kwargs)
        elif kind == "TransformerEncoderLayer":
            features = self.encoder_layer(layer, kwargs)
        elif kind == "Reshape":
            features = _reshape(kwargs, features)
        elif features is not None:
            features = _passed_on(layer, features)
        return replace(layer, kwargs=kwargs), features

    def structure(self, layer: Layer, features: int | None) -> tuple[Layer, int | None]:
        children: dict[str, list[Layer]] = {}
        ends: list[int | None] = []
        for key, held in layer.children.items():
            children[key], end = self.chain(held, features)
            ends.append(end)
        fitted = replace(layer, children=children)
        if layer.kind == "Gate":
            return fitted, features
        if layer.kind == "Concat":
            known = [end for end in ends if end is not None]
            return fitted, sum(known) if len(known) == len(ends) else None
        return fitted, ends[0]

    def convolution(self, layer: Layer, kwargs: dict[str, Any], features: int | None) -> int:
        shape = self.shape(layer, "weight")  # (out, in / groups, kernel…)
        groups = kwargs.get("groups", 1)
        if groups > 1 and features is not None and features % shape[1] == 0:
            groups = features // shape[1]
        elif groups > 1 and groups == kwargs["in_channels"]:  # depthwise: as many groups as channels
            groups = shape[0] * kwargs["in_channels"] // kwargs["out_channels"]
        if groups > 1 or "groups" in kwargs:
            kwargs["groups"] = groups
        kwargs["in_channels"] = shape[1] * groups
        kwargs["out_channels"] = shape[0]
        return shape[0]

    def transposed_convolution(self, layer: Layer, kwargs: dict[str, Any]) -> int:
        shape = self.shape(layer, "weight")  # (in, out / groups, kernel…)
        groups = kwargs.get("groups", 1)
        if groups > 1 and groups == kwargs["in_channels"]:
            groups = shape[0]
            kwargs["groups"] = groups
        kwargs["in_channels"] = shape[0]
        kwargs["out_channels"] = shape[1] * groups
        return int(shape[1] * groups)

    def norm_size(self, layer: Layer, features: int | None) -> int | None:
        for tensor in ("weight", "running_mean"):
            if f"{layer.name}.{tensor}" in self.shapes:
                return self.shape(layer, tensor, 1)[0]
        return features

    def group_norm(self, layer: Layer, kwargs: dict[str, Any], features: int | None) -> int | None:
        size = self.norm_size(layer, features)
        if size is None:
            return None
        one_a_channel = kwargs["num_groups"] == kwargs["num_channels"]
        kwargs["num_groups"] = size if one_a_channel else kwargs["num_groups"]
        kwargs["num_channels"] = size
        return size

    def layer_norm(self, layer: Layer, kwargs: dict[str, Any], features: int | None) -> int | None:
        given = kwargs["normalized_shape"]
        if f"{layer.name}.weight" in self.shapes:
            kwargs["normalized_shape"] = self.shape(layer, "weight")
        elif features is not None and (isinstance(given, int) or len(given) == 1):
            kwargs["normalized_shape"] = [features]
        else:
            return features
        return kwargs["normalized_shape"][0] if len(kwargs["normalized_shape"]) == 1 else features

    def attention(self, layer: Layer, kwargs: dict[str, Any]) -> int:
        keys, features = self.shape(layer, "q.weight", 2)
        out, values = self.shape(layer, "out.weight", 2)
        heads = kwargs["heads"]
        if keys % heads or values % heads:
            raise InvalidArchitecture(f"{layer.name}: {keys} and {values} features do not divide among {heads} heads.")
        if kwargs.get("scale") is None:
            trained_keys = kwargs.get("key_features") or kwargs["features"]
            kwargs["scale"] = (trained_keys // heads) ** -0.5
        kwargs |= {"features": features, "key_features": keys, "value_features": values, "out_features": out}
        return out

    def encoder_layer(self, layer: Layer, kwargs: dict[str, Any]) -> int:
        hidden, features = self.shape(layer, "linear1.weight", 2)
        if features != kwargs["d_model"]:
            raise InvalidArchitecture(
                f"{layer.name}: a TransformerEncoderLayer cannot change its width, only dim_feedforward: torch takes "
                "the scale of its scores from the width of a head. Use SelfAttention with LayerNorm and Linear."
            )
        kwargs["dim_feedforward"] = hidden
        return features

    def shape(self, layer: Layer, tensor: str, dims: int | None = None) -> list[int]:
        name = f"{layer.name}.{tensor}"
        if name not in self.shapes:
            raise InvalidArchitecture(f"The state dict has no {name}, which {layer.where} ({layer.kind}) needs.")
        shape = self.shapes[name]
        if (dims is not None and len(shape) != dims) or not shape:
            raise InvalidArchitecture(f"{name} has the shape {shape}, which {layer.where} ({layer.kind}) cannot have.")
        return shape


def _reshape(kwargs: dict[str, Any], features: int | None) -> int | None:
    """A literal channel count follows the features that come in: [64, 7, 7] after 1568 features is [32, 7, 7]."""
    shape = list(kwargs["shape"])
    rest = math.prod(shape[1:])
    if features is not None and -1 not in shape and features % rest == 0:
        shape[0] = features // rest
        kwargs["shape"] = shape
        return int(shape[0])
    return shape[0] if shape[0] > 0 else None


def _passed_on(layer: Layer, features: int) -> int | None:
    match layer.kind:
        case "Flatten":
            return features if layer.kwargs.get("start_dim", 1) >= 2 else None
        case "PixelShuffle":
            return int(features // layer.kwargs["upscale_factor"] ** 2)
        case "PixelUnshuffle":
            return int(features * layer.kwargs["downscale_factor"] ** 2)
        case "GLU":
            return features // 2
        case _:
            return features
