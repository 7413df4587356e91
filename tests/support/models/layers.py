"""One small network for each kind of layer, to see which formats can hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SEQUENCE, IMAGE, TOKENS = (5, 8), (4, 8, 8), (6,)


@dataclass(frozen=True)
class Kind:
    """A network around a layer, and the shapes of one sample of its inputs. `tokens`: the inputs are ids."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    tokens: bool = False

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Inputs of so many samples."""
        generator = torch.Generator().manual_seed(batch)
        if self.tokens:
            return tuple(torch.randint(0, 20, (batch, *shape), generator=generator) for shape in self.shapes)
        return tuple(torch.randn(batch, *shape, generator=generator) for shape in self.shapes)


class Recurrent(nn.Module):
    """A recurrent layer, of which a linear layer takes the last step of the sequence."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.layer = kind(8, 6, batch_first=True, **options)
        self.out = nn.Linear(6 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0][:, -1])


class LastState(nn.Module):
    """An LSTM of which the last hidden state is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[1][0][-1])


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")
        self.layers, self.out = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x).mean(1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.out(self.layer(x, memory))


class Fused(nn.Module):
    """Attention with fused q, k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        return self.out(mixed.mean(1))


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.einsum("bid,bjd->bij", self.q(x), self.k(x)).softmax(-1)
        return self.out(torch.einsum("bij,bjd->bid", weights, x).mean(1))


class Upsampled(nn.Module):
    """As segmentation nets do: down, and up again to the size of the input."""

    def __init__(self, *, to_input: bool) -> None:
        super().__init__()
        self.to_input = to_input
        self.down, self.out = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = functional.max_pool2d(torch.relu(self.down(x)), 2)
        if self.to_input:
            return self.out(functional.interpolate(low, size=x.shape[-2:]))
        return self.out(functional.interpolate(low, scale_factor=2.0, mode="bilinear", align_corners=False))


class Language(nn.Module):
    """Token and position embeddings, a causal encoder layer, and an output that shares the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 8), nn.Embedding(16, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        mask = torch.full((length, length), float("-inf"), device=x.device).triu(1)
        state = self.tokens(x) + self.positions(torch.arange(length, device=x.device))
        return self.out(self.layer(state, src_mask=mask))


class RootMeanSquare(nn.Module):
    """A norm by hand, and a gated unit."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.gate, self.up, self.out = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale
        return self.out(functional.silu(self.gate(x)) * self.up(x))


class Squeezed(nn.Module):
    """Squeeze and excitation behind a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.less, self.more, self.out = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.depthwise(x))
        share = torch.sigmoid(self.more(torch.relu(self.less(x.mean((2, 3), keepdim=True)))))
        return self.out(x * share).mean((2, 3))


class Joined(nn.Module):
    """Dense connections: concatenation, and a split."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.two(torch.cat([x, torch.relu(self.one(x))], 1)).chunk(2, 1)
        return self.out(first * torch.sigmoid(second)).amax((2, 3))


class Pair(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.relu(self.one(x)) * torch.sigmoid(self.two(y))
        return self.out(both), both.sum(-1)


def _images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(3))


def _made(make: Callable[[], nn.Module], kind_of: tuple[int, ...]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        module = make().eval()
        module(torch.randn(1, *kind_of))  # lazy layers take their sizes
        return module

    return made


def _seq(*layers: Callable[[], nn.Module], shape: tuple[int, ...]) -> Kind:
    return Kind(_made(lambda: nn.Sequential(*(layer() for layer in layers)), shape), (shape,))


LAYERS: dict[str, Kind] = {
    "linear, gelu, dropout": _seq(lambda: nn.Linear(8, 6), nn.GELU, nn.Dropout, lambda: nn.Linear(6, 3), shape=(8,)),
    "conv1d, prelu": _seq(lambda: nn.Conv1d(4, 6, 3), nn.PReLU, nn.Flatten, lambda: nn.LazyLinear(3), shape=(4, 9)),
    "conv3d": _seq(lambda: nn.Conv3d(2, 4, 3), nn.ReLU, nn.Flatten, lambda: nn.LazyLinear(3), shape=(2, 4, 4, 4)),
    "conv, batch norm": Kind(
        _made(lambda: _images(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Hardswish()), IMAGE), (IMAGE,)
    ),
    "conv, group norm": Kind(
        _made(lambda: _images(nn.Conv2d(4, 6, 3), nn.GroupNorm(3, 6), nn.SiLU()), IMAGE), (IMAGE,)
    ),
    "conv, instance norm": Kind(
        _made(lambda: _images(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ELU()), IMAGE), (IMAGE,)
    ),
    "transposed conv": Kind(
        _made(lambda: _images(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.LeakyReLU()), IMAGE), (IMAGE,)
    ),
    "pools, padding": Kind(
        _made(lambda: _images(nn.ReflectionPad2d(1), nn.MaxPool2d(2), nn.AvgPool2d(2, 1), nn.Conv2d(4, 6, 1)), IMAGE),
        (IMAGE,),
    ),
    "pixel shuffle": Kind(_made(lambda: _images(nn.Conv2d(4, 8, 1), nn.PixelShuffle(2)), IMAGE), (IMAGE,)),
    "depthwise conv, squeeze": Kind(Squeezed, (IMAGE,)),
    "concatenation, chunk": Kind(Joined, (IMAGE,)),
    "upsampling by a factor": Kind(lambda: Upsampled(to_input=False), (IMAGE,)),
    "upsampling to the input": Kind(lambda: Upsampled(to_input=True), (IMAGE,)),
    "layer norm, softmax": _seq(lambda: nn.LayerNorm(8), lambda: nn.Linear(8, 3), lambda: nn.Softmax(-1), shape=(5, 8)),
    "RMS norm, gated unit": Kind(RootMeanSquare, (SEQUENCE,)),
    "embedding": Kind(lambda: nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(24, 3)), (TOKENS,), True),
    "LSTM": Kind(lambda: Recurrent(nn.LSTM), (SEQUENCE,)),
    "LSTM, both ways": Kind(lambda: Recurrent(nn.LSTM, bidirectional=True), (SEQUENCE,)),
    "LSTM, last state": Kind(LastState, (SEQUENCE,)),
    "GRU": Kind(lambda: Recurrent(nn.GRU), (SEQUENCE,)),
    "RNN": Kind(lambda: Recurrent(nn.RNN), (SEQUENCE,)),
    "multi-head attention": Kind(SelfAttention, (SEQUENCE,)),
    "encoder layer": Kind(Encoder, (SEQUENCE,)),
    "decoder layer": Kind(Decoder, (SEQUENCE, SEQUENCE)),
    "fused attention": Kind(Fused, (SEQUENCE,)),
    "einsum attention": Kind(Einsum, (SEQUENCE,)),
    "causal language model": Kind(Language, (TOKENS,), True),
    "two inputs, two outputs": Kind(Pair, ((8,), (8,))),
}
