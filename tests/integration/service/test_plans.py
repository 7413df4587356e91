"""Plans over HTTP: answered once a worker has made them, or where to look; never listed, and not for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from pared.specs import PlanSpec
from pared.state.events import add_event
from pared.state.sweep import Sweep
from pared.state.tables import Job, Outbox, db_now
from service.openapi import PLAN, PLAN_BODY
from tests.integration.service.conftest import Api, serving
from tests.support.processes import wait_for


def post(api: Api, prefer: str | None = None, **fields: Any) -> httpx.Response:
    spec = {"type": "prune", "model": fields.pop("model", None) or api.upload()["id"], "amount": 0.5, **fields}
    return api.post("/v1/jobs:plan", json=spec, headers={"prefer": prefer} if prefer else {})


def newest(api: Api) -> Job | None:
    with api.parts.sessions() as session:
        return session.scalar(select(Job).where(Job.type == "plan").order_by(Job.id.desc()).limit(1))


def as_a_worker_would(api: Api, act: Callable[[str], None]) -> threading.Thread:
    """Act on the next plan that is asked for."""
    last = newest(api)

    def asked_for() -> Job | None:
        found = newest(api)
        return found if found and (last is None or found.id != last.id) else None

    thread = threading.Thread(target=lambda: act(wait_for(asked_for, "a plan was asked for").id))
    thread.start()
    return thread


def test_a_plan_is_answered_once_it_is_made(api: Api):
    model = api.upload()["id"]
    worker = as_a_worker_would(api, lambda plan_id: api.finish(plan_id, report=PLAN))
    answer = post(api, model=model)
    worker.join()
    assert (answer.status_code, answer.json()) == (200, PLAN)
    job = newest(api)
    assert (job.spec["type"], job.spec["job"]["type"], job.spec["job"]["model"]) == ("plan", "prune", model)
    again = api.get(f"/v1/plans/{job.id}")
    assert (again.status_code, again.json()) == (200, PLAN)


def test_a_plan_that_is_not_made_in_time_says_where_it_will_be(api: Api):
    began = time.monotonic()
    answer = post(api, prefer="wait=1")
    assert 0.9 < time.monotonic() - began < 30
    pending = answer.json()
    assert (answer.status_code, pending["status"], answer.headers["retry-after"]) == (202, "queued", "1")
    assert answer.headers["preference-applied"] == "wait=1"
    location = answer.headers["location"]
    assert location == pending["links"]["self"] == f"/v1/plans/{pending['id']}"
    assert api.get(location).status_code == 202
    threading.Timer(0.3, api.finish, [pending["id"]], {"report": PLAN}).start()
    made = api.get(location, headers={"prefer": "wait=10"})
    assert (made.status_code, made.json()) == (200, PLAN)


def test_what_a_plan_fails_with_is_its_answer(api: Api):
    worker = as_a_worker_would(api, api.fail)
    answer = post(api)
    worker.join()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/diverged")
    assert answer.json()["detail"] == "The loss was NaN at epoch 2."


def test_plans_are_no_jobs(api: Api):
    plan_id = post(api, prefer="wait=0").json()["id"]
    assert plan_id not in [job["id"] for job in api.get("/v1/jobs?limit=100").json()["data"]]
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/events"), ("GET", "/report")):
        assert api.request(method, f"/v1/jobs/{plan_id}{path}").status_code == 404
    job_id = api.submit()["id"]
    assert api.get(f"/v1/plans/{job_id}").status_code == 404
    assert api.get("/v1/jobs?type=plan").status_code == 422


@pytest.mark.parametrize(
    ("fields", "status", "pointer", "says"),
    [
        ({"amount": 2}, 422, "/amount", "above 0 and below 1"),
        ({"amuont": 0.5}, 422, "/amuont", "did you mean amount"),
        ({"type": "shrink"}, 422, "/type", "prune"),
        ({"model": "mdl_" + "0" * 26}, 404, "/model", "upload it first"),
    ],
)
def test_a_spec_that_is_no_job_is_no_plan(api: Api, fields: dict[str, Any], status: int, pointer: str, says: str):
    answer = post(api, **fields)
    assert answer.status_code == status
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert says in error["detail"]


def test_only_pruning_is_planned(api: Api):
    spec = {"type": "distill", "teacher": api.upload()["id"], "student": {"from_teacher": {"width": 0.5}}}
    answer = api.post("/v1/jobs:plan", json=spec | {"dataset": "builtin:digits"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/type")
    assert "Post the job itself" in answer.json()["detail"]


def test_the_examples_can_be_planned():
    for example in PLAN_BODY["requestBody"]["content"]["application/json"]["examples"].values():
        assert PlanSpec.model_validate({"type": "plan", "job": example["value"]})


@pytest.mark.parametrize(
    ("target", "says"), [({"latency": 0.5}, "measuring"), ({"max_accuracy_drop": 0.01}, "retrain")]
)
def test_what_only_the_work_itself_tells_is_not_planned(api: Api, target: dict[str, float], says: str):
    answer = post(api, dataset="builtin:digits", amount=None, target={"params": 0.5, **target})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/target"
    assert says in error["detail"]
    assert "post the job itself" in error["detail"]


def test_no_more_than_so_many_plans_wait(tmp_path: Path):
    with serving(tmp_path) as api:
        model = api.upload()["id"]
        answers = [post(api, model=model, prefer="wait=0") for _ in range(api.parts.settings.max_waiting_plans + 1)]
        assert {answer.status_code for answer in answers[:-1]} == {202}
        assert (answers[-1].status_code, answers[-1].json()["type"]) == (429, "/problems/too-many-requests")
        assert answers[-1].headers["retry-after"]
        api.finish(answers[0].json()["id"], report=PLAN)
        assert post(api, model=model, prefer="wait=0").status_code == 202


def test_another_key_does_not_see_the_plan(guarded: Api):
    from pared.state.keys import create_key

    mine, other = (
        {"authorization": f"Bearer {create_key(guarded.parts.sessions, name)}"} for name in ("mine", "other")
    )
    model = guarded.post("/v1/models?filename=m.pt", content=b"a model", headers=mine).json()["id"]
    spec = {"type": "prune", "model": model, "amount": 0.5}
    answer = guarded.post("/v1/jobs:plan", json=spec, headers={**mine, "prefer": "wait=0"})
    assert answer.status_code == 202
    assert guarded.get(answer.headers["location"], headers=mine).status_code == 202
    assert guarded.get(answer.headers["location"], headers=other).status_code == 404
    assert guarded.post("/v1/jobs:plan", json=spec, headers=other).status_code == 404
    assert guarded.post("/v1/jobs:plan", json=spec).status_code == 401


def test_old_plans_are_swept_away_and_those_that_are_made_are_not(tmp_path: Path):
    with serving(tmp_path) as api:
        model = api.upload()["id"]
        waiting, made, running, fresh = (post(api, model=model, prefer="wait=0").json()["id"] for _ in range(4))
        api.finish(made, report=PLAN)
        api.claim(running)
        with api.parts.sessions.begin() as session:
            session.execute(update(Job).where(Job.id != fresh).values(created_at=db_now() - 4000))
            add_event(session, waiting, "log", {"text": "waits"})
        job_id = api.submit(model=model)["id"]
        Sweep(api.parts.sessions, api.parts.settings, store=api.parts.store, queue=api.parts.queue).collect()
        status = {one: api.get(f"/v1/plans/{one}").status_code for one in (waiting, made, running, fresh)}
        assert status == {waiting: 404, made: 404, running: 202, fresh: 202}
        assert "post the spec again" in api.get(f"/v1/plans/{made}").json()["detail"]
        assert api.get(f"/v1/jobs/{job_id}").status_code == 200
        with api.parts.sessions() as session:
            assert waiting not in session.scalars(select(Outbox.job_id)).all()
