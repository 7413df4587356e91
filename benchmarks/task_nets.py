"""Nets of six kinds and the data that they learn, drawn or read from Python's own files: for `tasks.py`."""

from __future__ import annotations

import io
import keyword
import tokenize
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SHAPES = 3
"""Kinds of shapes that are drawn: disc, square, cross."""
SIZE = 32
LENGTH = 64
_LETTERS = "\n" + "".join(chr(code) for code in range(32, 127))
VOCABULARY = len(_LETTERS)
TAGS = 6
"""Of a character of source text: name, keyword, operator, number, string, comment; what is between them is ignored."""


@dataclass(frozen=True)
class Samples:
    """Inputs (N, …) and labels, as numpy arrays; the labels' shape is the task's."""

    x: NDArray[np.generic]
    y: NDArray[np.generic]


# -- images -------------------------------------------------------------------------------------


def shape_mask(kind: int, x: float, y: float, radius: float) -> NDArray[np.bool_]:
    """Where a shape lies, (SIZE, SIZE)."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    down, right = np.abs(rows - y), np.abs(columns - x)
    if kind == 0:
        return down**2 + right**2 <= radius**2
    if kind == 1:
        return np.maximum(down, right) <= 0.85 * radius
    return (np.minimum(down, right) <= 0.3 * radius) & (np.maximum(down, right) <= radius)


def scenes(count: int, seed: int, most: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Noisy images with one to `most` shapes of random colours.

    Returns:
        Images (count, 3, SIZE, SIZE), masks (count, SIZE, SIZE) with 0 for the background and 1 + kind, and, of the
        last shape in each, (count, 5): kind, centre, half-width and half-height as shares of the image.
    """
    random = np.random.default_rng(seed)
    images = random.normal(0, 0.15, (count, 3, SIZE, SIZE)).astype(np.float32)
    masks = np.zeros((count, SIZE, SIZE), dtype=np.int64)
    last = np.zeros((count, 5), dtype=np.float32)
    for index in range(count):
        images[index] += random.uniform(-0.3, 0.3, (3, 1, 1))
        for _ in range(random.integers(1, most + 1)):
            kind, radius = int(random.integers(SHAPES)), random.uniform(5, 9)
            x, y = random.uniform(radius, SIZE - radius, 2)
            mask = shape_mask(kind, x, y, radius)
            colour = random.choice([-1, 1], 3) * random.uniform(0.5, 1, 3)
            images[index, :, mask] = colour + random.normal(0, 0.15, (int(mask.sum()), 3))
            masks[index][mask] = 1 + kind
            last[index] = kind, x / SIZE, y / SIZE, radius / SIZE, radius / SIZE
    return images, masks, last


def masked(seed: int) -> tuple[Samples, Samples]:
    """Images and a class for each pixel."""
    images, masks, _ = scenes(3000, 100 + seed, 3)
    return Samples(images[:2000], masks[:2000]), Samples(images[2000:], masks[2000:])


def several_shapes(seed: int) -> tuple[Samples, Samples]:
    """Images and which of the shapes are in each, (N, SHAPES) of 0 and 1."""
    images, masks, _ = scenes(4000, 200 + seed, 3)
    there = np.stack([(masks == 1 + kind).any((1, 2)) for kind in range(SHAPES)], 1).astype(np.float32)
    return Samples(images[:3000], there[:3000]), Samples(images[3000:], there[3000:])


def one_shape(seed: int) -> tuple[Samples, Samples]:
    """Images with one shape, and its kind and box."""
    images, _, last = scenes(4000, 300 + seed, 1)
    return Samples(images[:3000], last[:3000]), Samples(images[3000:], last[3000:])


def one_shape_class(seed: int) -> tuple[Samples, Samples]:
    """Images with one shape, and one of nine classes: its kind, and in which third of the width it lies."""
    images, _, last = scenes(4000, 400 + seed, 1)
    classes = (last[:, 0] * 3 + np.minimum(last[:, 1] * 3, 2).astype(int)).astype(np.int64)
    return Samples(images[:3000], classes[:3000]), Samples(images[3000:], classes[3000:])


