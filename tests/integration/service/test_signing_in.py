"""The cookie of a browser that has signed in: who gets it, where it goes, and what no other site can do with it."""

from __future__ import annotations

import pytest

from pared.state.keys import add_key, revoke_key
from pared.state.owners import create_owner
from service.dependencies import KEY_COOKIE
from tests.integration.service.conftest import Api


@pytest.fixture(scope="module")
def secret(guarded: Api) -> str:
    sessions = guarded.parts.sessions
    return add_key(sessions, create_owner(sessions, "a browser's").id, "browser").secret


def cookie(secret: str) -> dict[str, str]:
    return {"cookie": f"{KEY_COOKIE}={secret}"}


@pytest.mark.parametrize(("headers", "secure"), [({}, False), ({"x-forwarded-proto": "https"}, True)])
def test_the_cookie_is_for_this_server_alone(guarded: Api, secret: str, headers: dict[str, str], secure: bool):
    answer = guarded.post("/sign-in", data={"key": f" {secret}\n"}, headers=headers)
    given = answer.headers["set-cookie"].lower()
    assert answer.status_code == 303
    assert "httponly" in given
    assert "samesite=strict" in given
    assert ("secure" in given) == secure
    guarded.cookies.clear()


@pytest.mark.parametrize(
    ("asked", "goes"),
    [
        ("/jobs?type=prune", "/jobs?type=prune"),
        ("//evil.example/", "/"),
        ("https://evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("\t//evil.example", "/"),
        ("/jobs\r\nSet-Cookie: a=b", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
def test_it_leads_to_pages_of_this_server_alone(guarded: Api, secret: str, asked: str, goes: str):
    answer = guarded.post("/sign-in", data={"key": secret, "next": asked})
    assert answer.headers["location"] == goes
    guarded.cookies.clear()


def test_a_key_that_does_not_work_gets_none(guarded: Api):
    for key in ("", "pared_unknown", "é" * 500, "x" * 501):
        answer = guarded.post("/sign-in", data={"key": key})
        assert answer.status_code in {401, 422}
        assert "set-cookie" not in answer.headers


def test_the_api_takes_the_cookie_but_not_from_another_sites_page(guarded: Api, secret: str):
    assert guarded.get("/v1/jobs", headers=cookie(secret)).status_code == 200
    assert guarded.get("/v1/jobs", headers=cookie("pared_unknown")).status_code == 401
    job = {"type": "prune", "model": "mdl_01K9Q5V7M3W8Z2X4Y6A0B1C2D3", "amount": 0.5}
    for foreign in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        for path in ("/v1/jobs", "/jobs/new", "/sign-out"):
            refused = guarded.post(path, json=job, headers=cookie(secret) | foreign)
            assert refused.status_code == 403, (path, foreign)
    own = str(guarded.base_url).rstrip("/")
    assert guarded.post("/v1/jobs", json=job, headers=cookie(secret) | {"origin": own}).status_code == 404


def test_a_revoked_key_ends_what_the_browser_can_do(guarded: Api):
    sessions = guarded.parts.sessions
    key = add_key(sessions, create_owner(sessions, "for a while").id, "browser")
    page = {"accept": "text/html", **cookie(key.secret)}
    assert guarded.get("/jobs", headers=page).status_code == 200
    revoke_key(sessions, key.key.id)
    sent_away = guarded.get("/jobs", headers=page)
    assert (sent_away.status_code, sent_away.headers["location"]) == (303, "/sign-in?next=%2Fjobs")
