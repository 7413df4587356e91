"""Owns what config.json says of a decoder that is read layer by layer: its sizes, and the tensors that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pared.errors import UnsupportedModel

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
}
"""Class of transformers -> its `model_type`: RMSNorm, rotary positions, grouped heads and a gated MLP."""
LAYERS = "model.layers"
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

Axis = Literal["hidden", "inner", "heads", "groups"]
"""What a dimension of a weight counts: `heads` are those of queries, `groups` those of keys and values."""

PROJECTIONS: Mapping[str, tuple[Axis, Axis]] = {
    "self_attn.q_proj": ("heads", "hidden"),
    "self_attn.k_proj": ("groups", "hidden"),
    "self_attn.v_proj": ("groups", "hidden"),
    "self_attn.o_proj": ("hidden", "heads"),
    "mlp.gate_proj": ("inner", "hidden"),
    "mlp.up_proj": ("inner", "hidden"),
    "mlp.down_proj": ("hidden", "inner"),
}
"""The linear layers of a decoder layer, with what their rows and columns count."""
NORMS = ("input_layernorm", "post_attention_layernorm")
UNUSED = re.compile(r"\.rotary_emb\.inv_freq$")
"""Tensors that old files hold, and that are computed from the config."""


@dataclass(frozen=True)
class Rotary:
    """The positions: frequencies θ^(−2i/d), scaled as Llama 3.1 does where it has `scaling`."""

    theta: float
    scaling: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Decoder:
    """A decoder by its config. `groups` are the heads of keys and values, each of which serves `heads / groups`."""

    settings: Mapping[str, Any]
    layers: int
    hidden: int
    inner: int
    heads: int
    groups: int
    head_dim: int
    vocabulary: int
    epsilon: float
    tied: bool
    window: int | None
    """Tokens that a token looks back at, where they are not all."""
    rotary: Rotary | None
    """None: of a kind that we do not compute, so that the model is not run."""

    @property
    def heads_of_group(self) -> int:
        """How many heads of queries share a head of keys and values."""
        return self.heads // self.groups

    def size(self, axis: Axis) -> int:
        """Rows, or columns, of a weight that count this."""
        sizes = {"hidden": self.hidden, "inner": self.inner}
        sizes |= {"heads": self.heads * self.head_dim, "groups": self.groups * self.head_dim}
        return sizes[axis]

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...], bool]]:
        """Each tensor with its shape, and whether the file may do without it."""
        yield EMBEDDING, (self.vocabulary, self.hidden), False
        yield NORM, (self.hidden,), False
        yield HEAD, (self.vocabulary, self.hidden), self.tied
        for layer in range(self.layers):
            for norm in NORMS:
                yield f"{LAYERS}.{layer}.{norm}.weight", (self.hidden,), False
            for projection, (rows, columns) in PROJECTIONS.items():
                name = f"{LAYERS}.{layer}.{projection}"
                yield f"{name}.weight", (self.size(rows), self.size(columns)), False
                yield f"{name}.bias", (self.size(rows),), True


def is_decoder(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a family that is read layer by layer."""
    classes = settings.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    return isinstance(name, str) and FAMILIES.get(name) == settings.get("model_type")


def decoder_of(settings: Mapping[str, Any]) -> Decoder:
    """The decoder of a config.json.

    Raises:
        UnsupportedModel: it is of another family, or has a setting that we do not know.
    """
    if not is_decoder(settings):
        raise UnsupportedModel(
            f"Layer by layer go {', '.join(FAMILIES)}, by `architectures` and `model_type` of config.json; this is "
            f"{str(settings.get('architectures'))[:100]} of {str(settings.get('model_type'))[:60]}. Leave `streamed` "
            "out to have it built as a whole."
        )
    hidden, heads = _whole(settings, "hidden_size"), _whole(settings, "num_attention_heads")
    groups = _whole(settings, "num_key_value_heads", heads)
    if heads % groups:
        raise UnsupportedModel(
            f"config.json has {heads} heads (num_attention_heads) in {groups} groups (num_key_value_heads), which do "
            "not divide. Take config.json and weights from one folder."
        )
    if settings.get("head_dim") is None and hidden % heads:
        raise UnsupportedModel(
            f"config.json has no head_dim, and {heads} heads do not divide the hidden_size of {hidden}. Add the "
            "head_dim that the model was trained with."
        )
    if settings.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedModel(_other("hidden_act", settings["hidden_act"], "silu"))
    head_dim = _whole(settings, "head_dim", hidden // heads)
    if head_dim % 2:
        raise UnsupportedModel(f"config.json has heads of {head_dim} numbers, which rotary positions cannot halve.")
    epsilon = settings.get("rms_norm_eps", 1e-6)
    if type(epsilon) is not float or not 0 < epsilon < 1:
        raise UnsupportedModel(_other("rms_norm_eps", epsilon, "a number such as 1e-6"))
    return Decoder(
        settings=settings,
        layers=_whole(settings, "num_hidden_layers"),
        hidden=hidden,
        inner=_whole(settings, "intermediate_size"),
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        vocabulary=_whole(settings, "vocab_size"),
        epsilon=epsilon,
        tied=bool(settings.get("tie_word_embeddings", False)),
        window=_window(settings),
        rotary=_rotary(settings),
    )


def smaller(decoder: Decoder, *, layers: list[int], inner: int, groups: int) -> dict[str, Any]:
    """The config.json of the decoder with these of its layers, of such widths."""
    settings = dict(decoder.settings)
    for name, value in settings.items():
        if isinstance(value, list) and len(value) == decoder.layers and "layer" in name:
            settings[name] = [value[index] for index in layers]
    if isinstance(settings.get("max_window_layers"), int):
        settings["max_window_layers"] = min(settings["max_window_layers"], len(layers))
    settings["num_hidden_layers"] = len(layers)
    settings["intermediate_size"] = inner
    settings["num_attention_heads"] = groups * decoder.heads_of_group
    settings["num_key_value_heads"] = groups
    settings["head_dim"] = decoder.head_dim
    return settings


def _whole(settings: Mapping[str, Any], name: str, without: int | None = None) -> int:
    value = settings.get(name)
    value = without if value is None else value
    if type(value) is not int or not 0 < value < 1 << 31:
        raise UnsupportedModel(_other(name, value, "a whole number above 0"))
    return value


def _other(name: str, value: Any, wanted: str) -> str:
    return (
        f"config.json has {name} {str(value)[:60]!r}, where {wanted} is read layer by layer. Leave `streamed` out to "
        "have the model built as a whole."
    )


def _window(settings: Mapping[str, Any]) -> int | None:
    """Qwen2 says by a setting of its own whether its window is used."""
    used = settings.get("use_sliding_window", settings.get("model_type") == "mistral")
    window = settings.get("sliding_window")
    return window if used and type(window) is int else None


def _rotary(settings: Mapping[str, Any]) -> Rotary | None:
    """Both as transformers wrote it up to version 4 and as it does since."""
    told = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(told, dict) or settings.get("partial_rotary_factor", 1.0) != 1.0:
        return None
    theta = told.get("rope_theta", settings.get("rope_theta", 10_000.0))
    kind = told.get("rope_type", told.get("type", "default"))
    if type(theta) not in (int, float) or theta <= 0:
        return None
    if kind == "default" and told.get("partial_rotary_factor", 1.0) == 1.0:
        return Rotary(float(theta))
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    scaling = {name: float(told[name]) for name in names if type(told.get(name)) in (int, float) and told[name] > 0}
    return Rotary(float(theta), scaling) if kind == "llama3" and len(scaling) == len(names) else None
