"""A real server in this process, on SQLite, with hands to do what a worker would."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pared.state import lifecycle
from pared.state.logs import configure_logging
from pared.state.settings import Settings
from pared.state.tables import Artifact, Dataset, Model, new_id
from service.app import create_app
from service.dependencies import Parts
from service.server import Server, config_for
from tests.support.migrated import make_tables
from tests.support.processes import WITHOUT_TLS, wait_for
from tests.support.servers import free_port
from tests.support.smallest_report import smallest_report


class Api(httpx.Client):
    """A client of the server, with the server's parts at hand."""

    def __init__(self, parts: Parts, **options: Any) -> None:
        address = f"http://127.0.0.1:{parts.settings.port}"
        super().__init__(**{"base_url": address, "timeout": 30, "verify": WITHOUT_TLS} | options)
        self.parts = parts

    def upload(self, content: bytes = b"a model", filename: str = "m.pt", kind: str = "models") -> dict[str, Any]:
        answer = self.post(f"/v1/{kind}", params={"filename": filename}, content=content)
        assert answer.status_code in {200, 201}, answer.text
        return answer.json()

    def submit(self, **fields: Any) -> dict[str, Any]:
        spec = {"type": "prune", "model": fields.pop("model", None) or self.upload()["id"], "amount": 0.5} | fields
        answer = self.post("/v1/jobs", json=spec)
        assert answer.status_code == 202, answer.text
        return answer.json()

    # What a worker does.

    def claim(self, job_id: str) -> int:
        with self.parts.sessions.begin() as session:
            job = lifecycle.claim(session, job_id, "worker", 60.0, ["cpu"])
            assert job is not None
            return job.fence

    def finish(self, job_id: str, files: dict[str, bytes] | None = None, report: Any = None) -> None:
        self.finish_claimed(job_id, self.claim(job_id), files, report)

    def finish_claimed(
        self, job_id: str, fence: int, files: dict[str, bytes] | None = None, report: Any = None
    ) -> None:
        with self.parts.sessions.begin() as session:
            for name, content in (files or {}).items():
                stored = self.parts.store.put([content], key=f"{job_id}/{fence}/{new_id('art')}")
                session.add(
                    Artifact(
                        id=new_id("art"),
                        job_id=job_id,
                        name=name,
                        media_type="application/octet-stream",
                        object_key=stored.key,
                        sha256=stored.sha256,
                        size_bytes=stored.size_bytes,
                    )
                )
            report = report or smallest_report("smaller").model_dump(mode="json")
            assert lifecycle.succeed(session, job_id, fence, report)

    def fail(self, job_id: str) -> None:
        fence = self.claim(job_id)
        with self.parts.sessions.begin() as session:
            error = {"code": "diverged", "title": "Training diverged", "detail": "The loss was NaN at epoch 2."}
            assert lifecycle.fail(session, job_id, fence, error)

    def inspected(self, upload_id: str, **columns: Any) -> None:
        with self.parts.sessions.begin() as session:
            row = session.get(Model if upload_id.startswith("mdl") else Dataset, upload_id)
            for name, value in ({"status": "ready"} | columns).items():
                setattr(row, name, value)


configure_logging()


@contextlib.contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Api]:
    chosen = Settings(data_dir=folder, **{"port": free_port()} | settings)
    make_tables(chosen)
    app = create_app(chosen)
    server = Server(config_for(app, chosen, host="127.0.0.1", log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, "the server has started")
        with Api(app.state.parts) as api:
            yield api
    finally:
        server.should_exit = True
        thread.join(120)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("api")) as api:
        yield api


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server that needs keys."""
    with serving(tmp_path_factory.mktemp("guarded"), require_keys=True) as api:
        yield api
