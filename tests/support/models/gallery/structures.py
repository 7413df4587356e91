"""Structures whose channels are read by position, over all of them, or through literals: shuffles, CBAM, ECA, LRN…"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name


class IndexShuffle(nn.Module):
    """ShuffleNet's units, the channels of all groups mixed by `index_select` with indices kept in a buffer."""

    def __init__(self, width: int = 12, groups: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.squeeze = nn.Conv2d(width, width, 1, groups=groups)
        self.register_buffer("order", torch.arange(width).view(groups, -1).t().reshape(-1))
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.expand = nn.Conv2d(width, width, 1, groups=groups)
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.squeeze(x))
        y = torch.index_select(y, 1, self.order)
        return self.fc(F.relu(x + self.expand(self.depthwise(y))).mean((2, 3)))


class ViewShuffle(nn.Module):
    """ShuffleNet v1: views of sizes read from the tensor mix the channels before a grouped convolution."""

    def __init__(self, width: int = 12, groups: int = 3) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.squeeze = nn.Conv2d(width, width, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.expand = nn.Conv2d(width, width, 1, groups=groups)
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.norm(self.squeeze(x)))
        batch, channels, height, width = y.size()
        y = y.view(batch, self.groups, channels // self.groups, height, width)
        y = torch.transpose(y, 1, 2).contiguous().view(batch, -1, height, width)
        return self.fc(F.relu(x + self.expand(self.depthwise(y))).mean((2, 3)))


class Patches(nn.Module):
    """`unfold` and a linear layer instead of a convolution, then tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.embed = nn.Linear(8 * 4, 16)
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(F.relu(self.stem(x)), kernel_size=2, stride=2)
        return self.fc(self.norm(self.embed(patches.transpose(1, 2))).mean(1))


class Folded(nn.Module):
    """`unfold`, a layer for each patch, and `fold` to put the patches, which overlap, together again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.patches = nn.Linear(6 * 9, 4 * 9)
        self.out = nn.Conv2d(4, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(F.relu(self.stem(x)), 3, padding=1).transpose(1, 2)
        x = F.fold(F.relu(self.patches(patches)).transpose(1, 2), (8, 8), 3, padding=1)
        return self.fc(F.relu(self.out(x)).mean((2, 3)))


class Eca(nn.Module):
    """Efficient channel attention: a 1-D convolution over the channels' means."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(width, 12, 3, padding=1)
        self.out = nn.Conv2d(12, width, 1)
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.eca(self.pool(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        x = x * torch.sigmoid(y).expand_as(x)
        return self.fc((x + self.out(F.relu(self.inner(x)))).mean((2, 3)))


class Cbam(nn.Module):
    """Channel attention of means and maxima, then spatial attention of the mean and the maximum over channels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width))
        self.spatial = nn.Conv2d(2, 1, 3, padding=1, bias=False)
        self.out = nn.Conv2d(width, 12, 3, padding=1)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        means, maxima = F.adaptive_avg_pool2d(x, 1).flatten(1), F.adaptive_max_pool2d(x, 1).flatten(1)
        x = x * torch.sigmoid(self.mlp(means) + self.mlp(maxima))[:, :, None, None]
        places = torch.cat([torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
        x = x * torch.sigmoid(self.spatial(places))
        return self.fc(F.relu(self.out(x)).mean((2, 3)))


class LocalNorm(nn.Module):
    """AlexNet's local response normalisation over neighbouring channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.LocalResponseNorm(5, alpha=0.5, k=2.0)
        self.b = nn.Conv2d(16, 12, 3, padding=1)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm(F.relu(self.a(x))), 2)
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


class CellByHand(nn.Module):
    """An LSTM cell stepped over time; its first states are zeros made in `forward`."""

    def __init__(self, hidden: int = 12) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.LSTMCell(6, hidden)
        self.fc = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), self.hidden, device=x.device)
        c = torch.zeros(x.size(0), self.hidden, device=x.device)
        for step in range(x.size(1)):
            h, c = self.cell(x[:, step], (h, c))
        return self.fc(h)


class GivenState(nn.Module):
    """An LSTM whose first states are zeros made in `forward`, as in many tutorials."""

    def __init__(self, hidden: int = 12, layers: int = 2) -> None:
        super().__init__()
        self.hidden, self.layers = hidden, layers
        self.lstm = nn.LSTM(6, hidden, layers, batch_first=True)
        self.fc = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(self.layers, x.size(0), self.hidden).to(x.device)
        c = torch.zeros(self.layers, x.size(0), self.hidden).to(x.device)
        out, _ = self.lstm(x, (h, c))
        return self.fc(out[:, -1])


class LearnedState(nn.Module):
    """A GRU whose first state is a parameter, the same for each sample."""

    def __init__(self, hidden: int = 12) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, hidden))
        self.gru = nn.GRU(6, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, last = self.gru(x, self.first.expand(1, x.size(0), -1).contiguous())
        return self.fc(out[:, -1] + last[0])


class PassedState(nn.Module):
    """An LSTM whose first states come in as inputs and whose last states go out."""

    def __init__(self, hidden: int = 12) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 10)
        self.lstm = nn.LSTM(10, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, (h, c) = self.lstm(F.relu(self.enter(x)), (h.transpose(0, 1), c.transpose(0, 1)))
        return self.fc(out[:, -1]), h.transpose(0, 1), c.transpose(0, 1)


class ScaleInForward(nn.Module):
    """Attention whose scale is computed in `forward` from the width and the number of heads."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Linear(6, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q = q * (width // self.heads) ** -0.5
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return self.fc(x.mean(1))


class TokenVit(nn.Module):
    """A vision transformer with a class token, a table of positions and layer scales, all of the residual width."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.last = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = x + self.scale * self.down(F.gelu(self.up(self.norm(x))))
        return self.fc(self.last(x)[:, 0])


class SentenceEncoder(nn.Module):
    """A model of sentence embeddings: its output has the residual width."""

    def __init__(self, width: int = 16, tokens: int = 30) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(tokens, width), nn.Embedding(8, width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)
        self.last = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))
        x = self.last(x + self.down(F.gelu(self.up(x))))
        return F.normalize(x.mean(1), dim=-1)


class PlaceMean(nn.Module):
    """Spatial attention by the mean over channels, and an auxiliary answer that is the mean itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.gate = nn.Conv2d(1, 1, 3, padding=1)
        self.b = nn.Conv2d(12, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x)
        x = x * torch.sigmoid(self.gate(x.mean(1, keepdim=True)))
        y = F.relu(self.b(x))
        return self.fc(y.mean((2, 3))), y.mean((1, 2, 3))
