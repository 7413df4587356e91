"""The networks that pruners are compared on, small enough to be trained many times, and their data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from pared.compression.data import Data, load_dataset
from pared.compression.tasks.classification import Classification
from pared.compression.training.calibration import learn_labels
from pared.compression.training.loop import fit
from pared.compression.work import DatasetFile
from pared.specs import Preprocess, Train

PREPROCESS = {"scale": 1 / 255, "mean": [0.1307], "std": [0.3081]}
SAMPLES = {"train": 8000, "val": 2000, "held_out": 10000}
DENSE = Train(epochs=8, optimizer="adam", lr=0.002, lr_schedule="cosine", batch_size=64)
RETRAIN = {"epochs": 2, "optimizer": "sgd", "lr": 0.02, "momentum": 0.9, "lr_schedule": "cosine", "batch_size": 64}


class Cnn(nn.Sequential):
    """Five 3×3 convolutions, each followed by a batch norm."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        channels = 1
        for width, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
            layers += [*_convolution(channels, width, 3, stride), nn.ReLU()]
            channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Residual(nn.Module):
    """A small ResNet: a stem and four blocks of two 3×3 convolutions, two of them with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(1, 16, 3, 1), nn.ReLU())
        widths = ((16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2))
        self.blocks = nn.Sequential(
            *(Block([(before, after, 3, s), (after, after, 3, 1)]) for before, after, s in widths)
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 14, 14) to logits (batch, 10)."""
        return self.fc(self.blocks(self.stem(x)).mean(dim=[2, 3]))


class Block(nn.Module):
    """Convolutions (channels before, after, kernel, stride) with batch norms, and a way around them all."""

    def __init__(self, shapes: list[tuple[int, int, int, int]]) -> None:
        super().__init__()
        before, after, stride = shapes[0][0], shapes[-1][1], max(shape[3] for shape in shapes)
        layers = [layer for shape in shapes for layer in (*_convolution(*shape), nn.ReLU())]
        self.body = nn.Sequential(*layers[:-1])
        same = before == after and stride == 1
        self.around = nn.Identity() if same else nn.Sequential(*_convolution(before, after, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, height, width) to (batch, after, height / stride, width / stride)."""
        return F.relu(self.body(x) + self.around(x))


class Encoder(nn.Module):
    """A transformer encoder of three layers, eight heads of width 8, over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(14, 64)
        self.position = nn.Parameter(torch.randn(14, 64) * 0.02)
        self.layers = nn.ModuleList([EncoderLayer(64, 8, 128) for _ in range(3)])
        self.norm, self.fc = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 14, 14) to logits (batch, 10)."""
        x = self.embed(x.squeeze(1)) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.fc(self.norm(x).mean(dim=1))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each behind a layer norm and beside a way around."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        y = self.norm1(x)
        q, k, v = self.split(self.q(y)), self.split(self.k(y)), self.split(self.v(y))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def split(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, heads, tokens, width of a head), however many heads there are."""
        return x.view(x.shape[0], x.shape[1], -1, self.head_width).transpose(1, 2)


def resnet50() -> nn.Module:
    """ResNet-50 (He et al. 2016), for the time that its pruning takes."""
    layers: list[nn.Module] = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for blocks, inner, after, first_stride in ((3, 64, 256, 1), (4, 128, 512, 2), (6, 256, 1024, 2), (3, 512, 2048, 2)):
        for index in range(blocks):
            stride = first_stride if index == 0 else 1
            layers.append(Block([(before, inner, 1, 1), (inner, inner, 3, stride), (inner, after, 1, 1)]))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch-norm CNN": Cnn,
    "residual network": Residual,
    "transformer encoder": Encoder,
}


def head(module: nn.Module) -> nn.Module:
    """The layer that gives the logits, which keeps its outputs."""
    return list(module.modules())[-1] if isinstance(module, nn.Sequential) else module.fc


def _convolution(before: int, after: int, kernel: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after)


# -- data and dense models ----------------------------------------------------------------------


def prepared_data(mnist: str, seed: int, judged: Literal["test", "held_out"], folder: Path) -> tuple[Path, Data]:
    """MNIST at 14×14, split by seed; `judged` says whether errors are of test or of held-out training images."""
    path = folder / f"mnist-{judged}-{seed}.npz"
    given = np.load(mnist)
    order = np.random.default_rng(seed).permutation(len(given["x_train"]))
    train, val, held_out = np.split(order, np.cumsum(list(SAMPLES.values())))[:3]
    splits = {"train": ("train", train), "val": ("train", val), "test": ("train", held_out)}
    if judged == "test":
        splits["test"] = ("test", np.arange(len(given["x_test"])))
    arrays = {}
    for name, (source, indices) in splits.items():
        pixels = given[f"x_{source}"][indices].reshape(-1, 1, 14, 2, 14, 2)
        arrays[f"x_{name}"] = pixels.mean(axis=(3, 5)).round().astype(np.uint8)
        arrays[f"y_{name}"] = given[f"y_{source}"][indices].astype(np.int64)
    np.savez(path, **arrays)
    preprocess = Preprocess.model_validate(PREPROCESS)
    return path, load_dataset(DatasetFile(path, path.name), task="classification", preprocess=preprocess, seed=seed)


def trained(name: str, data: Data, seed: int, folder: Path) -> nn.Module:
    """A dense network, trained unless it has been before."""
    path = folder / f"{name.replace(' ', '-')}-{seed}.pt"
    torch.manual_seed(seed)
    module = NETWORKS[name]()
    if path.exists():
        module.load_state_dict(torch.load(path))
        return module.eval()
    fit(module, data, DENSE, learn_labels(Classification()), task=Classification(), seed=seed, phase="dense")
    torch.save(module.state_dict(), path)
    return module.eval()
