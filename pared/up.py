"""Owns `pared up`: the API and a worker for each GPU, or one, as child processes, everything in one data directory."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from pared import gpus
from pared.state.data_folder import close_to_others
from pared.state.keys import any_works
from pared.state.session import make_engine, make_sessions, migrate
from pared.state.settings import Settings
from pared.state.tracing import require
from pared.supervisor import Process, Supervisor, say, worker_processes

READY_S = 90.0


def run(settings: Settings) -> int:
    """Serve until Ctrl-C or SIGTERM. Returns the exit code.

    A process that dies is started again. Nothing outlives the supervisor, even when it is killed. A first Ctrl-C lets
    a running job be handed back to the queue; a second one stops at once.
    """
    require(settings)
    directory = settings.data_dir.resolve()
    close_to_others(settings)
    (directory / "logs").mkdir(exist_ok=True)
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
        return _Up(settings, directory).run()


class _Up:
    def __init__(self, settings: Settings, directory: Path) -> None:
        self._settings = settings
        self._directory = directory
        environment = os.environ | {
            "PARED_DATA_DIR": str(directory),
            "PARED_HOST": settings.host,
            "PARED_PORT": str(settings.port),
        }
        logs = directory / "logs"
        api = Process("api", [sys.executable, "-P", "-m", "pared", "api"], environment, logs / "api.log")
        cards = [] if settings.device == "cpu" else gpus.visible()
        # One card needs no telling: a worker alone looks for it itself, and says what it finds.
        self._workers = worker_processes(
            cards if len(cards) > 1 else [], environment, len(os.sched_getaffinity(0)), logs
        )
        self._supervisor = Supervisor([api, *self._workers], settings.log_bytes)
        self._announced = False

    def run(self) -> int:
        say(f"pared is starting; its data is in {self._directory}")
        began = time.monotonic()
        self._supervisor.run(lambda: self._announce_when_ready(began))
        say("pared has stopped; nothing is lost, queued jobs go on at the next start")
        return 0

    def _announce_when_ready(self, began: float) -> None:
        """Print, once, what serves, or why nothing does."""
        if self._announced:
            return
        readiness = _readiness(self._settings) or {}
        workers = readiness.get("checks", {}).get("worker", {}).get("workers", [])
        waited = time.monotonic() - began > READY_S
        if len(workers) < len(self._workers) and not (waited and workers):
            if waited:
                self._announce(f"pared is not ready after {READY_S:.0f} s; see {self._directory / 'logs'}")
            return
        problems = [worker["device_problem"] for worker in workers if worker["device_problem"]]
        as_root = [worker["sandbox_problem"] for worker in workers if worker["sandbox_problem"]]
        if readiness.get("status") != "ready":
            if waited or not any(worker["devices"] for worker in workers):
                self._announce(f"pared is not ready: {readiness.get('detail')}")
            return
        address = f"http://{_bracketed(self._settings.host)}:{self._settings.port}"
        self._announce(
            f"pared is ready at {address}\n"
            f"  documentation  {address}/docs\n"
            f"  data           {self._directory}\n"
            f"  serving        {'; '.join(worker['device'] for worker in workers)}\n"
            + "".join(f"                 {problem}\n" for problem in problems)
            + f"  sandbox        {readiness['sandbox']}\n"
            + "".join(f"                 {problem}\n" for problem in dict.fromkeys(as_root))
            + "  Ctrl-C stops it; jobs go on at the next start."
        )

    def _announce(self, text: str) -> None:
        self._announced = True
        say(text)


def _readiness(settings: Settings) -> dict[str, Any] | None:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - compared, not bound
    connection = http.client.HTTPConnection(host, settings.port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        document = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return document if isinstance(document, dict) else None


def _has_keys(settings: Settings) -> bool:
    engine = make_engine(settings.effective_database_url)
    try:
        with make_sessions(engine)() as session:
            return any_works(session)
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


def _refuse(text: str) -> int:
    sys.stderr.write(f"pared: {text}\n")
    return 2
