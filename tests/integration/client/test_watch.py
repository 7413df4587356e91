"""A job that is watched, and lists that are shown: in a terminal, in a notebook, and by the async client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import pared
from tests.support.notebooks import executed, html_of, of_cells
from tests.support.scripted_server import Answer, Asked, Scripted

JOB = {"id": "job_1", "type": "prune", "status": "queued", "queue_position": 1, "spec": {}, "progress": None}
DONE = JOB | {"status": "succeeded", "queue_position": None, "result": {"verdict": "4.2× fewer parameters"}}
FAILED = JOB | {"status": "failed", "error": {"code": "out-of-memory", "detail": "It needs 9 GB."}}
EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("status", {"status": "running", "stage": "validate"}),
    ("status", {"status": "running", "stage": "retrain"}),
    ("progress", {"fraction": 0.5, "epoch": 1, "epochs": 2, "eta_s": 3.0}),
    ("metric", {"name": "validation_accuracy", "value": 0.9, "step": 1, "phase": "retrain"}),
    ("metric", {"name": "validation_accuracy", "value": 0.95, "step": 2, "phase": "retrain"}),
    ("log", {"text": "epoch 2 of 2"}),
]


def stream(last: dict[str, Any]) -> bytes:
    events = [*EVENTS, ("done", {"status": last["status"], "error": last.get("error")})]
    lines = (
        f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for number, (kind, data) in enumerate(events, 1)
    )
    return "".join(lines).encode()


def served(last: dict[str, Any] = DONE) -> Scripted:
    """A server with one job, which is queued until its events were asked for, and two pages of jobs."""
    asked_for_events = []

    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("/events"):
            asked_for_events.append(asked)
            return Answer(body=stream(last), headers={"Content-Type": "text/event-stream"})
        if asked.path.endswith("/job_1"):
            return Answer(body=last if asked_for_events else JOB)
        if "after=" in asked.path:
            return Answer(body={"data": [JOB | {"id": "job_3"}], "has_more": False})
        return Answer(body={"data": [JOB, JOB | {"id": "job_2"}], "has_more": True, "next_cursor": "c"})

    return Scripted(answer)


@pytest.fixture
def client() -> Iterator[pared.Client]:
    with served() as server, pared.Client(server.url) as client:
        yield client


LINES = """\
job_1 prune queued, number 1 in the queue
job_1 prune running, validate
job_1 prune running, retrain
job_1 prune running, retrain 50%, epoch 1 of 2, about 3 s left
job_1 prune succeeded
"""


def test_outside_of_a_notebook_a_watched_job_prints_a_line_a_change(
    client: pared.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    job = client.jobs.get("job_1")
    assert job.watch() is job
    assert capsys.readouterr().out == LINES
    assert job.result == {"verdict": "4.2× fewer parameters"}


def test_a_watched_job_that_fails_raises(capsys: pytest.CaptureFixture[str]) -> None:
    with served(FAILED) as server, pared.Client(server.url) as client:
        job = client.jobs.get("job_1")
        with pytest.raises(pared.JobFailed, match="It needs 9 GB"):
            job.watch()
    assert capsys.readouterr().out.endswith("failed (out-of-memory): It needs 9 GB.\n")


def test_the_async_client_watches_too(capsys: pytest.CaptureFixture[str]) -> None:
    async def watch(url: str) -> str:
        async with pared.AsyncClient(url) as client:
            return (await (await client.jobs.get("job_1")).watch()).status

    with served() as server:
        assert anyio.run(watch, server.url) == "succeeded"
    assert capsys.readouterr().out == LINES


def test_a_list_is_shown_by_its_first_page_and_iterated_to_its_end(client: pared.Client) -> None:
    jobs = client.jobs.list(status="queued")
    assert next(jobs).id == "job_1"
    shown = jobs._repr_html_()
    assert "job_1" in shown
    assert "job_2" in shown
    assert "job_3" not in shown
    assert "The newest 2; iterate for all." in shown
    assert [job.id for job in jobs] == ["job_2", "job_3"]


def test_a_notebook_shows_a_watched_job_in_one_place(tmp_path: Path) -> None:
    code = "import pared; client = pared.Client(); job = client.jobs.get('job_1'); _ = job.watch()"
    with served() as server:
        notebook = executed(of_cells(code, "client.jobs.list()"), tmp_path, {"PARED_URL": server.url})
    watched, listed = html_of(notebook)
    assert len(notebook.cells[0].outputs) == 1
    assert ">succeeded</span>" in watched  # what was shown first said `queued`
    for said in ("validate", "retrain: validation accuracy", "4.2× fewer parameters"):
        assert said in watched
    assert "job_2" in listed
