"""A browser for all tests of the pages; where there is no Chromium they are skipped, and CI installs one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.browsing import CHROMIUM, Visit, started
from tests.support.stack import Stack


@pytest.fixture(scope="module")  # Playwright runs an event loop in this thread: no other file could run its own
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is on PATH")
    with started() as browser:
        yield browser


@pytest.fixture
def visiting(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens a window on a server: `visiting(url)`; closed after the test."""
    opened: list[Visit] = []

    def visit(url: str, **options: Any) -> Visit:
        opened.append(Visit(browser, url, **options))
        return opened[-1]

    yield visit
    for each in opened:
        each.close()


@pytest.fixture(scope="session", params=["embedded", pytest.param("on_servers", marks=pytest.mark.campaign)])
def either_stack(request: pytest.FixtureRequest) -> Stack:
    """Each backend in `make tables`; one of them in every run, of which `stack` tries the first journey on both."""
    started: Stack = request.getfixturevalue(request.param)
    return started
