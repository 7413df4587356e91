"""A whole pared service of real processes, and the HTTP calls that tests make of it again and again."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import redis

from tests.support.forks import run_pared
from tests.support.processes import PATIENCE_S, WITHOUT_TLS, Process, Processes, environment, wait_for
from tests.support.servers import Servers, free_port

PARED = str(Path(sys.executable).with_name("pared"))
ENDED = ("succeeded", "failed", "canceled")

# Short, so that what a fault leaves behind is found in seconds.
QUICK = {
    "PARED_LEASE_S": "8",
    "PARED_HEARTBEAT_S": "1",
    "PARED_SWEEP_S": "2",
    "PARED_RING_AGAIN_S": "2",
    "PARED_CANCEL_GRACE_S": "2",
    "PARED_INSPECT_TIME_S": "60",
    "PARED_THREADS": "1",
}


class Stack:
    """Migrated database, API and workers, started by the same commands as in production.

    `embedded` is SQLite and the filesystem broker; with `servers`, PostgreSQL and Redis.
    """

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        servers: Servers | None = None,
        *,
        workers: int = 1,
        settings: dict[str, str] | None = None,
    ) -> None:
        """Start everything and wait until `/readyz` is 200.

        Args:
            folder: an empty folder for state and logs.
            processes: who starts and ends the processes.
            servers: None for the embedded backend.
            workers: worker processes to start.
            settings: more `PARED_…` environment variables, stronger than `QUICK`.
        """
        self.folder, self.processes = folder, processes
        self.data = folder / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        where = {"PARED_DATA_DIR": str(self.data), "PARED_PORT": str(self.port), "PARED_URL": self.url}
        if servers:
            where["PARED_DATABASE_URL"] = servers.new_database()
            where["PARED_BROKER_URL"] = servers.new_broker()
        self.env = environment(**QUICK, **where) | (settings or {})
        self.backend = "servers" if servers else "embedded"
        self._forked = "PYTHONPATH" not in self.env  # what is forked has loaded the packages of this repository
        self.workers: list[Process] = []
        self.http = httpx.Client(base_url=self.url, timeout=60, verify=WITHOUT_TLS)
        self.start(workers)
        self.wait_ready(need_worker=workers > 0)

    # -- processes ------------------------------------------------------------------------------

    def start(self, workers: int) -> None:
        """Make the tables, and start the API and so many workers."""
        self.run("migrate")
        self.api = self.start_api()
        for _ in range(workers):
            self.start_worker()

    def run(self, *arguments: str) -> str:
        """Run a `pared` command to its end, and return what it printed."""
        if self._forked:
            done = run_pared(arguments, env=self.env, cwd=self.folder)
        else:
            command = [PARED, *arguments]
            done = subprocess.run(command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"pared {' '.join(arguments)} exited {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def python(self, code: str, *arguments: str, limit_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run Python code in the environment of this stack's processes."""
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=limit_s)

    def start_api(self, command: list[str] | None = None) -> Process:
        """Start the API (again), by another command where one is given."""
        if command is None:
            self.api = self._start("api", "api")
        else:
            log = self.folder / "api.log"
            self.api = self.processes.start(command, name="api", log=log, cwd=self.folder, env=self.env)
        return self.api

    def start_worker(self, **settings: str) -> Process:
        """Start one more worker, with more settings where they are given: `memory_bytes="600000000"`."""
        named = {f"PARED_{name.upper()}": value for name, value in settings.items()}
        self.workers.append(self._start("worker", f"worker{len(self.workers)}", named))
        return self.workers[-1]

    def _start(self, command: str, name: str, settings: dict[str, str] | None = None) -> Process:
        log, where = self.folder / f"{name}.log", {"cwd": self.folder, "env": self.env | (settings or {})}
        if not self._forked:
            return self.processes.start([PARED, command], name=name, log=log, **where)
        return self.processes.fork("pared.cli", [command], name=name, log=log, **where)

    def wait_ready(self, *, need_worker: bool = True, limit_s: float = PATIENCE_S) -> None:
        """Wait until the service takes jobs (or, without a worker, until it answers at all)."""
        path = "/readyz" if need_worker else "/healthz"
        try:
            wait_for(lambda: self._status(path) == 200, f"{path} is 200", limit_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tails()}") from None

    def stop(self) -> None:
        """End the API and every worker at once."""
        for process in [self.api, *self.workers]:
            if process.alive:
                process.kill()
        self.http.close()

    def tails(self) -> str:
        """The end of every log."""
        return "\n".join(process.tail() for process in [self.api, *self.workers])

    def empty_broker(self) -> None:
        """Throw away every message that waits."""
        if self.backend == "servers":
            redis.Redis.from_url(self.env["PARED_BROKER_URL"]).flushdb()
        else:
            for message in (self.data / "broker").rglob("*.msg"):
                message.unlink(missing_ok=True)

    def _status(self, path: str) -> int | None:
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return None

    # -- calls ----------------------------------------------------------------------------------

    def post_model(self, content: bytes | Iterable[bytes], filename: str = "model.pt", **query: Any) -> httpx.Response:
        """`POST /v1/models` with a raw body."""
        return self.http.post("/v1/models", params=_query(filename, query), content=content)

    def post_dataset(self, content: bytes, filename: str = "data.npz") -> httpx.Response:
        """`POST /v1/datasets` with a raw body."""
        return self.http.post("/v1/datasets", params={"filename": filename}, content=content)

    def upload_model(self, content: bytes, filename: str = "model.pt", **query: Any) -> str:
        """Upload a model and return its id, without waiting for the inspection."""
        return str(_checked(self.post_model(content, filename, **query), 201, 200)["id"])

    def upload_dataset(self, content: bytes, filename: str = "data.npz") -> str:
        """Upload a data set and return its id."""
        return str(_checked(self.post_dataset(content, filename), 201, 200)["id"])

    def inspected(self, upload_id: str, limit_s: float = PATIENCE_S) -> dict[str, Any]:
        """The model or data set, once it was inspected."""
        kind = "models" if upload_id.startswith("mdl_") else "datasets"

        def look() -> dict[str, Any] | None:
            row = self._long_polled(f"/v1/{kind}/{upload_id}")
            return row if row["status"] != "inspecting" else None

        return self._patiently(look, limit_s, f"{upload_id} inspected")

    def submit(self, spec: dict[str, Any], **headers: str) -> str:
        """Post a job and return its id."""
        response = self.http.post("/v1/jobs", json=spec, headers={k.replace("_", "-"): v for k, v in headers.items()})
        return str(_checked(response, 202)["id"])

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """GET a JSON object."""
        return _checked(self.http.get(path, params=params), 200)

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as it is now."""
        return self.get(f"/v1/jobs/{job_id}")

    def ended(self, job_id: str, limit_s: float = PATIENCE_S) -> dict[str, Any]:
        """The job, once it ended."""

        def look() -> dict[str, Any] | None:
            job = self._long_polled(f"/v1/jobs/{job_id}")
            return job if job["status"] in ENDED else None

        return self._patiently(look, limit_s, f"{job_id} ended")

    def succeeded(self, job_id: str, limit_s: float = PATIENCE_S) -> dict[str, Any]:
        """The report of a job that must succeed."""
        job = self.ended(job_id, limit_s)
        assert job["status"] == "succeeded", f"{job['status']}: {job['error']}\n{self.tails()}"
        return self.report(job_id)

    def report(self, job_id: str) -> dict[str, Any]:
        """The report of an ended job."""
        return _checked(self.http.get(f"/v1/jobs/{job_id}/report", headers={"Accept": "application/json"}), 200)

    def artifacts(self, job_id: str) -> list[dict[str, Any]]:
        """The files that a job made."""
        listed: list[dict[str, Any]] = self.get(f"/v1/jobs/{job_id}/artifacts")["data"]
        return listed

    def download(self, job_id: str, name: str = "model.pt") -> bytes:
        """An artifact's bytes, checked against the digest that the service gives."""
        response = self.http.get(f"/v1/jobs/{job_id}/artifacts/{name}")
        assert response.status_code == 200, response.text
        sha256 = next(row["sha256"] for row in self.artifacts(job_id) if row["name"] == name)
        assert hashlib.sha256(response.content).hexdigest() == sha256
        return response.content

    def events(self, job_id: str, after: int | None = None, limit_s: float = PATIENCE_S) -> Iterator[dict[str, Any]]:
        """The event stream to its end: `{id, event, data}`, with `Last-Event-ID` where `after` is given."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        with self.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=limit_s) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            event: dict[str, Any] = {}
            for line in response.iter_lines():
                if not line:
                    if "event" in event:
                        yield event
                    event = {}
                elif not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    event[name] = int(value) if name == "id" else json.loads(value) if name == "data" else value

    def _long_polled(self, path: str) -> dict[str, Any]:
        """GET a JSON object that the service keeps back until what it is of has ended: asking often costs much more."""
        return _checked(self.http.get(path, headers={"Prefer": "wait=20"}), 200)

    def _patiently(self, look: Any, limit_s: float, what: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = wait_for(look, what, limit_s, every_s=0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tails()}") from None
        return found

    # -- the rows behind it ---------------------------------------------------------------------

    def rows(self, sql: str, **parameters: Any) -> list[Any]:
        """Rows of the stack's own database, by plain SQL."""
        from sqlalchemy import create_engine, text
        from sqlalchemy.pool import NullPool

        url = self.env.get("PARED_DATABASE_URL") or f"sqlite:///{self.data / 'pared.db'}"
        with create_engine(url, poolclass=NullPool).connect() as connection:
            return list(connection.execute(text(sql), parameters))

    def job_row(self, job_id: str) -> Any:
        """One row of `jobs`."""
        return self.rows("SELECT * FROM jobs WHERE id = :id", id=job_id)[0]


def new_stack(
    folder: Path, processes: Processes, servers: Servers | None = None, *, workers: int = 1, **settings: str
) -> Stack:
    """A `Stack` in a subfolder that is emptied first; settings as `lease_s="6"`."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    named = {f"PARED_{name.upper()}": value for name, value in settings.items()}
    return Stack(folder, processes, servers, workers=workers, settings=named)


def _query(filename: str, query: dict[str, Any]) -> dict[str, str]:
    return {"filename": filename} | {k: v if isinstance(v, str) else json.dumps(v) for k, v in query.items()}


def _checked(response: httpx.Response, *statuses: int) -> dict[str, Any]:
    assert response.status_code in statuses, f"{response.request.method} {response.request.url}: {response.text}"
    body: dict[str, Any] = response.json()
    return body
