"""Networks that a card treats otherwise than a processor does: with devices in their code, or too large for it."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from tests.support.models import zoo


class Recurrent(nn.Module):
    """Tokens through a recurrent layer; the last state says the class. Tracing writes where its first state lies."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.words, self.memory, self.out = nn.Embedding(60, 16), kind(16, 24, batch_first=True), nn.Linear(24, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.memory(self.words(tokens))[0][:, -1])


class OnFirstCard(nn.Module):
    """Code that names a card, as that of files traced on one does; scripting needs none."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.ones([1, 32], device=torch.device("cuda:0"))
        return self.fc2(F.relu(self.fc1(x) + shift))


class Places(nn.Module):
    """Positions made in the forward pass: export writes where they lie."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(60, 16), nn.Embedding(12, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.size(1), device=tokens.device))
        return self.fc2(F.relu(self.fc1(x.mean(1))))


class Wide(nn.Module):
    """Convolutions that keep a card busy, so that fewer channels take less time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [3, width, width, width]
        self.layers = nn.Sequential(
            *(
                layer
                for before, after in itertools.pairwise(widths)
                for layer in (nn.Conv2d(before, after, 3, padding=1), nn.ReLU())
            )
        )
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=4.0)  # (batch, 3, 32, 32)
        return self.fc(self.layers(x).mean(dim=[2, 3]))


class Deep(nn.Module):
    """Answers that a training step must keep: `layers` times 64 · size² bytes a sample, and little work."""

    def __init__(self, layers: int, size: int) -> None:
        super().__init__()
        self.layers, self.size = layers, size
        self.conv, self.norm, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.norm(self.conv(x)), size=[self.size, self.size])
        for _ in range(self.layers):
            x = torch.sin(x)
        return self.fc(x.mean(dim=[2, 3]))


class Greedy(nn.Module):
    """Wants so many MiB in a training step, however small the batch."""

    def __init__(self, mib: int) -> None:
        super().__init__()
        self.elements = mib << 18
        self.conv, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.training:
            x = x + torch.zeros([self.elements], device=x.device).sum()
        return self.fc(x.mean(dim=[2, 3]))


def traced(module: nn.Module, example: Tensor) -> bytes:
    """The file of a traced module, made here on the CPU."""
    return zoo.saved(torch.jit.trace(module.eval(), (example,), check_trace=False))


def scripted(module: nn.Module) -> bytes:
    """The file of a scripted module."""
    return zoo.saved(torch.jit.script(module.eval()))


def made_on_the_card(module: nn.Module, example: Tensor, folder: Path, *, state: bool = False) -> bytes:
    """The same module traced, or its state dict saved, with all of it on the card; by a process that ends again."""
    torch.save((module.eval(), example), folder / "given.pt")
    code = (
        "import sys, torch\n"
        "module, example = torch.load('given.pt', weights_only=False)\n"
        "module, example = module.cuda(), example.cuda()\n"
        "if sys.argv[1] == 'True':\n    torch.save(module.state_dict(), 'made.pt')\n"
        "else:\n    torch.jit.save(torch.jit.trace(module, (example,), check_trace=False), 'made.pt')\n"
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{code}", str(state)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-400:]
    return (folder / "made.pt").read_bytes()


def example_of(data: bytes) -> Tensor:
    """Two samples of a data set's file."""
    import numpy as np

    return torch.from_numpy(np.load(io.BytesIO(data))["x"][:2])
