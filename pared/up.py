"""Owns `pared up`: the API and one worker as child processes of one supervisor, everything in one data directory."""

from __future__ import annotations

import ctypes
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sqlalchemy import select

from pared.state.session import make_engine, make_sessions, migrate
from pared.state.settings import Settings
from pared.state.tables import ApiKey

READY_S = 90.0
STOP_S = 15.0
_CALM_S = 30.0  # a process that lived so long is started again at once
_MAX_DELAY_S = 10.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def run(settings: Settings) -> int:
    """Serve until Ctrl-C or SIGTERM. Returns the exit code.

    A process that dies is started again. Nothing outlives the supervisor, even when it is killed. A first Ctrl-C lets
    a running job be handed back to the queue; a second one stops at once.
    """
    directory = settings.data_dir.resolve()
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    with (directory / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _refuse(f"Another `pared up` already serves {directory}. Stop it, or give --data another directory.")
        migrate(settings)
        if not settings.loopback and settings.require_keys is not False and not _has_keys(settings):
            return _refuse(
                f"{settings.host} can be reached from other machines, and there are no API keys yet. Make one with "
                f"`PARED_DATA_DIR={directory} pared keys add NAME`, or listen on 127.0.0.1."
            )
        if taken := _port_taken(settings):
            return _refuse(f"Port {settings.port} on {settings.host} cannot be used: {taken}. Give --port another one.")
        return _Supervisor(settings, directory).run()


@dataclass
class _Process:
    """One child: its command, and when it may be started again."""

    name: str
    command: list[str]
    log: Path
    popen: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_after: float = 0.0
    delay_s: float = 0.5
    deaths: int = field(default=0)


class _Supervisor:
    def __init__(self, settings: Settings, directory: Path) -> None:
        self._settings = settings
        self._env = os.environ | {
            "PARED_DATA_DIR": str(directory),
            "PARED_HOST": settings.host,
            "PARED_PORT": str(settings.port),
        }
        self._directory = directory
        self._stops = 0
        self._wake = threading.Event()
        self._processes = [
            _Process(name, [sys.executable, "-P", "-m", "pared", name], directory / "logs" / f"{name}.log")
            for name in ("api", "worker")
        ]

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        _say(f"pared is starting; its data is in {self._directory}")
        told = False
        began = time.monotonic()
        try:
            while not self._stops:
                for process in self._processes:
                    self._keep_alive(process)
                if not told:
                    told = self._tell_when_ready(began)
                self._wake.wait(0.2)
        finally:
            self._end_all()
        _say("pared has stopped; nothing is lost, queued jobs go on at the next start")
        return 0

    def _stop(self, *_: Any) -> None:
        self._stops += 1
        self._wake.set()

    def _keep_alive(self, process: _Process) -> None:
        now = time.monotonic()
        if process.popen is not None:
            status = process.popen.poll()
            if status is None:
                return
            lived = now - process.started_at
            process.delay_s = 0.5 if lived > _CALM_S else min(2 * process.delay_s, _MAX_DELAY_S)
            process.start_after = now + process.delay_s
            process.popen = None
            _say(f"the {process.name} process ended ({_how(status)}) and is started again; see {process.log}")
        if now < process.start_after:
            return
        process.started_at = now
        with process.log.open("ab") as log:
            process.popen = _start(process.command, log, self._env)

    def _tell_when_ready(self, began: float) -> bool:
        found = _readiness(self._settings)
        if found is None or found.get("status") != "ready":
            if time.monotonic() - began > READY_S:
                _say(f"pared is not ready after {READY_S:.0f} s; see {self._directory / 'logs'}")
                return True
            return False
        workers = found["checks"]["worker"]["workers"]
        address = f"http://{_bracketed(self._settings.host)}:{self._settings.port}"
        _say(
            f"pared is ready at {address}\n"
            f"  documentation  {address}/docs\n"
            f"  data           {self._directory}\n"
            f"  serving        {', '.join(worker['device'] for worker in workers)}\n"
            f"  sandbox        {found['sandbox']}\n"
            "  Ctrl-C stops it; jobs go on at the next start."
        )
        return True

    def _end_all(self) -> None:
        """TERM to all, so that the worker hands its job back; KILL after a while, or at a second Ctrl-C."""
        self._stops = max(self._stops, 1)
        living = [process.popen for process in self._processes if process.popen is not None]
        for popen in living:
            _signal(popen, signal.SIGTERM)
        until = time.monotonic() + STOP_S
        while any(popen.poll() is None for popen in living):
            if self._stops > 1 or time.monotonic() > until:
                for popen in living:
                    _signal(popen, signal.SIGKILL)
            time.sleep(0.1)


def _start(command: list[str], log: IO[bytes], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A child in a session of its own, so that Ctrl-C in the terminal reaches the supervisor alone."""
    parent = os.getpid()

    def end_with_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=env,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - the supervisor has no threads
    )


def _signal(popen: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if popen.poll() is None:
        popen.send_signal(number)


def _readiness(settings: Settings) -> dict[str, Any] | None:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - compared, not bound
    connection = http.client.HTTPConnection(host, settings.port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        found = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return found if isinstance(found, dict) else None


def _has_keys(settings: Settings) -> bool:
    engine = make_engine(settings.effective_database_url)
    try:
        with make_sessions(engine)() as session:
            return session.scalar(select(ApiKey.id).where(ApiKey.revoked_at.is_(None)).limit(1)) is not None
    finally:
        engine.dispose()


def _port_taken(settings: Settings) -> str | None:
    """Why the port cannot be listened on, if it cannot."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _refuse(text: str) -> int:
    sys.stderr.write(f"pared: {text}\n")
    return 2
