"""Fits a layer list to a shrunk state dict: reads every channel and feature count off the tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from pared.compression.architectures.building import layer_list
from pared.compression.architectures.layers import PARAMETERS, Layer, read_layers, write_layers
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
    layers, _ = fit.chain(read_layers(layer_list(architecture)), _Flow(None, Fraction(1)))
    return {"layers": write_layers(layers)}


@dataclass(frozen=True)
class _Flow:
    """Features between two layers: how many there were (None: not known, as after a flatten), and the share kept."""

    before: int | None
    kept: Fraction

    @classmethod
    def of(cls, before: int, after: int) -> _Flow:
        return cls(before, Fraction(after, before))

    def shrunk(self, count: int) -> int | None:
        """What `count` features become; None where that is no whole number, so that they were not these features."""
        shrunk = count * self.kept
        return int(shrunk) if shrunk.denominator == 1 else None


class _Fit:
    """Walks the layers with the features that flow between them, where these are known.

    Most layers are settled by their own tensors; the flow settles the groups of a grouped convolution, reshapes,
    and the sizes of norms that have no weights.
    """

    def __init__(self, shapes: dict[str, list[int]]) -> None:
        self.shapes = shapes

    def chain(self, layers: list[Layer], flow: _Flow | None) -> tuple[list[Layer], _Flow | None]:
        fitted = []
        for layer in layers:
            one, flow = self.layer(layer, flow)
            fitted.append(one)
        return fitted, flow

    def layer(self, layer: Layer, flow: _Flow | None) -> tuple[Layer, _Flow | None]:
        if layer.children:
            return self.structure(layer, flow)
        kwargs = dict(layer.kwargs)
        kind = layer.kind
        if kind.startswith("ConvTranspose"):
            flow = self.transposed_convolution(layer, kwargs)
        elif kind.startswith("Conv"):
            flow = self.convolution(layer, kwargs, flow)
        elif kind == "Linear":
            kwargs["out_features"], kwargs["in_features"] = self.shape(layer, "weight", 2)
            flow = _Flow.of(layer.kwargs["out_features"], kwargs["out_features"])
        elif kind == "Embedding":
            kwargs["num_embeddings"], kwargs["embedding_dim"] = self.shape(layer, "weight", 2)
            flow = _Flow.of(layer.kwargs["embedding_dim"], kwargs["embedding_dim"])
        elif kind == "PositionalEmbedding":
            kwargs["tokens"], kwargs["features"] = self.shape(layer, "weight", 2)
        elif kind.startswith(("BatchNorm", "InstanceNorm")):
            flow = self.norm(layer, kwargs, "num_features", flow)
        elif kind == "GroupNorm":
            flow = self.norm(layer, kwargs, "num_channels", flow)
            if kwargs["num_groups"] == layer.kwargs["num_channels"]:  # one group a channel
                kwargs["num_groups"] = kwargs["num_channels"]
        elif kind in {"LayerNorm", "RMSNorm"}:
            flow = self.layer_norm(layer, kwargs, flow)
        elif kind == "PReLU":
            size = self.shape(layer, "weight", 1)[0]
            kwargs["num_parameters"] = size if kwargs.get("num_parameters", 1) > 1 else 1
        elif kind == "SelfAttention":
            flow = self.attention(layer, kwargs)
        elif kind == "TransformerEncoderLayer":
            flow = self.encoder_layer(layer, kwargs)
        elif kind == "MultiheadAttention":
            flow = self.packed_attention(layer, kwargs)
        elif kind == "WindowAttention":
            flow = self.window_attention(layer, kwargs)
        elif kind in PARAMETERS:
            kwargs["shape"] = self.tensor(layer, layer.name)
        elif kind == "Reshape":
            flow = _reshape(kwargs, flow)
        elif flow is not None:
            flow = replace(flow, before=_passed_on(layer, flow.before))
        return replace(layer, kwargs=kwargs), flow

    def structure(self, layer: Layer, flow: _Flow | None) -> tuple[Layer, _Flow | None]:
        children: dict[str, list[Layer]] = {}
        ends: list[_Flow | None] = []
        for key, child in layer.children.items():
            children[key], end = self.chain(child, flow)
            ends.append(end)
        fitted = replace(layer, children=children)
        if layer.kind == "Gate":
            return fitted, ends[1] if "shortcut" in children else flow
        if layer.kind == "Concat":
            return fitted, _side_by_side(ends)
        return fitted, ends[0]

    def convolution(self, layer: Layer, kwargs: dict[str, Any], flow: _Flow | None) -> _Flow:
        shape = self.shape(layer, "weight")  # (out, in / groups, kernel…)
        groups = kwargs.get("groups", 1)
        entering = flow.shrunk(kwargs["in_channels"]) if flow is not None else None
        if groups > 1 and entering is not None and entering % shape[1] == 0:
            groups = entering // shape[1]
        elif groups > 1 and groups == kwargs["in_channels"]:  # depthwise: as many groups as channels
            groups = shape[0] * kwargs["in_channels"] // kwargs["out_channels"]
        if groups > 1 or "groups" in kwargs:
            kwargs["groups"] = groups
        kwargs["in_channels"] = shape[1] * groups
        kwargs["out_channels"] = shape[0]
        return _Flow.of(layer.kwargs["out_channels"], shape[0])

    def transposed_convolution(self, layer: Layer, kwargs: dict[str, Any]) -> _Flow:
        shape = self.shape(layer, "weight")  # (in, out / groups, kernel…)
        groups = kwargs.get("groups", 1)
        if groups > 1 and groups == kwargs["in_channels"]:
            groups = shape[0]
            kwargs["groups"] = groups
        kwargs["in_channels"] = shape[0]
        kwargs["out_channels"] = shape[1] * groups
        return _Flow.of(layer.kwargs["out_channels"], kwargs["out_channels"])

    def norm(self, layer: Layer, kwargs: dict[str, Any], argument: str, flow: _Flow | None) -> _Flow | None:
        """Read the size off the norm's own tensors; one that has none follows the flow."""
        tensor = next((name for name in ("weight", "running_mean") if f"{layer.name}.{name}" in self.shapes), None)
        if tensor is not None:
            kwargs[argument] = self.shape(layer, tensor, 1)[0]
        elif flow is not None:
            kwargs[argument] = flow.shrunk(kwargs[argument]) or kwargs[argument]
        else:
            return None
        return _Flow.of(layer.kwargs[argument], kwargs[argument])

    def layer_norm(self, layer: Layer, kwargs: dict[str, Any], flow: _Flow | None) -> _Flow | None:
        size = kwargs["normalized_shape"]
        shape = [size] if isinstance(size, int) else list(size)
        if f"{layer.name}.weight" in self.shapes:
            kwargs["normalized_shape"] = self.shape(layer, "weight")
            return _Flow.of(shape[0], kwargs["normalized_shape"][0]) if len(shape) == 1 else flow
        if flow is None:
            return None
        # Over several dimensions, the features are the one of their number; a flattened one is alone.
        at = shape.index(flow.before) if flow.before in shape else 0 if len(shape) == 1 else None
        if at is not None:
            shape[at] = flow.shrunk(shape[at]) or shape[at]
            kwargs["normalized_shape"] = shape
        return flow

    def attention(self, layer: Layer, kwargs: dict[str, Any]) -> _Flow:
        keys, features = self.shape(layer, "q.weight", 2)
        out, values = self.shape(layer, "out.weight", 2)
        heads = kwargs["heads"]
        key_width = (kwargs.get("key_features") or kwargs["features"]) // heads
        value_width = (kwargs.get("value_features") or kwargs["features"]) // heads
        if (keys // key_width, values // value_width) == (keys / key_width, keys / key_width):
            heads = keys // key_width  # whole heads were removed
        elif keys % heads or values % heads:
            raise InvalidArchitecture(f"{layer.name}: {keys} and {values} features do not divide among {heads} heads.")
        if kwargs.get("scale") is None:
            kwargs["scale"] = key_width**-0.5
        flow = _Flow.of(kwargs.get("out_features") or kwargs["features"], out)
        kwargs |= {
            "heads": heads,
            "features": features,
            "key_features": keys,
            "value_features": values,
            "out_features": out,
        }
        return flow

    def packed_attention(self, layer: Layer, kwargs: dict[str, Any]) -> _Flow:
        features, of_all_heads = self.shape(layer, "out_proj.weight", 2)
        before = kwargs["embed_dim"]
        width = kwargs.get("head_features") or before // kwargs["num_heads"]
        if of_all_heads % width:
            raise InvalidArchitecture(f"{layer.name}: {of_all_heads} features are no whole number of heads of {width}.")
        if of_all_heads != features:
            kwargs["head_features"] = width
        kwargs |= {"embed_dim": features, "num_heads": of_all_heads // width}
        return _Flow.of(before, features)

    def window_attention(self, layer: Layer, kwargs: dict[str, Any]) -> _Flow:
        features, of_all_heads = self.shape(layer, "proj.weight", 2)
        heads = self.shape(layer, "relative_position_bias_table", 2)[1]
        before = kwargs["features"]
        width = kwargs.get("head_features") or before // kwargs["heads"]
        if of_all_heads % heads:
            raise InvalidArchitecture(f"{layer.name}: {of_all_heads} features do not divide among {heads} heads.")
        if of_all_heads // heads != width and kwargs.get("scale") is None:
            kwargs["scale"] = width**-0.5  # narrower heads were trained with the old one
        if of_all_heads != features or "head_features" in kwargs:
            kwargs["head_features"] = of_all_heads // heads
        kwargs |= {"features": features, "heads": heads}
        return _Flow.of(before, features)

    def encoder_layer(self, layer: Layer, kwargs: dict[str, Any]) -> _Flow:
        hidden, features = self.shape(layer, "linear1.weight", 2)
        of_all_heads = self.shape(layer, "self_attn.out_proj.weight", 2)[1]
        width = kwargs.get("head_features") or kwargs["d_model"] // kwargs["nhead"]
        if of_all_heads % width:
            raise InvalidArchitecture(f"{layer.name}: {of_all_heads} features are no whole number of heads of {width}.")
        if of_all_heads != features or "head_features" in kwargs:
            kwargs["head_features"] = width
        flow = _Flow.of(kwargs["d_model"], features)
        kwargs |= {"d_model": features, "nhead": of_all_heads // width, "dim_feedforward": hidden}
        return flow

    def shape(self, layer: Layer, tensor: str, dims: int | None = None) -> list[int]:
        name = f"{layer.name}.{tensor}"
        shape = self.tensor(layer, name)
        if (dims is not None and len(shape) != dims) or not shape:
            raise InvalidArchitecture(f"{name} has the shape {shape}, which {layer.where} ({layer.kind}) cannot have.")
        return shape

    def tensor(self, layer: Layer, name: str) -> list[int]:
        if name not in self.shapes:
            raise InvalidArchitecture(f"The state dict has no {name}, which {layer.where} ({layer.kind}) needs.")
        return self.shapes[name]


def _side_by_side(ends: list[_Flow | None]) -> _Flow | None:
    """The flow of a concatenation, where it is known how much each branch brings."""
    known = [(end.before, end.kept) for end in ends if end is not None and end.before is not None]
    if len(known) < len(ends):
        return None
    before = sum(count for count, _ in known)
    return _Flow(before, sum((count * kept for count, kept in known), Fraction(0)) / before)


def _reshape(kwargs: dict[str, Any], flow: _Flow | None) -> _Flow | None:
    """A literal channel count follows the features that come in: [64, 7, 7] after 1568 of 3136 is [32, 7, 7]."""
    channels, *rest = kwargs["shape"]
    if flow is None or channels == -1:
        return None if flow is None else replace(flow, before=None)
    # Anything else splits the features in another way, as into groups, whose number stays.
    if flow.before in (None, channels, channels * math.prod(rest)):
        kwargs["shape"] = [flow.shrunk(channels) or channels, *rest]
        return replace(flow, before=channels)
    return None


def _passed_on(layer: Layer, features: int | None) -> int | None:
    """How many features a layer without weights makes of these; the share that is kept of them stays the same."""
    if features is None:
        return None
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
