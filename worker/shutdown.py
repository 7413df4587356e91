"""Owns the shutdown flag of a worker's processes: it is seen across forks and wakes whoever waits."""

from __future__ import annotations

import os
import select


class Shutdown:
    """Made before the worker forks. A byte in a pipe that nobody reads: once set, it is set for every process."""

    def __init__(self) -> None:
        self.fd, self._write = os.pipe()

    def request(self) -> None:
        """Ask for an orderly stop. Safe in a signal handler."""
        os.write(self._write, b"x")

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.wait(0)

    def wait(self, timeout_s: float) -> bool:
        """Sleep, but no longer than until a stop is asked for. Returns whether it was."""
        return bool(select.select([self.fd], [], [], timeout_s)[0])
