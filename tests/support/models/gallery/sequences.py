"""Architectures for texts, signals and other sequences."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name


class TemporalConv(nn.Module):
    """Dilated causal convolutions with residuals (TCN)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 12, 1)
        self.convs = nn.ModuleList([nn.Conv1d(12, 12, 3, dilation=2**level) for level in range(3)])
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        padding = 2
        for conv in self.convs:
            x = x + F.relu(conv(F.pad(x, (padding, 0))))
            padding *= 2
        return self.fc(x[:, :, -1])


class WaveNet(nn.Module):
    """Gated convolutions, tanh times sigmoid, with residuals and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 8, 1)
        self.filters = nn.ModuleList([nn.Conv1d(8, 24, 2, dilation=2**level) for level in range(2)])
        self.residual = nn.ModuleList([nn.Conv1d(12, 8, 1) for _ in range(2)])
        self.skip = nn.ModuleList([nn.Conv1d(12, 10, 1) for _ in range(2)])
        self.out = nn.Sequential(nn.ReLU(), nn.Conv1d(10, 12, 1), nn.ReLU(), nn.Conv1d(12, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        total, dilation = torch.zeros(1), 1
        for gated, residual, skip in zip(self.filters, self.residual, self.skip):  # noqa: B905 - TorchScript knows no strict
            y = gated(F.pad(x, (dilation, 0)))
            dilation *= 2
            y = torch.tanh(y[:, :12]) * torch.sigmoid(y[:, 12:])
            total = total + skip(y)
            x = x + residual(y)
        return self.out(total)


class Speech(nn.Module):
    """Strided 1-D convolutions, separable ones, and statistics pooled over time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv1d(4, 12, 5, 2, 2), nn.BatchNorm1d(12)
        self.depth, self.point, self.norm_b = (
            nn.Conv1d(12, 12, 3, padding=1, groups=12),
            nn.Conv1d(12, 16, 1),
            nn.BatchNorm1d(16),
        )
        self.code, self.head = nn.Linear(32, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.a(x)))
        x = F.relu(self.norm_b(self.point(self.depth(x))))
        x = torch.cat([x.mean(2), x.std(2)], 1)
        return self.head(F.relu(self.code(x)))


class SpeechDecoder(nn.Module):
    """Transposed 1-D convolutions with weight-shared residual blocks, as vocoders have."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.up, self.post = (
            nn.Conv1d(4, 12, 3, padding=1),
            nn.ConvTranspose1d(12, 8, 4, 2, 1),
            nn.Conv1d(8, 1, 3, padding=1),
        )
        self.block = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.leaky_relu(self.pre(x), 0.1))
        for _ in range(2):
            x = x + self.block(F.leaky_relu(x, 0.1))
        return torch.tanh(self.post(x))


class LstmClassifier(nn.Module):
    """Word vectors, two LSTM layers, the last step classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(30, 8), nn.LSTM(8, 12, num_layers=2, batch_first=True)
        self.fc = nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        output, _ = self.lstm(self.words(tokens))
        return self.fc(output[:, -1, :])


class GruForecaster(nn.Module):
    """A GRU over measurements; its last hidden state forecasts."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = (
            nn.GRU(4, 16, batch_first=True),
            nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        _, hidden = self.gru(x)
        return self.head(hidden[-1])


class Tagger(nn.Module):
    """A bidirectional LSTM gives each word a tag."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(30, 8), nn.LSTM(8, 10, batch_first=True, bidirectional=True)
        self.hidden, self.tags = nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        output, _ = self.lstm(self.words(tokens))
        return self.tags(torch.relu(self.hidden(output)))


class Translator(nn.Module):
    """Sequence to sequence: the encoder's states begin the decoder, which attends to its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(30, 8), nn.Embedding(20, 8)
        self.encoder, self.decoder = nn.GRU(8, 12, batch_first=True), nn.GRU(8, 12, batch_first=True)
        self.mix, self.out = nn.Linear(24, 16), nn.Linear(16, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        output, _ = self.decoder(self.target(target), state)
        weights = torch.softmax(output @ memory.transpose(1, 2), -1)
        return self.out(torch.tanh(self.mix(torch.cat([output, weights @ memory], -1))))


class LanguageModel(nn.Module):
    """A GRU that predicts the next word by the same vectors that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.gru = nn.Embedding(30, 12), nn.GRU(12, 16, batch_first=True)
        self.project, self.out = nn.Linear(16, 12), nn.Linear(12, 30, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.project(self.gru(self.words(tokens))[0])))


class ConvRecurrent(nn.Module):
    """Convolutions read an image, an LSTM its columns (text recognition)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.lstm, self.fc = nn.LSTM(48, 10, batch_first=True, bidirectional=True), nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x))  # (batch, 12, 4, 8)
        batch, channels, height, width = x.shape
        x = x.permute(0, 3, 1, 2).reshape(batch, width, channels * height)
        return self.fc(self.lstm(x)[0])


class TextCnn(nn.Module):
    """Convolutions of several widths over word vectors, each max-pooled (Kim 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 12, padding_idx=0)
        self.convs = nn.ModuleList([nn.Conv1d(12, 8, width) for width in (2, 3, 4)])
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(24, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens).transpose(1, 2)
        pooled = [torch.relu(conv(x)).max(dim=2)[0] for conv in self.convs]
        return self.fc(self.drop(torch.cat(pooled, 1)))


