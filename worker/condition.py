"""Owns whether this worker can work: whether there are scratch folders and objects, and how its last attempts went."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pared.errors import SandboxTooWeak, Unavailable
from pared.state.objects import ObjectStore
from worker.attempt_types import Ending, Hindered

_TRY_EVERY_S = 2.0
_TRIED_BYTES = 1 << 16
_MANY = 3
"""So many attempts that this machine hindered, one after the other, are no accident."""
_FORGET_S = 300.0


class Condition:
    """Of one worker process; its threads share it."""

    def __init__(self, scratch: Callable[[], Path], store: Callable[[], ObjectStore]) -> None:
        """Args: scratch: where scratch folders are made; store: of objects, once the process is a worker."""
        self._scratch, self._store = scratch, store
        self._asked_at = -_TRY_EVERY_S
        self._store_problem: str | None = None
        self._tried_at = -_TRY_EVERY_S
        self._scratch_problem: str | None = None
        self._hindered = 0
        self._last, self._forget_at = "", 0.0

    def scratch_problem(self) -> str | None:
        """Why no job can be started, for it would find no folder or no room; None: one can."""
        if time.monotonic() >= self._tried_at + _TRY_EVERY_S:
            self._scratch_problem = _try(self._scratch())
            self._tried_at = time.monotonic()
        return self._scratch_problem

    def store_problem(self) -> str | None:
        """Why no job would find its files; None: it would, as far as is known."""
        if time.monotonic() >= self._asked_at + _TRY_EVERY_S:
            try:
                self._store().check()
            except Unavailable as error:
                self._store_problem = error.detail
            else:
                self._store_problem = None
            self._asked_at = time.monotonic()
        return self._store_problem

    def note(self, ending: Ending | None) -> None:
        """Take note of how an attempt ended; None: none was made, or it is not over."""
        if isinstance(ending, Hindered) and isinstance(ending.error, SandboxTooWeak):
            return  # it works: other jobs do not need what its kernel lacks
        if isinstance(ending, Hindered):
            self._hindered += 1
            self._last, self._forget_at = ending.error.detail, time.monotonic() + _FORGET_S
        elif ending is not None:
            self._hindered = 0

    def problem(self) -> str | None:
        """Why this worker can't work, as far as is known, and what to do; None: it can."""
        if (problem := self.scratch_problem() or self.store_problem()) is not None:
            return problem
        if self._hindered >= _MANY and time.monotonic() < self._forget_at:
            return (
                f"The last {self._hindered} attempts at jobs failed on this machine. {self._last} See the worker's log."
            )
        return None


def _try(root: Path) -> str | None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root, buffering=0) as file:  # without a name: nothing is left of it
            file.write(bytes(_TRIED_BYTES))
    except OSError as error:
        return (
            f"Jobs cannot be started: nothing can be written in {root} ({error.strerror}). Make room on that disk, or "
            "let this worker's user write there."
        )
    return None
