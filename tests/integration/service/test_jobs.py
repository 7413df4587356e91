"""Jobs over HTTP: submitted once, followed to the end, cancelled, listed."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter
from sqlalchemy import delete, event, func, select, update

import pared
from pared.state.events import add_events
from pared.state.queue import messages_waiting
from pared.state.tables import Job, Outbox, WorkerHeartbeat
from service.app import create_app
from service.routes import limits
from tests.integration.service.conftest import Api, serving
from tests.support.processes import wait_for

JOB_FIELDS = {
    *("id", "type", "status", "stage", "progress", "queue_position", "attempt", "sandbox", "created_at", "started_at"),
    *("finished_at", "pinned", "spec", "error", "result", "links", "waits_for"),
}


def test_a_submitted_job_is_described_in_full(api: Api):
    model = api.upload()
    answer = api.post("/v1/jobs", json={"type": "prune", "model": model["id"], "amount": 0.25})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["retry-after"] == "1"
    assert set(job) == JOB_FIELDS
    assert (job["status"], job["attempt"], job["error"], job["result"]) == ("queued", 0, None, None)
    assert job["progress"] == {"fraction": 0.0, "epoch": None, "epochs": None, "eta_s": None}
    assert job["spec"]["amount"] == 0.25
    assert job["spec"]["granularity"] == "channel"  # with the defaults that will be used
    assert job["queue_position"] >= 1
    assert job["created_at"].endswith("Z")


def test_a_job_is_dispatched_as_soon_as_it_is_stored(tmp_path: Path):
    with serving(tmp_path) as api:
        api.submit()
        wait_for(lambda: messages_waiting(queue=api.parts.queue) == 2, "inspection and job are dispatched")


def test_a_dead_broker_does_not_keep_jobs_out(tmp_path: Path):
    with serving(tmp_path, broker_url="redis://127.0.0.1:1/0") as api:
        began = time.monotonic()
        job = api.submit()
        assert time.monotonic() - began < 18
        assert api.get(job["links"]["self"]).json()["status"] == "queued"
        with api.parts.sessions() as session:
            assert session.scalar(select(func.count()).select_from(Outbox)) == 2
        ready = api.get("/readyz").json()
        assert (ready["checks"]["queue"]["status"], ready["checks"]["database"]["status"]) == ("failed", "ok")


def test_one_idempotency_key_makes_one_job(api: Api):
    spec = {"type": "prune", "model": api.upload()["id"], "amount": 0.5}
    key = {"idempotency-key": "7b1e"}
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: api.post("/v1/jobs", json=spec, headers=key), range(30)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    reordered = dict(reversed(spec.items()))
    assert api.post("/v1/jobs", json=reordered, headers=key).json()["id"] == answers[0].json()["id"]
    other = api.post("/v1/jobs", json=spec | {"amount": 0.6}, headers=key)
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-mismatch")
    assert api.post("/v1/jobs", json=spec, headers={"idempotency-key": "x" * 300}).status_code == 422


def test_jobs_are_listed_filtered_and_paged(tmp_path: Path):
    with serving(tmp_path) as api:
        model = api.upload()["id"]
        jobs = [api.submit(model=model)["id"] for _ in range(4)]
        spec = {"type": "distill", "teacher": model, "student": {"from_teacher": {"width": 0.5}}}
        distill = api.post("/v1/jobs", json=spec | {"dataset": "builtin:digits"}).json()["id"]
        api.finish(jobs[0])
        everything = api.get("/v1/jobs").json()
        assert [job["id"] for job in everything["data"]] == [distill, *reversed(jobs)]  # and no inspection
        assert (everything["has_more"], everything["next_cursor"]) == (False, None)
        first = api.get("/v1/jobs?limit=3").json()
        rest = api.get("/v1/jobs", params={"limit": 3, "after": first["next_cursor"]}).json()
        assert [job["id"] for job in first["data"] + rest["data"]] == [distill, *reversed(jobs)]
        assert [job["id"] for job in api.get("/v1/jobs?status=succeeded").json()["data"]] == [jobs[0]]
        assert [job["id"] for job in api.get("/v1/jobs?type=distill").json()["data"]] == [distill]
        positions = {job["id"]: job["queue_position"] for job in everything["data"]}
        assert positions[jobs[0]] is None
        assert [positions[one] for one in (*jobs[1:], distill)] == [1, 2, 3, 4]
        for query in ("status=odd", "type=inspect", "limit=0", "limit=101", "limit=x", "after=%00"):
            answer = api.get(f"/v1/jobs?{query}")
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["pointer"].startswith("/query/")


def test_a_long_poll_ends_with_the_job(api: Api):
    job = api.submit()
    threading.Timer(0.4, api.finish, [job["id"]]).start()
    began = time.monotonic()
    answer = api.get(job["links"]["self"], headers={"prefer": "respond-async, wait=20"})
    assert 0.3 < time.monotonic() - began < 18
    assert (answer.json()["status"], answer.json()["progress"]["fraction"]) == ("succeeded", 1.0)
    assert answer.headers["preference-applied"] == "wait=20"
    assert "retry-after" not in answer.headers


def test_a_long_poll_that_sees_no_end_answers_in_time(api: Api):
    job = api.submit()
    began = time.monotonic()
    answer = api.get(job["links"]["self"], headers={"prefer": "wait=1"})
    assert 0.9 < time.monotonic() - began < 30
    assert (answer.status_code, answer.headers["retry-after"]) == (200, "1")


def test_an_unchanged_job_is_not_sent_again_and_a_change_ends_the_wait(api: Api):
    job = api.submit()
    first = api.get(job["links"]["self"])
    known = {"if-none-match": first.headers["etag"]}
    assert api.get(job["links"]["self"], headers=known).status_code == 304
    threading.Timer(0.4, api.claim, [job["id"]]).start()
    answer = api.get(job["links"]["self"], headers=known | {"prefer": "wait=20"})
    assert (answer.status_code, answer.json()["status"]) == (200, "running")


def test_polls_lists_and_pages_of_many_at_once_show_each_job_as_it_is_now(api: Api):
    jobs = [api.submit(amount=0.3) for _ in range(6)]

    def shown(job: str) -> list[dict[str, Any]]:
        listed = next(each for each in api.get("/v1/jobs?limit=100").json()["data"] if each["id"] == job)
        return [api.get(f"/v1/jobs/{job}").json(), listed]

    api.finish(jobs[0]["id"], {"model.pt": b"x"})
    api.fail(jobs[1]["id"])
    api.claim(jobs[2]["id"])
    states = [shown(job["id"]) for job in jobs]
    assert all(polled == listed for polled, listed in states)
    assert [polled["status"] for polled, _ in states] == ["succeeded", "failed", "running", *["queued"] * 3]
    assert [polled["queue_position"] for polled, _ in states[3:]] == sorted(
        polled["queue_position"] for polled, _ in states[3:]
    )
    # Twice as it was before, and each time as it is now.
    for pinned, action in ((True, "pin"), (False, "unpin"), (True, "pin")):
        assert api.post(f"/v1/jobs/{jobs[0]['id']}/{action}").status_code == 204
        assert [each["pinned"] for each in shown(jobs[0]["id"])] == [pinned, pinned]
    with ThreadPoolExecutor(12) as pool:
        polled = list(pool.map(lambda number: api.get(f"/v1/jobs/{jobs[number % 6]['id']}").json()["id"], range(60)))
    assert polled == [jobs[number % 6]["id"] for number in range(60)]
    assert api.get("/v1/jobs/job_01K9Q5V7M3W8Z2X4Y6A0B1C2D3").status_code == 404


def test_what_is_answered_again_without_the_database_is_never_behind_it(api: Api):
    job = api.submit()
    path, stopped = job["links"]["self"], threading.Event()
    answered: Counter[bool] = Counter()

    def poll() -> None:
        while not stopped.is_set():
            answered[api.get(path).json()["pinned"]] += 1

    with ThreadPoolExecutor(4) as pool:
        polling = [pool.submit(poll) for _ in range(3)]
        for number in range(100):
            with api.parts.sessions.begin() as session:
                session.execute(update(Job).where(Job.id == job["id"]).values(pinned_at=float(number % 2) or None))
            assert api.get(path).json()["pinned"] == bool(number % 2)
            listed = api.get("/v1/jobs?limit=1").json()["data"][0]
            assert (listed["id"], listed["pinned"]) == (job["id"], bool(number % 2))
        stopped.set()
        for each in polling:
            each.result()
    assert min(answered[False], answered[True]) > 10


def test_every_route_that_answers_known_callers_alone_says_so(api: Api, monkeypatch: pytest.MonkeyPatch):
    forgetful = APIRouter()
    forgetful.add_api_route("/v1/secret", lambda: "secret")
    monkeypatch.setattr(limits, "router", forgetful)
    with pytest.raises(TypeError, match="would answer anybody"):
        create_app(api.parts.settings)


def test_a_queued_job_is_canceled_and_an_ended_one_is_not(api: Api):
    job = api.submit()
    answer = api.post(job["links"]["cancel"])
    assert (answer.status_code, answer.json()["status"]) == (202, "canceled")
    again = api.post(job["links"]["cancel"])
    assert (again.status_code, again.json()["type"]) == (409, "/problems/conflict")
    done = api.submit()
    api.finish(done["id"])
    assert api.post(done["links"]["cancel"]).status_code == 409


def test_a_running_job_is_canceling_however_often_it_is_asked(api: Api):
    job = api.submit()
    api.claim(job["id"])
    for _ in range(3):
        answer = api.post(job["links"]["cancel"])
        assert (answer.status_code, answer.json()["status"]) == (202, "canceling")


def test_a_report_is_read_from_the_database_only_where_it_is_shown(api: Api):
    job = api.submit()
    api.finish(job["id"], {"model.pt": b"x"}, {"verdict": "2× smaller"})
    asked: list[str] = []

    def hear(_connection, _cursor, statement, *_more):
        asked.append(statement)

    event.listen(api.parts.sessions.engine, "before_cursor_execute", hear)
    try:
        assert api.get(job["links"]["self"]).json()["result"]["verdict"] == "2× smaller"
        assert api.get("/v1/jobs?limit=1").json()["data"][0]["result"]["verdict"] == "2× smaller"
        assert api.get(f"{job['links']['artifacts']}/model.pt").content == b"x"
        assert follow(api, job["links"]["events"])
    finally:
        event.remove(api.parts.sessions.engine, "before_cursor_execute", hear)
    assert any("jobs.owner" in statement for statement in asked)
    assert not [statement for statement in asked if re.search(r"(?<!JSON_EXTRACT\()jobs\.report", statement)]


def test_a_failed_job_carries_its_error(api: Api):
    job = api.submit()
    api.fail(job["id"])
    seen = api.get(job["links"]["self"]).json()
    assert seen["status"] == "failed"
    assert seen["error"] == {"code": "diverged", "title": "Training diverged", "detail": "The loss was NaN at epoch 2."}


def follow(api: Api, path: str, **options) -> list[tuple[str | None, str, str]]:
    """(id, event, data) of a stream read to its end."""
    events, fields = [], {}
    with api.stream("GET", path, **options) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                events.append((fields.get("id"), fields.get("event"), fields.get("data")))
                fields = {}
    return events


def test_events_are_followed_live_and_replayed(api: Api):
    job = api.submit()

    def work():
        with api.parts.sessions.begin() as session:
            add_events(session, job["id"], [("log", {"text": "1"}), ("metric", {"name": "loss", "value": 0.5})])
        api.finish(job["id"])

    threading.Timer(0.4, work).start()
    live = follow(api, job["links"]["events"])
    assert [event for _, event, _ in live] == ["status", "log", "metric", "status", "status", "done"]
    assert [number for number, _, _ in live] == [str(n) for n in range(1, 7)]
    assert '"succeeded"' in live[-1][2]
    assert follow(api, job["links"]["events"]) == live
    assert follow(api, job["links"]["events"], headers={"last-event-id": "4"}) == live[4:]
    assert follow(api, job["links"]["events"], params={"last_event_id": "4"}) == live[4:]
    assert follow(api, job["links"]["events"], headers={"last-event-id": "6"}) == []
    assert api.get(job["links"]["events"], headers={"last-event-id": "x"}).status_code == 422


def test_a_stream_of_more_events_than_a_page_is_whole(api: Api):
    job = api.submit()
    with api.parts.sessions.begin() as session:
        add_events(session, job["id"], [("log", {"text": str(n)}) for n in range(1200)])
    api.finish(job["id"])
    assert [int(number) for number, _, _ in follow(api, job["links"]["events"])] == list(range(1, 1205))


@pytest.mark.parametrize(
    "path", ["", "/events", "/report", "/report/metrics.csv", "/artifacts", "/artifacts/model.pt", "/cancel"]
)
def test_absent_jobs_and_inspections_are_not_found(api: Api, path: str):
    api.upload(b"inspected")
    with api.parts.sessions() as session:
        inspection = session.scalars(select(Job.id).where(Job.type == "inspect")).first()
    for job_id in ("job_" + "0" * 26, "mdl_" + "0" * 26, "x", inspection):
        answer = api.request("POST" if path == "/cancel" else "GET", f"/v1/jobs/{job_id}{path}")
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


def test_cuda_is_refused_with_advice_where_no_worker_has_it_and_waits_where_one_had(tmp_path: Path):
    with serving(tmp_path) as api:
        spec = {"type": "prune", "model": api.upload()["id"], "amount": 0.5}
        for path in ("/v1/jobs", "/v1/jobs:plan"):
            refused = api.post(path, json=spec | {"device": "cuda"})
            assert refused.status_code == 409, path
            problem = refused.json()
            assert problem["type"] == "/problems/device-unavailable"
            assert "pared worker" in problem["detail"]
            assert [error["pointer"] for error in problem["errors"]] == ["/device"]
        row = {"sandbox": "standard", "device": "1 CPU, H100", "devices": ["cpu", "cuda"]}
        with api.parts.sessions.begin() as session:
            session.add(WorkerHeartbeat(name="a", **row))
        headers = {"Idempotency-Key": "k"}
        job = api.post("/v1/jobs", json=spec | {"device": "cuda"}, headers=headers).json()
        assert (job["spec"]["device"], job["waits_for"]) == ("cuda", None)
        other = api.submit(model=spec["model"], device="cpu")
        assert job["queue_position"] == other["queue_position"] == 1
        with api.parts.sessions.begin() as session:
            session.execute(delete(WorkerHeartbeat))
        again = api.post("/v1/jobs", json=spec | {"device": "cuda"}, headers=headers)  # it is there already
        assert (again.status_code, again.json()["id"]) == (202, job["id"])
        waits = api.get(job["links"]["self"]).json()
        assert (waits["status"], "No worker with a GPU that works is alive" in waits["waits_for"]) == ("queued", True)
        assert "No worker that can run jobs is alive" in api.get(other["links"]["self"]).json()["waits_for"]
        with pared.Client(str(api.base_url)) as client:
            assert "No worker with a GPU" in str(client.jobs.get(job["id"]))
        api.post(job["links"]["cancel"])
        assert api.get(job["links"]["self"]).json()["waits_for"] is None
