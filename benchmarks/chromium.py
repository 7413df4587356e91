"""A window of a real, headless Chromium on a service, for benchmarks of its pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_MS = 900_000


@contextmanager
def opened(url: str, width: int, height: int) -> Iterator[Page]:
    """The window, which has opened nothing yet."""
    with sync_playwright() as playwright:
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu", *root])
        size = {"width": width, "height": height}
        page = browser.new_page(base_url=url, viewport=size, reduced_motion="reduce", color_scheme="light")  # type: ignore[arg-type]
        page.set_default_timeout(PATIENCE_MS)
        yield page
        browser.close()
