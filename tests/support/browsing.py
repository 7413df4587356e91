"""A real browser: Chromium of this machine, headless, driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.base import AXE_SCRIPT, AxeResults
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.processes import PATIENCE_S

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NARROW, WIDE = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


@contextmanager
def started() -> Iterator[Browser]:
    """The browser."""
    with sync_playwright() as playwright:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu", *root])
        yield browser
        browser.close()


class Visit:
    """A window of its own on one server: what it asked for and what it complained about is written down."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        """Args: url: of the server. options: of `Browser.new_context`, such as `java_script_enabled=False`."""
        self.url = url
        self.context = browser.new_context(base_url=url, viewport=WIDE, reduced_motion="reduce", **options)
        self.context.set_default_timeout(PATIENCE_S * 1000 / 4)
        self.page: Page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)

    def _heard(self, message: Any) -> None:
        # That an answer was an error is what some tests are about; anything else is a fault of a page.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def check(self) -> None:
        """What holds on every page, as it is now: for anybody, on any screen, from this server alone.

        All rules are held against the light theme on a wide screen and the dark one on a narrow one; of a wide screen's
        dark theme its contrast is left, for no other rule knows of colours.
        """
        contrast = {"runOnly": ["color-contrast"]}
        for theme, size, rules in (("light", WIDE, {}), ("dark", NARROW, {}), ("dark", WIDE, contrast)):
            self.page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
            self.page.set_viewport_size(size)  # type: ignore[arg-type]
            self.check_rules(**rules)
            sideways = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert sideways <= 0, f"{self.page.url} scrolls sideways by {sideways} px at {size['width']} px"
        self.check_requests()

    def check_rules(self, **options: Any) -> None:
        """The rules of axe hold for the page as it is; options: of `axe.run`, such as `runOnly=["color-contrast"]`.

        To describe all that keeps to them, and to hand that over, takes twice as long as to try them. The script is
        given to a document once: given again, none of it is compiled.
        """
        if self.page.evaluate("typeof axe") == "undefined":
            self.page.evaluate(AXE_SCRIPT)
        asked = json.dumps(options | {"resultTypes": ["violations"]})
        found = AxeResults(self.page.evaluate(f"axe.run({asked}).then(({{ violations }}) => ({{ violations }}))"))
        assert found.violations_count == 0, found.generate_report()

    def check_requests(self) -> None:
        """Nothing was asked of another server, and the browser complained of nothing."""
        here = urlsplit(self.url).netloc
        elsewhere = [
            url for url in self.asked if urlsplit(url).netloc != here and not url.startswith(("data:", "blob:"))
        ]
        assert not elsewhere
        assert not self.complaints

    def close(self) -> None:
        """Close the window."""
        self.context.close()