class UNet(nn.Module):
    """Two halvings, two doublings, and what was before each halving beside what comes after its doubling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.deepest = _block(3, 8), _block(8, 16), _block(16, 32)
        self.up_second, self.up_first = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.again_second, self.again_first = _block(32, 16), _block(16, 8)
        self.head = nn.Conv2d(8, 1 + SHAPES, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, 1 + SHAPES, H, W)."""
        first = self.first(x)
        second = self.second(self.pool(first))
        deepest = self.deepest(self.pool(second))
        second = self.again_second(torch.cat([self.up_second(deepest), second], 1))
        return self.head(self.again_first(torch.cat([self.up_first(second), first], 1)))


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _backbone() -> nn.Sequential:
    """Images to features (N, 64)."""
    return nn.Sequential(
        _block(3, 16), _block(16, 32, 2), _block(32, 64, 2), _block(64, 64), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(1024, 64), nn.ReLU(),
    )  # fmt: skip


class ManyLabels(nn.Module):
    """A logit for each kind of shape."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = _backbone(), nn.Linear(64, SHAPES)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits (N, SHAPES)."""
        return self.head(self.backbone(x))


class Detector(nn.Module):
    """Two heads: the class of what is in the image, and its box."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.kind, self.box = _backbone(), nn.Linear(64, SHAPES), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images to logits (N, SHAPES) and boxes (N, 4)."""
        features = self.backbone(x)
        return {"logits": self.kind(features), "box": self.box(features)}


class Embedder(nn.Module):
    """A vector for each image; near ones are of the same class."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = _backbone(), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Images to vectors (N, 32)."""
        return self.head(self.backbone(x))


# -- text ---------------------------------------------------------------------------------------


def characters(seed: int) -> tuple[Samples, Samples]:
    """English text from Python's own help, LENGTH characters a sample; the labels are the characters that follow."""
    from pydoc_data.topics import topics

    ids = _ids("\n".join(topics[name] for name in sorted(topics)))
    windows = len(ids) // (LENGTH + 1)
    cut = ids[: windows * (LENGTH + 1)].reshape(windows, LENGTH + 1)[np.random.default_rng(seed).permutation(windows)]
    test = windows // 6
    return Samples(cut[test:, :-1], cut[test:, 1:]), Samples(cut[:test, :-1], cut[:test, 1:])


def highlighted(seed: int) -> tuple[Samples, Samples]:
    """Source text of Python's standard library, LENGTH characters a sample, and what each of them is part of."""
    folder = Path(io.__file__).parent
    texts, tags = [], []
    for path in sorted(folder.glob("*.py"))[:60]:
        source = path.read_text(encoding="utf-8", errors="ignore")
        if source.isascii():
            texts.append(_ids(source))
            tags.append(_tags(source))
    ids, tagged = np.concatenate(texts), np.concatenate(tags)
    windows = len(ids) // LENGTH
    order = np.random.default_rng(seed).permutation(windows)[:9000]
    x, y = (a[: windows * LENGTH].reshape(windows, LENGTH)[order] for a in (ids, tagged))
    return Samples(x[:6000], y[:6000]), Samples(x[6000:], y[6000:])


def _ids(text: str) -> NDArray[np.int64]:
    number = {letter: index for index, letter in enumerate(_LETTERS)}
    return np.array([number.get(letter, 1) for letter in text], dtype=np.int64)


def _tags(source: str) -> NDArray[np.int64]:
    starts = np.cumsum([0, *(len(line) for line in source.splitlines(keepends=True))])
    tags = np.full(len(source), -100, dtype=np.int64)
    kinds = {tokenize.OP: 2, tokenize.NUMBER: 3, tokenize.STRING: 4, tokenize.COMMENT: 5}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = kinds.get(token.type)
        if token.type == tokenize.NAME:
            kind = int(keyword.iskeyword(token.string))
        if kind is not None:
            begin, end = starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1]
            tags[begin:end] = kind
    return tags


class Tagger(nn.Module):
    """Convolutions over embedded characters, each with its input beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.layers = nn.ModuleList(
            nn.Conv1d(inputs, 64, 5, padding=2 * wide, dilation=wide) for inputs, wide in ((32, 1), (64, 2), (64, 4))
        )
        self.head = nn.Linear(64, TAGS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Characters (N, T) to logits (N, T, TAGS)."""
        x = self.embed(tokens).transpose(1, 2)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x.transpose(1, 2))


class LanguageModel(nn.Module):
    """Two causal transformer layers with four heads."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.layers = nn.ModuleList(CausalLayer(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Characters (N, T) to logits (N, T, VOCABULARY) of those that follow."""
        x = self.embed(tokens) + self.place(torch.arange(tokens.size(1), device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class CausalLayer(nn.Module):
    """Attention to what came before, and two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to the same."""
        n, t, width = x.shape
        y = self.norm(x)
        q, k, v = (part(y).view(n, t, 4, width // 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm_mlp(x))))
