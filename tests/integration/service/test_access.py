"""Who may do what: keys, owners, and web pages elsewhere."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pared.state.keys import create_key
from pared.state.settings import Settings
from tests.integration.service.conftest import Api, serving


@pytest.fixture(scope="module")
def keys(guarded: Api) -> dict[str, str]:
    return {name: create_key(guarded.parts.sessions, name) for name in ("mine", "other")}


@pytest.fixture(scope="module")
def things(guarded: Api, keys: dict[str, str]) -> dict[str, str]:
    headers = {"authorization": f"Bearer {keys['mine']}"}
    return {"model": guarded.post("/v1/models", content=b"m", headers=headers).json()["id"]}


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
    for address in ("203.0.113.9", "2001:db8::9", "unknown"):
        stranger = {"x-forwarded-for": address}
        assert api.get("/v1/models", headers=stranger).status_code == 401
        key = create_key(api.parts.sessions, "away")
        assert api.get("/v1/models", headers=stranger | {"x-api-key": key}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": "127.0.0.1"},  # what a client wrote, passed on by a proxy
        {"x-forwarded-for": "203.0.113.9, 127.0.0.1"},
        {"x-forwarded-proto": "https"},
        {"forwarded": "for=127.0.0.1"},
        {"via": "1.1 proxy"},
        {"x-real-ip": "127.0.0.1"},
        {"host": "pared.example", "x-forwarded-host": "pared.example"},
    ],
)
def test_what_a_proxy_passed_on_needs_a_key(api: Api, headers: dict[str, str]):
    assert api.get("/v1/models", headers=headers).status_code == 401
    key = create_key(api.parts.sessions, "through a proxy")
    assert api.get("/v1/models", headers=headers | {"x-api-key": key}).status_code == 200


def test_a_proxy_that_adds_no_header_is_told_by_its_version_of_http(api: Api):
    """As nginx does by default."""
    with socket.create_connection(("127.0.0.1", api.parts.settings.port)) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_another_name_of_this_server_needs_a_key(api: Api):
    away = {"host": "pared.example"}
    assert api.get("/v1/models", headers=away).status_code == 403
    assert api.get("/v1/models", headers=away | {"x-api-key": "pared_wrong"}).status_code == 401
    key = create_key(api.parts.sessions, "by name")
    assert api.get("/v1/models", headers=away | {"x-api-key": key}).status_code == 200


def test_a_trusted_proxy_says_who_is_on_this_machine(tmp_path: Path):
    with serving(tmp_path, trusted_proxies="127.0.0.1, 10.0.0.0/8") as api:
        for chain, status in [
            ("127.0.0.1", 200),
            ("::1, 10.1.2.3", 200),
            ("203.0.113.9", 401),
            ("127.0.0.1, 203.0.113.9", 401),
            ("127.0.0.1, 203.0.113.9, 10.1.2.3", 401),
            ("unknown", 401),
        ]:
            assert api.get("/v1/models", headers={"x-forwarded-for": chain}).status_code == status, chain
        assert api.get("/v1/models", headers={"x-real-ip": "127.0.0.1"}).status_code == 401


def test_a_proxy_that_is_no_address_is_refused_at_the_start():
    with pytest.raises(ValueError, match="nginx"):
        Settings(trusted_proxies="127.0.0.1, nginx")


def test_keys_that_were_turned_off_are_asked_of_nobody(tmp_path: Path):
    with serving(tmp_path, require_keys=False) as api:
        assert api.get("/v1/models", headers={"x-forwarded-for": "203.0.113.9"}).status_code == 200


def test_web_pages_elsewhere_cannot_use_a_server_without_keys(api: Api, guarded: Api):
    cross = {"sec-fetch-site": "cross-site"}
    assert api.post("/v1/models", content=b"x", headers=cross).json()["type"] == "/problems/forbidden"
    for headers in (
        {"sec-fetch-site": "same-site", "origin": "http://localhost:3000"},
        {"origin": "http://attacker.example"},
        {"origin": f"http://127.0.0.1:{api.parts.settings.port + 1}"},
        {"origin": "http://127.0.0.1"},
        {"origin": "null"},
        {"origin": "http://["},
    ):
        assert api.post("/v1/models", content=b"x", headers=headers).status_code == 403, headers
        assert api.delete("/v1/models/mdl_" + "0" * 26, headers=headers).status_code == 403, headers
    own = {"origin": f"http://127.0.0.1:{api.parts.settings.port}", "sec-fetch-site": "same-origin"}
    assert api.post("/v1/models", content=b"own page", headers=own).status_code == 201
    rebound = {"host": "attacker.example:8000"}
    assert api.get("/v1/models", headers=rebound).status_code == 403
    assert api.get("/v1/models", headers={"host": "localhost:1"}).status_code == 200
    assert api.post("/v1/models", content=b"x", headers={"sec-fetch-site": "same-origin"}).status_code == 201
    assert guarded.post("/v1/models", content=b"x", headers=cross | rebound).status_code == 401
