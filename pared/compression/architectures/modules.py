"""Defines the modules of layer lists that torch does not have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate query, key, value and output projections.

    Shape: (batch, tokens, features) -> (batch, tokens, out_features). `scale` multiplies the scores; it is kept
    through shrinking, because a model whose heads get narrower was trained with the old one.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        key_features: int | None = None,
        value_features: int | None = None,
        out_features: int | None = None,
        bias: bool = True,
        causal: bool = False,
        scale: float | None = None,
    ) -> None:
        """Args: features: input width; key_features, value_features: widths over all heads (default `features`)."""
        super().__init__()
        keys = features if key_features is None else key_features
        values = features if value_features is None else value_features
        if heads < 1 or keys % heads or values % heads:
            raise ValueError(f"{keys} key and {values} value features cannot be divided among {heads} heads")
        self.heads = heads
        self.causal = causal
        self.scale = (keys // heads) ** -0.5 if scale is None else float(scale)
        self.q = nn.Linear(features, keys, bias=bias)
        self.k = nn.Linear(features, keys, bias=bias)
        self.v = nn.Linear(features, values, bias=bias)
        self.out = nn.Linear(values, features if out_features is None else out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over dim 1."""
        q, k, v = self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), x.size(1), self.heads, -1).transpose(1, 2)  # (batch, heads, tokens, head width)


class PositionalEmbedding(nn.Module):
    """Adds a learned vector for each position. Shape: (batch, up to `tokens`, features), unchanged."""

    def __init__(self, tokens: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, features))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add the first `x.size(1)` vectors."""
        return x + self.weight[: x.size(1)]


def encoder_layer(
    d_model: int,
    nhead: int,
    dim_feedforward: int = 2048,
    dropout: float = 0.1,
    activation: str = "relu",
    layer_norm_eps: float = 1e-5,
    batch_first: bool = True,
    norm_first: bool = False,
    bias: bool = True,
    head_features: int | None = None,
) -> nn.Module:
    """torch's `nn.TransformerEncoderLayer`; with `head_features`, one whose heads have that width each.

    Torch's own can only have heads that are together as wide as the model, which one that has lost heads is not.
    """
    if head_features is None:
        return nn.TransformerEncoderLayer(
            d_model,
            nhead,
            dim_feedforward,
            dropout,
            activation,
            layer_norm_eps,
            batch_first=batch_first,
            norm_first=norm_first,
            bias=bias,
        )
    return _EncoderLayer(
        d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, norm_first, bias, head_features
    )


class _EncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer`, its tensors under the same names, with heads of any number and width.

    Shape: (batch, tokens, d_model), unchanged.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float,
        activation: str,
        layer_norm_eps: float,
        norm_first: bool,
        bias: bool,
        head_features: int,
    ) -> None:
        super().__init__()
        self.self_attn = _Attention(d_model, nhead, head_features, dropout, bias)
        self.linear1 = nn.Linear(d_model, dim_feedforward, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model, bias=bias)
        self.norm_first = norm_first
        self.norm1 = nn.LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.norm2 = nn.LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.gelu = activation == "gelu"

    def forward(self, x: Tensor) -> Tensor:
        """Attend, and feed forward, each beside its input."""
        if self.norm_first:
            x = x + self.dropout1(self.self_attn(self.norm1(x)))
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self.dropout1(self.self_attn(x)))
        return self.norm2(x + self._feed_forward(x))  # type: ignore[no-any-return]

    def _feed_forward(self, x: Tensor) -> Tensor:
        x = self.linear1(x)
        x = functional.gelu(x) if self.gelu else torch.relu(x)
        return self.dropout2(self.linear2(self.dropout(x)))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Self-attention as in `nn.MultiheadAttention`, whose heads have their own width."""

    def __init__(self, features: int, heads: int, head_features: int, dropout: float, bias: bool) -> None:
        super().__init__()
        inner = heads * head_features
        self.head_features = head_features
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, features))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.in_proj_bias: nn.Parameter | None
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * inner)) if bias else None)
        self.out_proj = nn.Linear(inner, features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over dim 1."""
        q, k, v = functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            self._split(q), self._split(k), self._split(v), dropout_p=dropout
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), -1, self.head_features).transpose(
            1, 2
        )  # (batch, heads, tokens, head width)
