"""Stands in for the worker that a job's code reports to."""

from __future__ import annotations

import io
from typing import Any

import torch

from pared.compression import SilentObserver


class Killed(Exception):
    """Raised where a kill would come."""


class Kept(SilentObserver):
    """Keeps checkpoints as a file would; `die_at` ends the work at so many of them, as a kill would."""

    def __init__(self, resume: bytes | None = None, die_at: int | None = None) -> None:
        """Args: resume: the checkpoint to go on from."""
        self.checkpoints: list[bytes] = []
        self.fractions: list[float] = []
        self.phases: list[str] = []
        self.lines: list[str] = []
        self._resume, self._die_at = resume, die_at

    def progress(self, fraction: float, *, epoch: int | None = None, epochs: int | None = None) -> None:
        self.fractions.append(fraction)

    def metric(self, name: str, value: float, *, step: int, phase: str) -> None:
        if name == "train_loss":
            self.phases.append(phase)

    def log(self, text: str) -> None:
        self.lines.append(text)

    def checkpoint(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.checkpoints.append(buffer.getvalue())
        if len(self.checkpoints) == self._die_at:
            raise Killed

    def resume(self) -> dict[str, Any] | None:
        return None if self._resume is None else torch.load(io.BytesIO(self._resume), weights_only=True)
