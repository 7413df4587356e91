"""Architectures for tables and for pairs of things."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name


class Perceptron(nn.Module):
    """Batch norm, dropout and several activations."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 20), nn.SELU(),
            nn.Linear(20, 12), nn.Softplus(), nn.Linear(12, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Highway(nn.Module):
    """Gates choose between a layer and what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.out = nn.Linear(16, 20), nn.Linear(20, 3)
        self.layers, self.gates = (
            nn.ModuleList([nn.Linear(20, 20) for _ in range(2)]),
            nn.ModuleList([nn.Linear(20, 20) for _ in range(2)]),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.inward(x))
        for layer, gate in zip(self.layers, self.gates):  # noqa: B905 - TorchScript knows no strict
            carry = torch.sigmoid(gate(x))
            x = carry * torch.relu(layer(x)) + (1 - carry) * x
        return self.out(x)


class WideAndDeep(nn.Module):
    """A linear part beside a deep part over embedded categories."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(10, 6) for _ in range(3)])
        self.wide = nn.Linear(8, 1)
        self.deep = nn.Sequential(nn.Linear(26, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 1))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        inputs = [numbers]
        for index, table in enumerate(self.tables):
            inputs.append(table(categories[:, index]))
        return self.wide(numbers) + self.deep(torch.cat(inputs, 1))


class DeepFm(nn.Module):
    """Pairwise products of embedded categories (a factorisation machine) beside a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(30, 8), nn.Embedding(30, 1)
        self.deep = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 1))

    def forward(self, categories: Tensor) -> Tensor:
        vectors = self.table(categories)  # (batch, 3, 8)
        pairs = 0.5 * (vectors.sum(1).pow(2) - vectors.pow(2).sum(1)).sum(1, keepdim=True)
        return pairs + self.linear(categories).sum(1) + self.deep(vectors.flatten(1))


class TwoTower(nn.Module):
    """A user and an item each become a vector of length one; their product says how well they fit."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(20, 12), nn.Embedding(30, 12)
        self.user, self.item = (
            nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10)),
            nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10)),
        )

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        a, b = F.normalize(self.user(self.users(user)), dim=-1), F.normalize(self.item(self.items(item)), dim=-1)
        return (a * b).sum(-1)


class TabNet(nn.Module):
    """Gated linear blocks, halves added with a constant weight, and a learned mask on the features."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mask = nn.BatchNorm1d(16), nn.Linear(12, 16)
        self.shared, self.blocks = nn.Linear(16, 24), nn.ModuleList([nn.Linear(12, 24) for _ in range(2)])
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        total = F.glu(self.shared(x))
        for block in self.blocks:
            masked = x * torch.sigmoid(self.mask(total))
            y = F.glu(self.shared(masked))
            total = total + (y + F.glu(block(y))) * 0.7071
        return self.out(torch.relu(total))


class FeatureTokens(nn.Module):
    """Each column becomes a token with a scale and a shift; attention over the columns (FT-transformer)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.token = (
            nn.Parameter(torch.randn(6, 16)),
            nn.Parameter(torch.randn(6, 16)),
            nn.Parameter(torch.randn(1, 1, 16)),
        )
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, None] * self.weight + self.bias
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], 1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        a, b = self.up(self.norm2(x)).chunk(2, -1)
        x = x + self.down(a * F.relu(b))
        return self.head(F.relu(self.norm3(x[:, 0])))


class SharedSteps(nn.Module):
    """One block applied again and again, as steps of a differential equation (Runge–Kutta)."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.a, self.b, self.out = nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 2)

    def change(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        for _ in range(3):
            middle = x + 0.05 * self.change(x)
            x = x + 0.1 * self.change(middle)
        return self.out(x)


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's weights, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight1, self.weight2 = nn.Parameter(torch.randn(12, 16)), nn.Parameter(torch.randn(6, 12))
        self.bias1, self.bias2 = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        code = F.linear(torch.relu(F.linear(x, self.weight1, self.bias1)), self.weight2)
        return F.linear(torch.relu(F.linear(code, self.weight2.t())), self.weight1.t(), self.bias2)


class Experts(nn.Module):
    """A softmax over experts weighs their answers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out = nn.Linear(10, 4), nn.Linear(12, 3)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12)) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.gate(x), 1)
        answers = torch.stack([expert(x) for expert in self.experts], 2)  # (batch, 12, 4)
        return self.out((answers * weights.unsqueeze(1)).sum(2))


class ImageAndText(nn.Module):
    """Two kinds of inputs meet by a bilinear gate; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.image = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 12)
        self.words, self.text = nn.Embedding(30, 10), nn.Linear(10, 12)
        self.match, self.label = nn.Linear(12, 1), nn.Linear(24, 4)

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        a = self.image(torch.relu(self.conv(image)).mean((2, 3)))
        b = self.text(self.words(tokens).mean(1))
        return self.match(a * b), self.label(torch.cat([a, b], 1))


class PointNet(nn.Module):
    """The same perceptron on each point, the largest of each feature over the points."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 12, 1), nn.Conv1d(12, 24, 1)
        self.norm, self.hidden, self.out = nn.BatchNorm1d(12), nn.Linear(24, 12), nn.Linear(12, 4)

    def forward(self, points: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.norm(self.a(points.transpose(2, 1))))))
        return self.out(torch.relu(self.hidden(torch.max(x, 2)[0])))


class GraphConv(nn.Module):
    """Features of a graph's nodes, passed along its adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 16, bias=False), nn.Linear(16, 12, bias=False), nn.Linear(12, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = torch.relu(adjacency @ self.a(x))
        x = torch.relu(torch.bmm(adjacency, self.b(x)))
        return self.out(x.mean(1))


class Capsule(nn.Module):
    """Vectors that are squashed to a length below one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.vectors, self.out = nn.Conv1d(4, 12, 3, padding=1), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.vectors(torch.relu(self.conv(x)).mean(2))
        length = x.norm(p=2, dim=1, keepdim=True)
        return self.out(x * length / (1 + length**2))


class DuelingQ(nn.Module):
    """State value plus advantages less their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU())
        self.value, self.advantage = nn.Linear(16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)
