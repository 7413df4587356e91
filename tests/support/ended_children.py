"""Ends children of workers as the kernel does where memory is short: as soon as they are forked."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from worker.forkserver import ForkServer


def end_next_child(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Send KILL to the next child of a fork server. Returns a list that is empty once that was done."""
    child, left = ForkServer.child, [1]

    def forked(self: ForkServer, *arguments: Any) -> Any:
        made = child(self, *arguments)
        if left:
            left.pop()
            os.kill(made.pid, signal.SIGKILL)
        return made

    monkeypatch.setattr(ForkServer, "child", forked)
    return left
