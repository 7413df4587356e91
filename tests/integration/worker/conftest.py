"""A database, a store and a worker of each test's own; jobs are made as the API makes them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from pared.specs import InspectSpec, PlanSpec, PruneSpec
from pared.state.jobs import submit, submit_plan
from pared.state.lifecycle import create
from pared.state.objects import open_store
from pared.state.session import make_engine, make_sessions
from pared.state.settings import Settings
from pared.state.tables import Artifact, Job, JobEvent, Model, Outbox, new_id
from tests.support.migrated import make_tables
from worker import attempt, sandbox_probe
from worker.attempt_types import Worker
from worker.forkserver import ForkServer
from worker.sandbox import Confinement
from worker.shutdown import Shutdown

SUPPORT = Path(__file__).parents[2] / "support"
TINY = (sys.executable, "-P", str(SUPPORT / "tiny_child.py"))
RAW = (sys.executable, "-P", str(SUPPORT / "raw_child.py"))


@cache
def children(command: tuple[str, ...], confinement: Confinement) -> ForkServer:
    """One for all tests that want the same."""
    return ForkServer(command, confinement, threads=1)


@pytest.fixture(scope="session")
def confinement(tmp_path_factory) -> Confinement:
    """What this machine holds."""
    return sandbox_probe.probe(tmp_path_factory.mktemp("probe")).confinement


class Bench:
    """One worker without Celery, and what it works on."""

    def __init__(self, folder: Path, confinement: Confinement, **settings: Any) -> None:
        defaults = {
            "data_dir": folder / "data",
            "lease_s": 20.0,
            "heartbeat_s": 0.5,
            "sweep_s": 1.0,
            "cancel_grace_s": 1.0,
            "stall_s": 30.0,
            "memory_bytes": 2 * 2**30,
        }
        self.settings = Settings(**(defaults | settings))
        make_tables(self.settings)
        self.sessions = make_sessions(make_engine(self.settings.effective_database_url))
        self.store = open_store(self.settings)
        self.worker = Worker(
            settings=self.settings,
            sessions=self.sessions,
            store=self.store,
            name="bench",
            shutdown=Shutdown(),
            children=children(TINY, confinement),
        )

    def upload(self, content: bytes = b"a model") -> str:
        """A stored model, ready."""
        stored = self.store.put([content])
        model = Model(
            id=new_id("mdl"),
            owner="local",
            filename="m.pt",
            sha256=stored.sha256,
            size_bytes=len(content),
            status="ready",
        )
        with self.sessions.begin() as session:
            session.add(model)
        return model.id

    def submit(self, *behaviour: str, content: bytes = b"a model", **fields: Any) -> str:
        """A queued job."""
        job, _ = submit(self.sessions, "local", self._spec(*behaviour, content=content, **fields))
        return job.id

    def submit_plan(self, *behaviour: str) -> str:
        """A queued plan."""
        return submit_plan(self.sessions, "local", PlanSpec(type="plan", job=self._spec(*behaviour)))

    def submit_inspection(self, *behaviour: str) -> str:
        """A queued inspection of an upload that says what the tiny child is to do."""
        model_id = self.upload(" ".join(behaviour).encode())
        with self.sessions.begin() as session:
            session.execute(update(Model).where(Model.id == model_id).values(status="inspecting"))
            return create(session, "local", InspectSpec(type="inspect", subject=model_id)).id

    def _spec(self, *behaviour: str, content: bytes = b"a model", **fields: Any) -> PruneSpec:
        return PruneSpec(type="prune", model=self.upload(content), amount=0.5, include=list(behaviour), **fields)

    def run(
        self, job_id: str, command: tuple[str, ...] = TINY, confinement: Confinement | None = None, **changes: Any
    ) -> Job:
        """One attempt, in this process; the job afterwards."""
        changes["children"] = children(command, confinement or self.worker.confinement)
        attempt.run(replace(self.worker, **changes), job_id)
        return self.job(job_id)

    def start(self, job_id: str, **changes: Any) -> threading.Thread:
        """One attempt in a thread."""
        thread = threading.Thread(target=attempt.run, args=(replace(self.worker, **changes), job_id))
        thread.start()
        return thread

    def job(self, job_id: str) -> Job:
        with self.sessions() as session:
            return session.get_one(Job, job_id)

    def events(self, job_id: str, kind: str | None = None) -> list[JobEvent]:
        with self.sessions() as session:
            rows = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)).all()
        return [row for row in rows if kind in (None, row.kind)]

    def artifacts(self, job_id: str) -> list[Artifact]:
        with self.sessions() as session:
            return list(session.scalars(select(Artifact).where(Artifact.job_id == job_id)))

    def objects(self, prefix: str) -> list[str]:
        """Keys in the store that begin so."""
        return sorted(key for key in self.store.list_older_than(-1) if key.startswith(prefix))

    def write(self, statement: Any) -> int:
        with self.sessions.begin() as session:
            return session.execute(statement).rowcount


@pytest.fixture
def bench(tmp_path, confinement) -> Iterator[Bench]:
    made = Bench(tmp_path, confinement)
    yield made
    made.sessions.engine.dispose()


@pytest.fixture
def make_bench(tmp_path, confinement) -> Callable[..., Bench]:
    return lambda **settings: Bench(tmp_path, confinement, **settings)


__all__ = ["RAW", "TINY", "Bench", "Outbox", "children"]
