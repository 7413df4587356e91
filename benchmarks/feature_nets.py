"""Small networks of ten families for digits (N, 1, 8, 8), and twelve pairs of a teacher and a student of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

CLASSES = 10


class Convolutional(nn.Module):
    """Convolutions with batch norms, pooled in between."""

    def __init__(self, width: int, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            before, after = (1 if index == 0 else width * 2 ** min(index - 1, 1)), width * 2 ** min(index, 1)
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            if index == 0:
                layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(after, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x).mean((2, 3)))


class Block(nn.Module):
    """A residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.short = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, after, H / stride, W / stride)."""
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + self.short(x))


class Residual(nn.Module):
    """Two residual blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block1, self.block2 = Block(1, width, 1), Block(width, 2 * width, 2)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.block2(self.block1(x)).mean((2, 3)))


class Separable(nn.Module):
    """Depthwise and pointwise convolutions by turns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.point = nn.Conv2d(width, 2 * width, 1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(torch.relu(self.norm(self.point(self.deep(self.stem(x))))).mean((2, 3)))


class Perceptron(nn.Module):
    """Two hidden layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden1, self.hidden2 = nn.Linear(64, width), nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(torch.relu(self.hidden2(torch.relu(self.hidden1(x.flatten(1))))))


class Attention(nn.Module):
    """A layer of a transformer, norms first, of plain linear layers."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> the same."""
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = ((q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, d))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """The rows of the image as eight tokens, or 4 · 4 patches of it."""

    def __init__(self, width: int, depth: int, *, patches: bool = False) -> None:
        super().__init__()
        self.patches = patches
        self.embed = nn.Conv2d(1, width, 2, 2) if patches else nn.Conv2d(1, width, (1, 8))
        self.place = nn.Parameter(torch.randn(1, 16 if patches else 8, width) * 0.02)
        self.layers = nn.ModuleList(Attention(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.embed(x).flatten(2).transpose(1, 2) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class Recurrent(nn.Module):
    """The rows of the image one after the other."""

    def __init__(self, width: int, kind: str = "GRU", layers: int = 1) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(8, width, layers, batch_first=True)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        steps, _ = self.cell(x.squeeze(1))
        return self.head(torch.relu(self.hidden(steps)).mean(1))


class Sequence(nn.Module):
    """Convolutions along the rows, whose pixels are channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(8, width, 3, padding=1), nn.BatchNorm1d(width)
        self.conv2, self.norm2 = nn.Conv1d(width, width, 3, 2, 1), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = torch.relu(self.norm1(self.conv1(x.squeeze(1))))
        return self.head(torch.relu(self.norm2(self.conv2(x))).mean(2))


Made = Callable[[], nn.Module]
PAIRS: dict[str, tuple[Made, str, Made, str]] = {
    "CNN -> smaller CNN": (lambda: Convolutional(32, 5), "scripted", lambda: Convolutional(8), "scripted"),
    "CNN -> MLP": (lambda: Convolutional(32), "scripted", lambda: Perceptron(16), "scripted"),
    "transformer -> narrower with half the layers": (
        lambda: Transformer(32, 4),
        "traced",
        lambda: Transformer(16, 2),
        "scripted",
    ),
    "CNN -> transformer": (lambda: Convolutional(32), "traced", lambda: Transformer(16, 2), "traced"),
    "GRU -> CNN": (lambda: Recurrent(64), "scripted", lambda: Convolutional(8), "scripted"),
    "residual -> separable": (lambda: Residual(32), "traced", lambda: Separable(8), "scripted"),
    "MLP -> CNN": (lambda: Perceptron(256), "scripted", lambda: Convolutional(8), "traced"),
    "transformer -> GRU": (lambda: Transformer(32, 3), "traced", lambda: Recurrent(24), "scripted"),
    "1-D CNN -> GRU": (lambda: Sequence(64), "scripted", lambda: Recurrent(16), "traced"),
    "LSTM -> MLP": (lambda: Recurrent(64, "LSTM", 2), "scripted", lambda: Perceptron(16), "scripted"),
    "transformer of patches -> CNN": (
        lambda: Transformer(32, 3, patches=True),
        "exported",
        lambda: Convolutional(8),
        "scripted",
    ),
    "residual -> transformer": (lambda: Residual(32), "exported", lambda: Transformer(16, 2), "exported"),
}
"""Name -> teacher, the form of its file, student, and the form of its."""


def saved(module: nn.Module, form: str, folder: Path, name: str) -> Path:
    """A file that loads without the class."""
    example = torch.zeros(2, 1, 8, 8)
    module.eval()
    if form == "exported":
        path = folder / f"{name}.pt2"
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=[{0: torch.export.Dim.AUTO}]), path)
        return path
    path = folder / f"{name}.pt"
    torch.jit.save(torch.jit.script(module) if form == "scripted" else torch.jit.trace(module, example), path)
    return path
