"""Who may do what: keys, owners, and web pages elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from pared.state.keys import caller_of, create_key, revoke_key
from tests.integration.service.conftest import Api, serving

ROUTES = [
    ("POST", "/v1/models"),
    ("PUT", "/v1/models"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("DELETE", "/v1/models/{model}"),
    ("POST", "/v1/datasets"),
    ("GET", "/v1/datasets"),
    ("GET", "/v1/datasets/{dataset}"),
    ("GET", "/v1/datasets/builtin:digits"),
    ("DELETE", "/v1/datasets/{dataset}"),
    ("POST", "/v1/uploads"),
    ("GET", "/v1/uploads/{upload}"),
    ("HEAD", "/v1/uploads/{upload}"),
    ("PATCH", "/v1/uploads/{upload}"),
    ("DELETE", "/v1/uploads/{upload}"),
    ("HEAD", "/v1/objects/sha256:62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{job}"),
    ("POST", "/v1/jobs/{job}/cancel"),
    ("POST", "/v1/jobs/{job}/pin"),
    ("POST", "/v1/jobs/{job}/unpin"),
    ("GET", "/v1/jobs/{job}/events"),
    ("GET", "/v1/jobs/{job}/report"),
    ("GET", "/v1/jobs/{job}/report/metrics.csv"),
    ("GET", "/v1/jobs/{job}/artifacts"),
    ("GET", "/v1/jobs/{job}/artifacts/model.pt"),
    ("HEAD", "/v1/jobs/{job}/artifacts/model.pt"),
]


@pytest.fixture(scope="module")
def keys(guarded: Api) -> dict[str, str]:
    return {name: create_key(guarded.parts.sessions, name) for name in ("mine", "other", "revoked")}


@pytest.fixture(scope="module")
def things(guarded: Api, keys: dict[str, str]) -> dict[str, str]:
    revoke_key(guarded.parts.sessions, caller_of(guarded.parts.sessions, keys["revoked"]).key_id)
    headers = {"authorization": f"Bearer {keys['mine']}"}
    model = guarded.post("/v1/models", content=b"m", headers=headers).json()["id"]
    dataset = guarded.post("/v1/datasets", content=b"d", headers=headers).json()["id"]
    spec = {"type": "prune", "model": model, "amount": 0.5}
    job = guarded.post("/v1/jobs", json=spec, headers=headers).json()["id"]
    guarded.finish(job, {"model.pt": b"x"})
    metadata = {"Upload-Length": "5", "Upload-Metadata": "kind bW9kZWw="}
    upload = guarded.post("/v1/uploads", headers=headers | metadata).json()["id"]
    return {"model": model, "dataset": dataset, "job": job, "upload": upload}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_needs_a_key_that_works(guarded: Api, keys, things, method: str, path: str):
    for headers in ({}, {"authorization": "Bearer pared_wrong"}, {"x-api-key": keys["revoked"]}):
        answer = guarded.request(method, path.format(**things), headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            assert answer.json()["type"] == "/problems/unauthorized"


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if "{" in route[1]])
def test_another_owners_things_are_not_there(guarded: Api, keys, things, method: str, path: str):
    piece = {"content-type": "application/offset+octet-stream", "upload-offset": "0"} if method == "PATCH" else {}
    headers = {"x-api-key": keys["other"]} | piece
    assert guarded.request(method, path.format(**things), headers=headers).status_code == 404


def test_another_owners_uploads_are_neither_listed_nor_used(guarded: Api, keys, things):
    headers = {"x-api-key": keys["other"]}
    for kind in ("models", "datasets", "jobs"):
        assert guarded.get(f"/v1/{kind}", headers=headers).json()["data"] == []
    answer = guarded.post("/v1/jobs", json={"type": "prune", "model": things["model"], "amount": 0.5}, headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (404, "/model")
    same = guarded.post("/v1/models", content=b"m", headers=headers)
    assert (same.status_code, same.json()["id"] == things["model"]) == (201, False)


def test_both_headers_name_the_same_owner(guarded: Api, keys, things):
    for headers in ({"x-api-key": keys["mine"]}, {"authorization": f"bearer {keys['mine']}"}):
        assert guarded.get(f"/v1/models/{things['model']}", headers=headers).status_code == 200


def test_health_and_documentation_need_no_key(guarded: Api):
    for path in ("/healthz", "/docs", "/openapi.json", "/static/swagger-ui/swagger-ui.css"):
        assert guarded.get(path).status_code == 200
    assert guarded.get("/readyz").status_code == 503  # no worker


def test_on_loopback_no_key_is_needed_but_one_that_is_sent_is_checked(api: Api):
    assert api.get("/v1/models").status_code == 200
    assert api.get("/v1/models", headers={"x-api-key": "pared_wrong"}).status_code == 401
    key = create_key(api.parts.sessions, "mine")
    mine = api.post("/v1/models", content=b"of a key", headers={"x-api-key": key}).json()["id"]
    assert api.get(f"/v1/models/{mine}").status_code == 404


def test_who_asks_from_another_machine_needs_a_key_whatever_the_settings_call_the_host(api: Api):
    """As uvicorn sees a stranger when it was told to listen elsewhere, or when a proxy on this machine says so."""
    for address in ("203.0.113.9", "2001:db8::9", "unknown"):
        stranger = {"x-forwarded-for": address}
        assert api.get("/v1/models", headers=stranger).status_code == 401
        key = create_key(api.parts.sessions, "away")
        assert api.get("/v1/models", headers=stranger | {"x-api-key": key}).status_code == 200
    assert api.get("/v1/models", headers={"x-forwarded-for": "127.0.0.1"}).status_code == 200


def test_keys_that_were_turned_off_are_asked_of_nobody(tmp_path: Path):
    with serving(tmp_path, require_keys=False) as api:
        assert api.get("/v1/models", headers={"x-forwarded-for": "203.0.113.9"}).status_code == 200


def test_web_pages_elsewhere_cannot_use_a_server_without_keys(api: Api, guarded: Api):
    cross = {"sec-fetch-site": "cross-site"}
    assert api.post("/v1/models", content=b"x", headers=cross).json()["type"] == "/problems/forbidden"
    rebound = {"host": "attacker.example:8000"}
    assert api.get("/v1/models", headers=rebound).status_code == 403
    assert api.get("/v1/models", headers={"host": "localhost:1"}).status_code == 200
    assert api.post("/v1/models", content=b"x", headers={"sec-fetch-site": "same-origin"}).status_code == 201
    assert guarded.post("/v1/models", content=b"x", headers=cross | rebound).status_code == 401
