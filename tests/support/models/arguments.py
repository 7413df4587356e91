"""Models whose forward takes more than tensors, or does not do the same each time."""

from __future__ import annotations

from typing import Optional  # what TorchScript reads

import torch
from torch import Tensor, nn


class Rated(nn.Module):
    """Takes a sampling rate, which says which of two branches runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.out = nn.Linear(12, 16), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, sr: int) -> Tensor:
        """(N, 12) at 16000, (N, 6) at 8000."""
        if sr == 16000:
            return self.out(torch.relu(self.fine(x)))
        if sr == 8000:
            return self.coarse(x)
        raise ValueError("unknown rate")


class Switched(nn.Module):
    """Takes a flag, a text and an optional tensor, all with defaults, whose other values read what may be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor, features: bool = False, mode: str = "c", more: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        """(N, 6) to (N, 3), or to features (N, 16)."""
        h = torch.relu(self.b(torch.relu(self.a(x))))
        if features:
            return h
        if more is not None:
            h = h + self.b(more)
        return self.c(h) if mode == "c" else self.d(h)


class Gathered(nn.Module):
    """Takes a tuple, a list and a dict of tensors, an optional tensor and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(
        self,
        x: Tensor,
        pair: tuple[Tensor, Tensor],
        several: list[Tensor],
        named: dict[str, Tensor],
        gain: float,
        mask: Optional[Tensor] = None,  # noqa: UP045
    ) -> Tensor:
        """(N, 6) each, mask (N, 3)."""
        x = x + pair[0] * pair[1] + named["extra"]
        for each in several:
            x = x + each
        y = self.b(torch.relu(self.a(x))) * gain
        return y if mask is None else y * mask


class Remembering(nn.Module):
    """A recurrent layer whose state is passed in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.cell, self.b = nn.Linear(6, 16), nn.LSTM(16, 5, 2, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(N, T, 6), and a state of two (2, N, 5)."""
        y, state = self.cell(torch.relu(self.a(x)), state)
        return self.b(y), state


class Streaming(nn.Module):
    """Keeps what it was last given, and begins anew for another batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 3)
        self.last = torch.zeros(0)
        self.calls = 0

    @torch.jit.export
    def reset(self) -> None:
        """Forget."""
        self.last = torch.zeros(0)
        self.calls = 0

    def forward(self, x: Tensor, sr: int) -> Tensor:
        """(N, 6)."""
        if self.last.size(0) != x.size(0):
            self.last = torch.zeros(x.size(0), 6)
        both = torch.cat([self.last, x], 1)
        self.last = x
        self.calls += 1
        return self.b(torch.relu(self.a(both))) * (sr // 16000)


class StreamingMean(Streaming):
    """Takes a mean over its outputs, too, which asks what is removed and what calls the file's own forward."""

    def forward(self, x: Tensor, sr: int) -> Tensor:
        """(N, 6)."""
        if self.last.size(0) != x.size(0):
            self.last = torch.zeros(x.size(0), 6)
        hidden = torch.relu(self.a(torch.cat([self.last, x], 1)))
        self.last = x
        self.calls += 1
        out = self.b(hidden)
        return (out - out.mean(1, keepdim=True)) * (sr // 16000)


class Exporting(nn.Module):
    """Has other methods: one that reads its features, one that splits them, one that calls forward, one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.side = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(4, 2)

    @torch.jit.export
    def embed(self, x: Tensor) -> Tensor:
        """(N, 16)."""
        return torch.relu(self.a(x))

    @torch.jit.export
    def tokens(self, x: Tensor) -> Tensor:
        """(N, 2, 8)."""
        return self.embed(x).reshape(-1, 2, 8)

    @torch.jit.export
    def twice(self, x: Tensor) -> Tensor:
        """(N, 3)."""
        return self.forward(x) * 2

    @torch.jit.export
    def beside(self, y: Tensor) -> Tensor:
        """(N, 4) to (N, 2)."""
        return self.side(y)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 6) to (N, 3)."""
        return self.b(self.embed(x))
