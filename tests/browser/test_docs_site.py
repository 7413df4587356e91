"""The documentation as a site: all of it comes from its own folder, also where no server serves it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pared.error_help import error_help
from tests.support.browsing import NARROW, Visit

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.campaign  # building takes half a minute


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_nothing_is_asked_of_another_server(served: str, visiting: Callable[..., Visit], tmp_path: Path) -> None:
    visit = visiting(served)
    page = visit.page
    for path in (
        "/index.html",
        "/tutorial.html",
        "/reference/specs.html",
        "/reference/cli.html",
        "/decisions/index.html",
    ):
        page.goto(path)
        page.screenshot(path=str(tmp_path / f"{path.strip('/').replace('/', '-')}.png"))
    page.set_viewport_size(NARROW)
    page.goto("/tutorial.html")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    visit.check_requests()


@pytest.mark.parametrize("by", ["server", "file"])
def test_search_finds_the_page_of_an_error(
    by: str, site: Path, served: str, visiting: Callable[..., Visit], tmp_path: Path
) -> None:
    visit = visiting(served if by == "server" else site.as_uri())
    page = visit.page
    page.goto(f"{served}/index.html" if by == "server" else (site / "index.html").as_uri())
    page.get_by_role("textbox", name="Search").fill("idempotency-mismatch")
    page.locator(".md-search-result__link").first.wait_for()
    assert "problems/" in (page.locator(".md-search-result__link").first.get_attribute("href") or "")
    page.screenshot(path=str(tmp_path / "search.png"))
    visit.check_requests()


def test_each_error_has_its_page(site: Path) -> None:
    assert {path.stem for path in (site / "problems").glob("*.html")} == {*error_help(), "index"}
