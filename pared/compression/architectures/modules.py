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
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, head_features)
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


class MultiheadAttention(nn.Module):
    """Self-attention with the tensors of `nn.MultiheadAttention`, batch first, whose heads have their own width.

    Shape: (batch, tokens, embed_dim), unchanged.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        head_features: int | None = None,
    ) -> None:
        """Args: head_features: width of one head; None: all heads together are as wide as the input."""
        super().__init__()
        self.head_features = _head_width(embed_dim, num_heads) if head_features is None else head_features
        inner = num_heads * self.head_features
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, embed_dim))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * inner)) if bias else None)
        self.out_proj = nn.Linear(inner, embed_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over dim 1."""
        q, k, v = functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)  # type: ignore[arg-type]
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            self._split(q), self._split(k), self._split(v), dropout_p=dropout
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), -1, self.head_features).transpose(
            1, 2
        )  # (batch, heads, tokens, head width)


class WindowAttention(nn.Module):
    """Self-attention within square windows of an image, as in Swin; each head adds a bias for each distance.

    Shape: (batch, height, width, features), unchanged. A height or width that is no multiple of the window is padded.
    `shift` moves the windows, cyclically; positions that are no neighbours in the image don't see each other.
    Source: Liu et al., https://arxiv.org/abs/2103.14030.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        window: int,
        shift: int = 0,
        head_features: int | None = None,
        scale: float | None = None,
    ) -> None:
        """Args: head_features: width of one head (None: together they are as wide as the input); scale: of scores."""
        super().__init__()
        if not 0 <= shift < window:
            raise ValueError(f"a shift of {shift} does not lie within a window of {window}")
        self.window = window
        self.shift = shift
        self.head_features = _head_width(features, heads) if head_features is None else head_features
        self.scale = self.head_features**-0.5 if scale is None else float(scale)
        inner = heads * self.head_features
        self.qkv = nn.Linear(features, 3 * inner)
        self.proj = nn.Linear(inner, features)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        rows = torch.arange(window).repeat_interleave(window)
        columns = torch.arange(window).repeat(window)
        down, right = (at.unsqueeze(1) - at.unsqueeze(0) + window - 1 for at in (rows, columns))
        self.register_buffer("relative_position_index", (down * (2 * window - 1) + right).flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each window."""
        height, width, side = x.size(1), x.size(2), self.window
        down, right = (side - height % side) % side, (side - width % side) % side
        x = functional.pad(x, [0, 0, 0, right, 0, down])
        rows, columns = (height + down) // side, (width + right) // side
        # One window as high (or wide) as the image has no neighbours to be shifted to.
        shift_rows = self.shift if rows > 1 else 0
        shift_columns = self.shift if columns > 1 else 0
        x = torch.roll(x, [-shift_rows, -shift_columns], [1, 2])
        x = x.view(x.size(0), rows, side, columns, side, -1).transpose(2, 3).flatten(3, 4).flatten(0, 2)

        tokens = side * side
        q, k, v = self.qkv(x).chunk(3, -1)  # (batch * windows, tokens, heads * head width)
        scores = self._split(q * self.scale).matmul(self._split(k).transpose(2, 3))
        bias = self.relative_position_bias_table[self.relative_position_index]  # type: ignore[index]
        scores = scores + bias.view(tokens, tokens, -1).permute(2, 0, 1)
        if shift_rows + shift_columns > 0:
            apart = self._apart(rows, columns, shift_rows, shift_columns, x)  # (windows, tokens, tokens)
            scores = scores.view(-1, rows * columns, scores.size(1), tokens, tokens) + apart.unsqueeze(1)
            scores = scores.flatten(0, 1)
        mixed = scores.softmax(-1).matmul(self._split(v)).transpose(1, 2).flatten(2)

        x = self.proj(mixed).view(-1, rows, columns, side, side, self.proj.out_features).transpose(2, 3)
        x = torch.roll(x.flatten(3, 4).flatten(1, 2), [shift_rows, shift_columns], [1, 2])
        return x[:, :height, :width].contiguous()

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), -1, self.head_features).transpose(1, 2)  # (…, heads, tokens, head width)

    def _apart(self, rows: int, columns: int, shift_rows: int, shift_columns: int, like: Tensor) -> Tensor:
        """-100 where two positions of a window come from parts of the image that the shift brought together."""
        side = self.window
        down = self._parts(rows, shift_rows, like)
        right = self._parts(columns, shift_columns, like)
        part = (3 * down.unsqueeze(1) + right.unsqueeze(0)).view(rows, side, columns, side)
        part = part.transpose(1, 2).flatten(2).flatten(0, 1)  # (windows, tokens)
        return (part.unsqueeze(1) != part.unsqueeze(2)).to(like.dtype) * -100.0

    def _parts(self, windows: int, shift: int, like: Tensor) -> Tensor:
        """Which part of a shifted axis each position lies in: 0, 1 (the last window) or 2 (what came round)."""
        at = torch.arange(windows * self.window, device=like.device)
        last = (at >= (windows - 1) * self.window).to(at.dtype)
        return last + (at >= windows * self.window - shift).to(at.dtype)


class PatchMerge(nn.Module):
    """Places each four neighbouring positions side by side, as between the stages of Swin.

    Shape: (batch, height, width, features) -> (batch, half of height, half of width, 4 * features), rounded up.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Merge."""
        x = functional.pad(x, [0, 0, 0, x.size(2) % 2, 0, x.size(1) % 2])
        even, odd = x[:, 0::2], x[:, 1::2]
        return torch.cat([even[:, :, 0::2], odd[:, :, 0::2], even[:, :, 1::2], odd[:, :, 1::2]], -1)


class StochasticDepth(nn.Module):
    """Leaves out whole samples at random while it trains, and passes all on else. Shape: unchanged.

    Source: Huang et al., https://arxiv.org/abs/1603.09382.
    """

    def __init__(self, p: float) -> None:
        """Args: p: how often a sample is left out."""
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must be from 0 to below 1, not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each sample by 0, or by what keeps the mean."""
        if not self.training:
            return x
        kept = torch.ones([x.size(0)] + [1] * (x.dim() - 1), dtype=x.dtype, device=x.device)
        return x * functional.dropout(kept, self.p)


def scale(shape: tuple[int, ...], value: float = 1.0) -> nn.Parameter:
    """A factor for each channel, `value` at first."""
    return nn.Parameter(torch.full(shape, value))


def shift(shape: tuple[int, ...]) -> nn.Parameter:
    """A learned summand, such as one for each position."""
    return nn.Parameter(torch.randn(shape) * 0.02)


def prepended(shape: tuple[int, ...]) -> nn.Parameter:
    """A learned beginning, such as a class token: (1, entries, features)."""
    return nn.Parameter(torch.randn(shape) * 0.02)


def _head_width(features: int, heads: int) -> int:
    if heads < 1 or features % heads:
        raise ValueError(f"{features} features cannot be divided among {heads} heads")
    return features // heads
