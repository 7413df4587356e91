"""Owns the API's background thread: it dispatches committed jobs to the queue at once and runs the sweep."""

from __future__ import annotations

import threading
import time

import structlog
from celery import Celery

from pared.state.queue import relay
from pared.state.session import Sessions
from pared.state.sweep import Sweep

DISPATCH_EVERY_S = 1.0

log = structlog.get_logger()


class Dispatcher(threading.Thread):
    """One thread, so that requests never wait for the broker and a burst of jobs is dispatched in one go."""

    def __init__(self, sessions: Sessions, queue: Celery, sweep: Sweep, sweep_s: float) -> None:
        """Args: sweep_s: seconds between two runs of the sweep."""
        super().__init__(name="dispatcher", daemon=True)
        self._sessions, self._queue, self._sweep, self._sweep_s = sessions, queue, sweep, sweep_s
        self._wake = threading.Event()
        self._stopped = threading.Event()

    def dispatch(self) -> None:
        """Send what the outbox holds to the queue, from the thread. Returns at once."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopped.set()
        self._wake.set()
        self.join(timeout=10)

    def run(self) -> None:
        """Relay the outbox when asked and every second; sweep every `sweep_s`."""
        sweep_at = time.monotonic()
        while not self._stopped.is_set():
            self._wake.wait(DISPATCH_EVERY_S)
            self._wake.clear()
            try:
                while relay(self._sessions, queue=self._queue, limit=100) == 100:
                    pass
                if time.monotonic() >= sweep_at:
                    sweep_at = time.monotonic() + self._sweep_s
                    self._sweep()
            except Exception:
                log.warning("sweep_failed", exc_info=True)
