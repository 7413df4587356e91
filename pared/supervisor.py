"""Owns supervising child processes: started, started again when they end, and shut down together."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pared.gpus import VISIBLE, Gpu
from pared.log_files import begin_anew_if_full
from pared.terminal import printable

SHUTDOWN_TIMEOUT_S = 15.0
"""Between TERM and KILL."""
RETRY_BACKOFF_S = 0.5
"""Before a process that ended is started again; twice as long each time, until one has run for `_STABLE_S`."""
_MAX_BACKOFF_S = 10.0
_STABLE_S = 30.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Process:
    """One child: its command, and when it may be started again."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path | None = None
    """Where its output goes; None: where this process's own goes."""
    files: Sequence[int] = ()
    """Descriptors of this process that it inherits."""
    popen: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_after: float = 0.0
    delay_s: float = RETRY_BACKOFF_S


def worker_processes(
    gpus: Sequence[Gpu], environment: Mapping[str, str], threads: int, logs: Path | None = None
) -> list[Process]:
    """One worker for each card, which sees that card alone and its share of the cores; without cards, one worker.

    Args:
        gpus: the cards.
        environment: of this process; where it sets `PARED_THREADS`, each has so many.
        threads: that the workers share otherwise.
        logs: the folder of their logs.
    """
    command = [sys.executable, "-P", "-m", "pared", "worker"]
    if not gpus:
        return [Process("worker", command, environment, logs and logs / "worker.log")]
    divided = len(gpus) > 1 and environment.get("PARED_THREADS", "0") == "0"
    shared = {"PARED_THREADS": str(max(1, threads // len(gpus)))} if divided else {}
    names = ["worker"] if len(gpus) == 1 else [f"worker-{index}" for index in range(len(gpus))]
    return [
        Process(name, command, {**environment, **shared, VISIBLE: gpu.token}, logs and logs / f"{name}.log")
        for name, gpu in zip(names, gpus, strict=True)
    ]


class Supervisor:
    """Runs processes until Ctrl-C or SIGTERM."""

    def __init__(
        self, processes: list[Process], log_bytes: int = 0, goes_on: Callable[[Process], bool] = lambda _process: True
    ) -> None:
        """Set up; starts nothing.

        Args:
            log_bytes: size from which a log file is begun anew; 0: never.
            goes_on: asked about a process that ended: whether it is started again, or all are shut down.
        """
        self.processes = processes
        self._log_bytes = log_bytes
        self._goes_on = goes_on
        self._code = 0
        self._stops = 0
        self._wake = threading.Event()

    def run(self, tick: Callable[[], None] = lambda: None) -> int:
        """Start them, and start again what dies. Nothing outlives this process, even when it is killed.

        A first Ctrl-C or SIGTERM lets workers hand their jobs back to the queue; a second one stops at once.

        Args:
            tick: called a few times a second.

        Returns:
            The exit code: 0, or that of the process with which nothing went on.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        try:
            while not self._stops:
                for process in self.processes:
                    self._restart_if_ended(process)
                    if process.log and self._log_bytes:
                        begin_anew_if_full(process.log, self._log_bytes)
                tick()
                self._wake.wait(0.2)
        finally:
            self._shut_down()
        return self._code

    def _stop(self, *_: Any) -> None:
        self._stops += 1
        self._wake.set()

    def _restart_if_ended(self, process: Process) -> None:
        now = time.monotonic()
        if process.popen is not None:
            status = process.popen.poll()
            if status is None:
                return
            process.popen = None
            if not self._goes_on(process):
                self._code = status if status > 0 else 1
                self._stop()
                return
            where = f"; see {process.log}" if process.log else ""
            say(f"the {process.name} process ended ({_ending(status)}) and is started again{where}")
            _put_off(process, now)
        if now < process.start_after:
            return
        process.started_at = now
        try:
            with process.log.open("ab") if process.log else nullcontext() as log:
                process.popen = _start(process, log)
        except OSError as error:  # the disk has no room for its log, or the machine no memory: others go on meanwhile
            say(f"the {process.name} process could not be started ({error}) and is tried again")
            _put_off(process, now)

    def _shut_down(self) -> None:
        """TERM to all, so that a worker hands its job back; KILL after a while, or at a second Ctrl-C."""
        self._stops = max(self._stops, 1)
        running = [process.popen for process in self.processes if process.popen is not None]
        for popen in running:
            _signal(popen, signal.SIGTERM)
        until = time.monotonic() + SHUTDOWN_TIMEOUT_S
        while any(popen.poll() is None for popen in running):
            if self._stops > 1 or time.monotonic() > until:
                for popen in running:
                    _signal(popen, signal.SIGKILL)
            time.sleep(0.1)


def say(text: str) -> None:
    """Print a line for whoever started this process; where it cannot be written, as on a full disk, it is lost."""
    with suppress(OSError):
        # Past Python's buffer: what is left in there would be written again as this process ends, and fail it.
        os.write(sys.stdout.fileno(), f"{printable(text)}\n".encode())


def _put_off(process: Process, now: float) -> None:
    """Have it wait before it is started again, twice as long as the last time if it ran only shortly."""
    ran_s = now - process.started_at
    process.delay_s = RETRY_BACKOFF_S if ran_s > _STABLE_S else min(2 * process.delay_s, _MAX_BACKOFF_S)
    process.start_after = now + process.delay_s


def _start(process: Process, log: IO[bytes] | None) -> subprocess.Popen[bytes]:
    """A child in a session of its own, so that Ctrl-C in the terminal reaches the supervisor alone."""
    parent = os.getpid()

    def end_with_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(
        process.command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=process.environment,
        pass_fds=process.files,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - the supervisor has no threads
    )


def _signal(popen: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if popen.poll() is None:
        popen.send_signal(number)


def _ending(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