class FastText(nn.Module):
    """The mean of a bag of word vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.fc = nn.EmbeddingBag(30, 16, mode="mean"), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(torch.relu(self.hidden(self.words(tokens))))


class AttentionBlock(nn.Module):
    """Heads split by views, scores scaled by a number that is written in the code."""

    def __init__(self, features: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (
            nn.Linear(features, features),
            nn.Linear(features, features),
            nn.Linear(features, features),
        )
        self.out, self.heads, self.scale = nn.Linear(features, features), heads, 1 / math.sqrt(features // heads)
        self.causal = causal

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        batch, length = x.shape[0], x.shape[1]
        q = self.q(x).view(batch, length, self.heads, -1).transpose(1, 2)
        k = self.k(memory).view(batch, memory.shape[1], self.heads, -1).transpose(1, 2)
        v = self.v(memory).view(batch, memory.shape[1], self.heads, -1).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) * self.scale
        if self.causal:
            mask = torch.ones(length, length, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(mask, -1e9)
        return self.out((torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(batch, length, -1))


class TextEncoder(nn.Module):
    """A post-norm transformer encoder (BERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.position = nn.Embedding(30, 16), nn.Embedding(12, 16)
        self.attention, self.norm1 = AttentionBlock(16, 2), nn.LayerNorm(16)
        self.up, self.down, self.norm2 = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.position(torch.arange(tokens.size(1)))
        x = self.norm1(x + self.attention(x, x))
        x = self.norm2(x + self.down(F.gelu(self.up(x))))
        return self.fc(torch.tanh(x[:, 0]))


class RmsNorm(nn.Module):
    """Written by hand, as Llama's is."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(features) + 0.5), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class UnitLength(nn.Module):
    """Vectors of length one, then a learned scale (the L2 norm of SSD)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(features) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.weight


class Llama(nn.Module):
    """Hand-written RMS norms, causal attention and SwiGLU; head and embedding tied."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.norm1, self.norm2, self.norm3 = RmsNorm(16), RmsNorm(16), RmsNorm(16)
        self.attention = AttentionBlock(16, 2, causal=True)
        self.gate, self.up, self.down = (
            nn.Linear(16, 24, bias=False),
            nn.Linear(16, 24, bias=False),
            nn.Linear(24, 16, bias=False),
        )
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        y = self.norm1(x)
        x = x + self.attention(y, y)
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.norm3(x))


class Gpt(nn.Module):
    """Fused q/k/v, pre-norm, causal scaled dot product attention."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.position = nn.Embedding(30, 16), nn.Parameter(torch.randn(12, 16))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 30)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.position[: tokens.size(1)]
        batch, length, features = x.size()
        q, k, v = self.qkv(self.norm1(x)).split(features, dim=2)
        q = q.view(batch, length, 2, features // 2).transpose(1, 2)
        k = k.view(batch, length, 2, features // 2).transpose(1, 2)
        v = v.view(batch, length, 2, features // 2).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(batch, length, features))
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return self.head(self.norm3(x))


class CrossAttention(nn.Module):
    """A decoder layer: attention to itself, then to another sequence; a GeGLU feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(30, 16), nn.Embedding(20, 16)
        self.own, self.cross = AttentionBlock(16, 2, causal=True), AttentionBlock(16, 2)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 48), nn.Linear(24, 16), nn.Linear(16, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, x = self.source(source), self.target(target)
        y = self.norm1(x)
        x = x + self.own(y, y)
        x = x + self.cross(self.norm2(x), memory)
        value, gate = self.up(self.norm3(x)).chunk(2, dim=-1)
        return self.head(x + self.down(value * F.gelu(gate)))


class MultiheadPooling(nn.Module):
    """nn.MultiheadAttention over word vectors, then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.attention = nn.Embedding(30, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.hidden, self.fc = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.fc(torch.relu(self.hidden(x.mean(1))))


class GatedConv(nn.Module):
    """Convolutions with gated linear units (Dauphin et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(30, 12), nn.Linear(12, 4)
        self.convs = nn.ModuleList([nn.Conv1d(12, 24, 3, padding=1) for _ in range(2)])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens).permute(0, 2, 1)
        for conv in self.convs:
            x = x + F.glu(conv(x), dim=1)
        return self.out(x.mean(-1))


class StateSpace(nn.Module):
    """A diagonal linear recurrence in a loop, gated, as small state-space models have."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.gate, self.out = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(12, 3)
        self.decay = nn.Parameter(torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.inward(x), torch.sigmoid(self.gate(x))
        state = torch.zeros(x.size(0), 12)
        steps = []
        for step in range(6):
            state = state * self.decay + u[:, step]
            steps.append(state)
        return self.out(torch.stack(steps, 1) * gate)
