"""`pared up` as a person starts it, for tests on a card."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.gpu.card import DEVICE
from tests.support.processes import PATIENCE_S, Process, Processes
from tests.support.stack import Stack

# Not the script `pared`: a checkout that is on Python's path has none.
PARED = [sys.executable, "-P", "-m", "pared"]
WORKERS = {"cuda": 5, "cpu": 2}[DEVICE]
"""Processes that work on the many jobs; one of them belongs to `pared up`."""
LIMIT_S = {"cuda": 270.0, "cpu": 900.0}[DEVICE]
"""For all waiting together: a service that hangs must not use up the time on a machine that is lent."""
SETTINGS = {
    "PARED_LEASE_S": "20",
    "PARED_HEARTBEAT_S": "2",
    "PARED_SWEEP_S": "1",
    "PARED_RING_AGAIN_S": "3",
    "PARED_CANCEL_GRACE_S": "5",
    "PARED_THREADS": str(max(1, min(4, len(os.sched_getaffinity(0)) // WORKERS))),
}


class Up(Stack):
    """The API and a worker under `pared up`; more workers beside them where many jobs wait."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        """Start it, and wait until it is ready."""
        folder.mkdir()
        self._until = time.monotonic() + LIMIT_S
        super().__init__(folder, processes, settings=SETTINGS)

    def start(self, workers: int) -> None:
        command = [*PARED, "up", "--port", str(self.port), "--data", str(self.data)]
        log = self.folder / "up.log"
        self.api = self.processes.start(command, name="up", log=log, cwd=self.folder, env=self.env)

    def wait_ready(self, *, need_worker: bool = True, limit_s: float = PATIENCE_S) -> None:
        super().wait_ready(need_worker=need_worker, limit_s=limit_s)

    def start_worker(self) -> Process:
        name = f"beside-{len(self.workers)}"
        worker = self.processes.start(
            [*PARED, "worker"], name=name, log=self.folder / f"{name}.log", cwd=self.folder, env=self.env
        )
        self.workers.append(worker)
        return worker

    def send_workers_home(self) -> None:
        """Stop those beside `pared up`."""
        while self.workers:
            self.workers.pop().stop()

    def logs(self) -> list[Path]:
        """All that was written."""
        return sorted([*self.folder.glob("*.log"), *self.data.glob("logs/*.log")])

    def tails(self, lines: int = 20) -> str:
        ends = [(log.stem, log.read_text(errors="replace").splitlines()[-lines:]) for log in self.logs()]
        return "\n".join(f"--- {name} ---\n" + "\n".join(end) for name, end in ends)

    def stop(self) -> None:
        self.send_workers_home()
        if self.api.alive:
            self.api.stop()
        self.http.close()

    def _patiently(self, look: Any, limit_s: float, what: str) -> dict[str, Any]:
        return super()._patiently(look, max(1.0, min(limit_s, self._until - time.monotonic())), what)
