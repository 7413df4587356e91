"""What the keys of an owner allow, what an owner may use up, and what is written down of what owners do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from pared.state.keys import add_key, create_key, list_keys
from pared.state.limits import LIMITS
from pared.state.owners import create_owner
from pared.state.settings import Settings
from pared.state.tables import ApiKey, AuditEntry
from tests.integration.service.conftest import Api, serving
from tests.support.processes import wait_for

LIMITED = {
    "max_waiting_jobs": 2,
    "max_waiting_plans": 1,
    "max_inspecting_uploads": 4,
    "max_stored_bytes": 1000,
    "max_requests_per_s": 50,
    "max_streams": 3,
}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("limited"), require_keys=True, **LIMITED) as api:
        yield api


def key_for(api: Api, scopes: Any = ("read", "submit"), owner: str | None = None) -> dict[str, str]:
    whose = owner or create_owner(api.parts.sessions, "somebody").id
    return {"x-api-key": add_key(api.parts.sessions, whose, "a key", scopes=scopes).secret}


def posted(api: Api, headers: dict[str, str], content: bytes = b"m", kind: str = "models") -> httpx.Response:
    return api.post(f"/v1/{kind}", content=content, headers=headers)


def over(answer: httpx.Response) -> str:
    """The limit that an answer says is reached."""
    assert answer.status_code == 429, answer.text
    assert answer.json()["type"] == "/problems/too-many-requests"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["detail"]
    return answer.json()["limit"]


# -- scopes and keys ------------------------------------------------------------------------------


def operations(api: Api) -> list[tuple[str, str]]:
    paths = api.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() if path.startswith("/v1/") for method in methods]


def test_every_operation_wants_the_scope_that_it_needs(guarded: Api):
    asked = operations(guarded)
    assert len(asked) >= 30
    for scope in ("read", "submit", "admin"):
        headers = key_for(guarded, [scope])
        for method, path in asked:
            needed = "admin" if path.startswith("/v1/admin/") else "read" if method in ("GET", "HEAD") else "submit"
            concrete = path.replace("{", "").replace("}", "")
            assert guarded.request(method, concrete).status_code == 401, (method, path)
            if needed != scope:
                answer = guarded.request(method, concrete, headers=headers)
                assert answer.status_code == 403, (method, path, scope)
                assert (method == "HEAD") or answer.json()["type"] == "/problems/scope-missing"
        assert guarded.get("/v1/limits", headers=headers).status_code == (200 if scope == "read" else 403)
    assert guarded.post("/v1/models", content=b"x", headers=key_for(guarded, ["submit"])).status_code == 201


def test_without_a_key_nobody_administers_a_server_that_asks_for_none(api: Api):
    answer = api.get("/v1/admin/owners")
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/scope-missing")


def test_an_administrator_makes_rotates_and_revokes_keys_and_it_is_written_down(guarded: Api):
    admin = key_for(guarded, ["admin"])
    owner = guarded.post("/v1/admin/owners?name=dan", headers=admin)
    assert owner.status_code == 201
    keys = f"/v1/admin/owners/{owner.json()['id']}/keys"
    made = guarded.post(f"{keys}?name=laptop&scope=read&scope=submit&valid_days=30", headers=admin)
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    first = {"x-api-key": made.json()["secret"]}
    model = posted(guarded, first, b"dan's").json()["id"]

    rotated = guarded.post(f"/v1/admin/keys/{made.json()['id']}/rotate", headers=admin)
    second = {"x-api-key": rotated.json()["secret"]}
    assert guarded.get(f"/v1/models/{model}", headers=first).status_code == 401
    assert guarded.get(f"/v1/models/{model}", headers=second).status_code == 200
    listed = guarded.get(keys, headers=admin)
    assert [(key["scopes"], key["revoked_at"] is None) for key in listed.json()["data"]] == [
        (["read", "submit"], True),
        (["read", "submit"], False),
    ]
    assert "secret" not in listed.text
    assert guarded.post(f"/v1/admin/owners/{owner.json()['id']}/disable", headers=admin).status_code == 204
    assert guarded.get(f"/v1/models/{model}", headers=second).status_code == 401
    assert guarded.post(f"/v1/admin/owners/{owner.json()['id']}/enable", headers=admin).status_code == 204
    assert guarded.post(f"/v1/admin/keys/{rotated.json()['id']}/revoke", headers=admin).status_code == 204
    assert guarded.post(f"/v1/admin/keys/{rotated.json()['id']}/revoke", headers=admin).status_code == 404
    assert guarded.post("/v1/admin/owners/local/disable", headers=admin).status_code == 409
    assert guarded.get("/v1/admin/owners/own_x/keys", headers=admin).status_code == 404
    assert "dan" in [owner["name"] for owner in guarded.get("/v1/admin/owners", headers=admin).json()["data"]]

    log = guarded.get("/v1/admin/audit?limit=50", headers=admin)
    mine = [row for row in log.json()["data"] if row["subject"] in (owner.json()["id"], model, made.json()["id"])]
    assert [row["action"] for row in mine] == [
        "owner.enable",
        "owner.disable",
        "key.rotate",
        "POST /v1/models",
        "key.create",
        "owner.create",
    ]
    assert mine[3]["key"] == made.json()["id"]
    assert len({row["request_id"] for row in mine}) == 6
    for secret in (made.json()["secret"], rotated.json()["secret"], admin["x-api-key"]):
        assert secret.removeprefix("pared_") not in log.text
    page = guarded.get("/v1/admin/audit?limit=2", headers=admin).json()
    following = guarded.get(f"/v1/admin/audit?limit=2&after={page['next_cursor']}", headers=admin).json()
    assert int(following["data"][0]["id"]) < int(page["data"][-1]["id"])


def test_every_request_that_changes_something_is_written_down_with_who_did_it(guarded: Api):
    owner = create_owner(guarded.parts.sessions, "eve").id
    headers = key_for(guarded, owner=owner)
    model = posted(guarded, headers, b"eve's").json()["id"]
    job = guarded.post("/v1/jobs", json={"type": "prune", "model": model, "amount": 0.5}, headers=headers).json()["id"]
    guarded.post(f"/v1/jobs/{job}/cancel", headers=headers)
    guarded.get("/v1/jobs", headers=headers)
    guarded.post("/v1/jobs", json={"type": "prune"}, headers=headers)
    guarded.delete(f"/v1/models/{model}", headers=headers)
    guarded.get("/v1/admin/audit", headers=headers)
    guarded.post("/v1/admin/owners?name=x", headers=headers)
    with guarded.parts.sessions() as session:
        rows = session.scalars(select(AuditEntry).where(AuditEntry.actor == owner).order_by(AuditEntry.id)).all()
        key = session.scalar(select(ApiKey.id).where(ApiKey.owner_id == owner))
    assert [(row.action, row.subject, row.detail["status"]) for row in rows] == [
        ("POST /v1/models", model, 201),
        ("POST /v1/jobs", job, 202),
        ("POST /v1/jobs/{job_id}/cancel", job, 202),
        ("DELETE /v1/models/{model_id}", model, 204),
        ("POST /v1/admin/owners", None, 403),
    ]
    assert {row.key_id for row in rows} == {key}


def test_streams_and_long_polls_of_a_revoked_key_end_within_seconds(guarded: Api):
    admin, owner = key_for(guarded, ["admin"]), create_owner(guarded.parts.sessions, "fay").id
    leaked, good = key_for(guarded, owner=owner), key_for(guarded, owner=owner)
    model = posted(guarded, leaked, b"fay's").json()["id"]
    job = guarded.post("/v1/jobs", json={"type": "prune", "model": model, "amount": 0.5}, headers=leaked).json()["id"]
    ended: dict[str, Any] = {}

    def follow(name: str, headers: dict[str, str], path: str, prefer: dict[str, str]) -> None:
        with httpx.Client(base_url=guarded.base_url, headers=headers, timeout=60) as client:
            ended[name] = client.get(path, headers=prefer)

    wait = {"prefer": "wait=50"}
    calls = [
        ("stream", leaked, f"/v1/jobs/{job}/events", {}),
        ("job", leaked, f"/v1/jobs/{job}", wait),
        ("model", leaked, f"/v1/models/{model}", wait),
        ("other key", good, f"/v1/jobs/{job}/events", {}),
    ]
    threads = [threading.Thread(target=follow, args=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(guarded.parts.admission._followers) >= 4, "four that follow")
    key = list_keys(guarded.parts.sessions, owner)[0].id
    began = time.monotonic()
    assert guarded.post(f"/v1/admin/keys/{key}/revoke", headers=admin).status_code == 204
    wait_for(lambda: len(ended) == 3, "three have ended")
    assert time.monotonic() - began < 10
    assert "other key" not in ended
    assert ended["stream"].status_code == 200
    assert "event: done" not in ended["stream"].text
    assert [ended[name].status_code for name in ("job", "model")] == [401, 401]
    guarded.post(f"/v1/jobs/{job}/cancel", headers=good)
    wait_for(lambda: "other key" in ended, "the other stream has ended")
    assert "event: done" in ended["other key"].text
    wait_for(lambda: not guarded.parts.admission._followers, "nobody follows")


# -- limits ---------------------------------------------------------------------------------------


def test_limits_are_shown_with_what_is_used(limited: Api):
    headers = key_for(limited)
    posted(limited, headers, b"12345")
    shown = {row["name"]: row for row in limited.get("/v1/limits", headers=headers).json()["limits"]}
    assert list(shown) == [limit.name for limit in LIMITS]
    assert {name: (row["limit"], row["used"]) for name, row in shown.items() if row["of"] == "owner"} == {
        "jobs_waiting": (2, 0),
        "jobs_running": (None, 0),
        "plans_waiting": (1, 0),
        "uploads_inspecting": (4, 1),
        "uploads_unfinished": (100, 0),
        "bytes_stored": (1000, 5),
        "webhooks": (20, 0),
        "requests_per_second": (50, None),
        "streams": (3, None),
    }
    for row in shown.values():
        assert row["setting"].removeprefix("PARED_").lower() in Settings.model_fields
        assert row["meaning"]


NO_LIMITS = {
    "port", "lease_s", "heartbeat_s", "sweep_s", "ring_again_s", "cancel_grace_s", "retention_days", "latency_s",
    "teacher_answers_bytes", "threads", "ranks", "log_bytes", "api_processes",
}  # fmt: skip
"""Numbers among the settings that refuse nothing to anybody."""


def test_every_setting_that_limits_anything_is_shown_and_explained():
    numbers = {
        name
        for name, field in Settings.model_fields.items()
        if field.annotation in (int, float, int | None, float | None)
    }
    assert {limit.setting for limit in LIMITS} == numbers - NO_LIMITS
    assert numbers >= NO_LIMITS
    told = (Path(__file__).parents[3] / "docs/operations.md").read_text()
    assert [limit.setting for limit in LIMITS if f"PARED_{limit.setting.upper()}" not in told] == []


def test_limits_of_an_owner_are_admitted_to_the_last_place_and_named_beyond_it(limited: Api):
    headers, other = key_for(limited), key_for(limited)
    models = [posted(limited, headers, content).json()["id"] for content in (b"a" * 300, b"b" * 300)]
    assert over(posted(limited, headers, b"c" * 500)) == "bytes_stored"
    spec = {"type": "prune", "model": models[0], "amount": 0.5}
    retried = headers | {"idempotency-key": "k"}
    job = limited.post("/v1/jobs", json=spec, headers=retried)
    assert limited.post("/v1/jobs", json=spec, headers=headers).status_code == 202
    assert over(limited.post("/v1/jobs", json=spec, headers=headers)) == "jobs_waiting"
    assert limited.post("/v1/jobs", json=spec, headers=retried).json()["id"] == job.json()["id"]
    limited.post(f"/v1/jobs/{job.json()['id']}/cancel", headers=headers)
    assert limited.post("/v1/jobs", json=spec, headers=headers).status_code == 202

    plan = headers | {"prefer": "wait=0"}
    assert limited.post("/v1/jobs:plan", json=spec, headers=plan).status_code == 202
    assert over(limited.post("/v1/jobs:plan", json=spec, headers=plan)) == "plans_waiting"

    for content in (b"d", b"e"):
        assert posted(limited, headers, content, "datasets").status_code == 201
    assert over(posted(limited, headers, b"f")) == "uploads_inspecting"
    assert posted(limited, other, b"f").status_code == 201


def test_bytes_of_deleted_uploads_count_apart_until_they_are_collected(limited: Api):
    headers = key_for(limited)
    for content in (b"1", b"2", b"3", b"4"):
        answer = posted(limited, headers, content * 600)
        if content == b"4":
            assert over(answer) == "bytes_stored"
        else:
            assert limited.delete(f"/v1/models/{answer.json()['id']}", headers=headers).status_code == 204


def test_an_upload_without_a_length_is_held_to_what_may_still_be_stored(limited: Api):
    """Were it let in, its bytes would fill the disk before anybody counted them."""
    headers = key_for(limited)
    answer = limited.post("/v1/models", content=iter([b"x" * 200] * 20), headers=headers)
    assert over(answer) == "bytes_stored"


def test_two_requests_at_once_do_not_both_get_the_last_place(limited: Api):
    headers = key_for(limited)
    model = posted(limited, headers, b"m").json()["id"]
    spec = {"type": "prune", "model": model, "amount": 0.5}
    answers: list[int] = []

    def post() -> None:
        answers.append(httpx.post(f"{limited.base_url}/v1/jobs", json=spec, headers=headers, timeout=60).status_code)

    threads = [threading.Thread(target=post) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [202] * 2 + [429] * 8


def test_streams_are_counted_while_they_are_open(limited: Api):
    headers = key_for(limited)
    model = posted(limited, headers, b"m").json()["id"]
    job = limited.post("/v1/jobs", json={"type": "prune", "model": model, "amount": 0.5}, headers=headers).json()["id"]
    stop = threading.Event()

    def follow() -> None:
        with httpx.stream("GET", f"{limited.base_url}/v1/jobs/{job}/events", headers=headers, timeout=60):
            stop.wait(60)

    threads = [threading.Thread(target=follow, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(limited.parts.admission._followers) == 3, "three streams are open")
    assert over(limited.get(f"/v1/jobs/{job}/events", headers=headers)) == "streams"
    assert over(limited.get(f"/v1/jobs/{job}", headers=headers | {"prefer": "wait=5"})) == "streams"
    assert limited.get(f"/v1/jobs/{job}", headers=headers).status_code == 200
    stop.set()
    wait_for(lambda: not limited.parts.admission._followers, "they are closed")


def test_requests_beyond_the_rate_are_refused_for_this_owner_alone(tmp_path: Path):
    with serving(tmp_path, max_requests_per_s=0.5) as api:
        answers = [api.get("/v1/limits") for _ in range(12)]
        assert [answer.status_code for answer in answers[:10]] == [200] * 10
        assert over(answers[-1]) == "requests_per_second"
        headers = {"x-api-key": create_key(api.parts.sessions, "other")}
        assert api.get("/v1/limits", headers=headers).status_code == 200
        assert api.get("/healthz").status_code == 200
