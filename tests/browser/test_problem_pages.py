"""The page behind `type` of each error: it can be clicked, needs no key, and says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest

from pared.error_help import error_help
from tests.integration.service.conftest import Api, serving
from tests.support.browsing import Visit


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("guarded"), require_keys=True) as api:
        yield api


def test_an_error_leads_to_its_page_and_on_to_all(guarded: Api, visiting: Callable[..., Visit]) -> None:
    visit = visiting(str(guarded.base_url))
    page = visit.page
    page.goto("/nothing-here")
    visit.check()
    page.get_by_role("link", name="Why this comes").click()
    page.wait_for_url("**/problems/not-found")
    assert "pared jobs ls" in page.get_by_role("main").inner_text()
    visit.check()
    page.get_by_role("link", name="all errors").click()
    page.wait_for_url("**/problems")
    assert page.get_by_role("main").get_by_role("row").count() == len(error_help()) + page.get_by_role("table").count()
    visit.check()


def test_each_error_has_a_page_without_a_key(guarded: Api) -> None:
    for code, one in error_help().items():
        answer = guarded.get(f"/problems/{code}", headers={"Accept": "text/html"})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        assert one.title in answer.text
        assert "`" not in answer.text


@pytest.mark.parametrize("name", ["no-such", "<img src=x onerror=alert(1)>", "\x1b[31m", "x" * 9000, "..%2f..", "é"])
def test_an_unknown_error_is_said_to_be_unknown(guarded: Api, name: str) -> None:
    answer = guarded.get(f"/problems/{quote(name, safe='')}", headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert "<img" not in answer.text
    assert "\x1b" not in answer.text
    assert len(answer.text) < 5000
    document = guarded.get(f"/problems/{quote(name, safe='')}")
    assert (document.status_code, document.json()["type"]) == (404, "/problems/not-found")
