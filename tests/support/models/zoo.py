"""The families with data they can learn, brief training, and the three forms in which their users would upload them."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from tests.support.models import families
from tests.support.models.layer_lists import LAYER_LISTS

Form = Literal["scripted", "traced", "state_dict", "program"]
FORMS: tuple[Form, ...] = ("scripted", "traced", "state_dict")
"""The forms whose tests run over all families; that of `program`, which takes seconds to make, has tests of its own."""

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Family:
    """One architecture and the data that goes with it. `make`: untrained; `samples(count, seed)`: x and y."""

    name: str
    make: Callable[[], nn.Module]
    samples: Callable[[int, int], Arrays]
    task: Literal["classification", "regression"] = "classification"

    def inputs(self, count: int) -> Tensor:
        """Some inputs, batch first, as the model takes them."""
        return torch.from_numpy(self.samples(count, 1)[0])


def images(channels: int, size: int) -> Callable[[int, int], Arrays]:
    """Four classes, each a smooth pattern under noise."""

    def samples(count: int, seed: int) -> Arrays:
        patterns = np.random.default_rng(0).normal(size=(4, channels, size, size))
        rng = np.random.default_rng(seed + 1)
        y = rng.integers(0, 4, count)
        x = patterns[y] + rng.normal(size=(count, channels, size, size))
        return x.astype(np.float32), y.astype(np.int64)

    return samples


def noisy_fields(count: int, seed: int) -> Arrays:
    """Regression: the 8×8 field without its noise, flattened."""
    rng = np.random.default_rng(seed + 1)
    grid = np.linspace(0, np.pi, 8)
    phase = rng.uniform(0, np.pi, (count, 2, 1, 1))
    clean = np.sin(grid[None, :, None] + phase[:, 0]) * np.cos(grid[None, None, :] + phase[:, 1])
    x = clean + 0.3 * rng.normal(size=clean.shape)
    return x[:, None].astype(np.float32), clean.reshape(count, 64).astype(np.float32)


def tables(count: int, seed: int) -> Arrays:
    """Sixteen columns around four centres."""
    centres = np.random.default_rng(0).normal(size=(4, 16))
    rng = np.random.default_rng(seed + 1)
    y = rng.integers(0, 4, count)
    return (centres[y] + 0.8 * rng.normal(size=(count, 16))).astype(np.float32), y.astype(np.int64)


def texts(count: int, seed: int) -> Arrays:
    """Twelve tokens, half of them from the class's own fifteen of the sixty."""
    rng = np.random.default_rng(seed + 1)
    y = rng.integers(0, 4, count)
    own = y[:, None] * 15 + rng.integers(0, 15, (count, 12))
    x = np.where(rng.random((count, 12)) < 0.5, own, rng.integers(0, 60, (count, 12)))
    return x.astype(np.int64), y.astype(np.int64)


def signals(count: int, seed: int) -> Arrays:
    """Two channels of 32 steps; the class is the frequency."""
    rng = np.random.default_rng(seed + 1)
    y = rng.integers(0, 4, count)
    time = np.arange(32) / 32
    phase = rng.uniform(0, 2 * np.pi, (count, 2, 1))
    x = np.sin(2 * np.pi * (2 * y[:, None, None] + 1) * time + phase) + 0.3 * rng.normal(size=(count, 2, 32))
    return x.astype(np.float32), y.astype(np.int64)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in [
        Family("plain_cnn", families.PlainCnn, images(1, 12)),
        Family("resnet", families.ResNet, images(3, 8)),
        Family("depthwise", families.Depthwise, images(3, 8)),
        Family("grouped", families.Grouped, images(3, 8)),
        Family("densenet", families.DenseNet, images(3, 8)),
        Family("squeeze_excite", families.SeNet, images(3, 8)),
        Family("unet", families.UNet, noisy_fields, task="regression"),
        Family("mlp", families.Mlp, tables),
        Family("text_pool", families.TextPool, texts),
        Family("text_transformer", families.TextTransformer, texts),
        Family("signal_cnn", families.SignalCnn, signals),
        Family("shared", families.Shared, tables),
    ]
}


@functools.cache
def trained(name: str) -> nn.Module:
    """The family's model after a little training, in eval mode. Do not change it: it is made once."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    torch.set_num_threads(1)  # for models this small, more only wait for each other
    module = family.make().train()
    x, y = (torch.from_numpy(array) for array in family.samples(512, 0))
    loss = F.cross_entropy if family.task == "classification" else F.mse_loss
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(6):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss(module(x[batch]), y[batch]).backward()
            optimizer.step()
    return module.eval()


def architecture(name: str) -> dict[str, Any]:
    """The layer list that the family's state dict fits."""
    return {"layers": LAYER_LISTS[name]}


def upload(name: str, form: Form) -> bytes:
    """The file that the family's user would upload."""
    module = trained(name)
    if form == "scripted":
        return saved(torch.jit.script(module))
    if form == "traced":
        return saved(torch.jit.trace(module, (FAMILIES[name].inputs(2),), check_trace=False))
    if form == "program":
        return exported(module, FAMILIES[name].inputs(2))
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getvalue()


def exported(module: nn.Module, *example: Tensor, fixed: bool = False) -> bytes:
    """The bytes of `torch.export.save`, of a program that takes any batch, or that of the example alone."""
    buffer = io.BytesIO()
    free = None if fixed else tuple({0: torch.export.Dim.AUTO} for _ in example)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=free), buffer)
    return buffer.getvalue()


def saved(module: torch.jit.ScriptModule) -> bytes:
    """The bytes of `torch.jit.save`."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


@functools.cache
def dataset(name: str) -> bytes:
    """The family's samples as the bytes of an `.npz`."""
    return npz(*FAMILIES[name].samples(600, 2))


def npz(x: np.ndarray, y: np.ndarray) -> bytes:
    """Arrays `x` and `y` as the bytes of an `.npz`."""
    buffer = io.BytesIO()
    np.savez(buffer, x=x, y=y)
    return buffer.getvalue()
