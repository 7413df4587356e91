"""Models that do not want to be compressed: each takes (batch, 16) like `families.Mlp`, and misbehaves in `forward`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LoopsForEver(nn.Module):
    """Never returns."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        turns = 0
        while turns >= 0:
            turns = (turns + 1) % 1000
        return self.fc(x)


class EndsItsProcess(nn.Module):
    """Takes a remainder by zero, which TorchScript does not catch: the process dies by SIGFPE."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + 5 % (x.size(0) - x.size(0)))


class AllocatesWithoutEnd(nn.Module):
    """Keeps 16 MiB more with every turn."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        kept = [x]
        while len(kept) > 0:
            kept.append(torch.ones(1 << 22) + len(kept))
        return self.fc(x)


class Raises(nn.Module):
    """Its own error message should reach its user."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.size(0) > 0:
            raise ValueError("the sensor is upside down")
        return self.fc(x)


class FloodsItsOutput(nn.Module):
    """Prints without measure, then answers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4000):
            print("all work and no play makes a dull model")
        return self.fc(x)


class DividesByItsWeights(nn.Module):
    """Takes the cosine to each row of its weights, so that a row of zeros gives NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) / self.fc.weight.norm(2, 1)
