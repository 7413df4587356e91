"""Starts the API and workers by the commands of production, on both backends: embedded, and PostgreSQL with Redis."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.append(str(Path(__file__).parents[1]))  # a script finds only what is beside it
from tests.support.processes import WITHOUT_TLS, Process, Processes, wait_for
from tests.support.servers import Servers, free_port

BACKENDS = {"embedded": "SQLite and files", "servers": "PostgreSQL and Redis"}
"""The name of each, and what it keeps its state in."""
ENDED = ("succeeded", "failed", "canceled")
WORK = Path(__file__).parents[1] / "build/service-jobs"
"""Where what is trained beforehand stays."""
_COMMAND = [sys.executable, "-P", "-m", "pared"]  # not the script: a checkout that is on Python's path has none


class Service:
    """An API and its workers, which begin with nothing."""

    def __init__(
        self, folder: Path, processes: Processes, servers: Servers | None, workers: int, settings: dict[str, str]
    ) -> None:
        """Made by `running`. Args: servers: None for the embedded backend."""
        self.folder, self._processes = folder, processes
        self.backend = "servers" if servers else "embedded"
        port = free_port()
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PARED_")}
        self.environment = inherited | {"PARED_DATA_DIR": str(folder / "data"), "PARED_PORT": str(port)}
        if servers:
            self.environment |= {
                "PARED_DATABASE_URL": servers.new_database(),
                "PARED_BROKER_URL": servers.new_broker(),
            }
        self.environment |= settings
        self.http = httpx.Client(base_url=self.url, timeout=600, verify=WITHOUT_TLS, trust_env=False)
        migrated = self._start("migrate").popen.wait(120)
        if migrated:
            raise RuntimeError(f"pared migrate exited {migrated}; see {folder}")
        self.api = self._start("api")
        self.workers = [self.start_worker(f"worker{number}") for number in range(workers)]
        wait_for(lambda: self._is_ready(workers), f"the service in {folder} is ready")

    def start_worker(self, name: str) -> Process:
        """Start one more worker, which is not waited for."""
        return self._start("worker", name)

    def stop(self) -> None:
        """End all of it."""
        self.http.close()
        for process in [*self.workers, self.api]:
            if process.alive:
                process.popen.send_signal(signal.SIGTERM)
        for process in [*self.workers, self.api]:
            process.popen.wait(60)

    def upload(self, kind: str, path: Path) -> str:
        """The id of an upload that has been inspected; `kind` is models or datasets."""
        with path.open("rb") as file:
            answer = self.http.post(f"/v1/{kind}", params={"filename": path.name}, content=file)
        upload = answer.raise_for_status().json()["id"]
        while (row := self.waited(f"/v1/{kind}/{upload}"))["status"] == "inspecting":
            pass
        if row["status"] != "ready":
            raise RuntimeError(f"{path.name}: {row}")
        return str(upload)

    def waited(self, path: str) -> dict[str, Any]:
        """GET a JSON object by a long poll."""
        answer = self.http.get(path, headers={"Prefer": "wait=30"})
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def submit(self, spec: dict[str, Any]) -> str:
        """The id of a new job."""
        return str(self.http.post("/v1/jobs", json=spec).raise_for_status().json()["id"])

    def ended(self, job: str) -> dict[str, Any]:
        """The job, once it has succeeded."""
        while (row := self.waited(f"/v1/jobs/{job}"))["status"] not in ENDED:
            pass
        if row["status"] != "succeeded":
            raise RuntimeError(f"{job}: {row}")
        return row

    def _start(self, command: str, name: str | None = None) -> Process:
        name = name or command
        log = self.folder / f"{name}.log"
        return self._processes.start([*_COMMAND, command], name=name, log=log, cwd=self.folder, env=self.environment)

    def _is_ready(self, workers: int) -> bool:
        try:
            if not workers:
                return self.http.get("/healthz").status_code == 200
            answer = self.http.get("/readyz")
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and len(answer.json()["checks"]["worker"]["workers"]) >= workers


@contextmanager
def backends(chosen: Sequence[str] = tuple(BACKENDS)) -> Iterator[Backends]:
    """The backends, whose servers start once and end with the block, with all that was started on them."""
    processes = Processes()
    folder = Path(tempfile.mkdtemp(prefix="pared-service-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user
    processes.remove_at_end(folder)
    try:
        yield Backends(folder, processes, chosen)
    finally:
        processes.close()


class Backends:
    """Where services are started."""

    def __init__(self, folder: Path, processes: Processes, chosen: Sequence[str]) -> None:
        """Made by `backends`."""
        self.folder, self.processes, self.chosen = folder, processes, chosen
        self._servers: Servers | None = None
        self._started = 0

    @contextmanager
    def running(self, backend: str, workers: int = 1, **settings: str) -> Iterator[Service]:
        """A service on this backend, with other settings by their variables, until the block ends."""
        servers = self._running_servers() if backend == "servers" else None
        self._started += 1
        folder = self.folder / f"{self._started}-{backend}"
        folder.mkdir()
        service = Service(folder, self.processes, servers, workers, settings)
        try:
            yield service
        finally:
            service.stop()
            shutil.rmtree(folder / "data")

    def server_processes(self, backend: str) -> list[psutil.Process]:
        """Of PostgreSQL, which has one for each connection; none for the embedded backend."""
        return self._running_servers().postgres.tree() if backend == "servers" else []

    def _running_servers(self) -> Servers:
        if self._servers is None:
            folder = self.folder / "servers"
            folder.mkdir(mode=0o755)
            self._servers = Servers(folder, self.processes)
        return self._servers


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Processor time that these have used, without what has ended."""
    used = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            used += sum(process.cpu_times()[:2])
    return used
