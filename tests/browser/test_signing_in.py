"""Whoever needs a key is asked for it, once; no other site's page can use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pared.state.keys import add_key
from pared.state.owners import create_owner
from tests.integration.service.conftest import Api, serving
from tests.support.browsing import Visit


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("guarded"), require_keys=True) as api:
        yield api


def test_a_page_asks_for_a_key_and_comes_back(guarded: Api, visiting: Callable[..., Visit]):
    sessions = guarded.parts.sessions
    secret = add_key(sessions, create_owner(sessions, "ann").id, "browser").secret
    visit = visiting(str(guarded.base_url))
    page = visit.page
    page.goto("/account")
    assert page.url.endswith("/sign-in?next=%2Faccount")
    visit.check()
    page.get_by_label("API key").fill("pared_wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    assert "unknown or was revoked" in page.get_by_role("alert").inner_text()
    page.get_by_label("API key").fill(secret)
    page.keyboard.press("Enter")
    page.wait_for_url("**/account")
    [cookie] = visit.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    assert not visit.context.cookies()
    visit.check_requests()
