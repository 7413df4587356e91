"""A first result on the pages. Runs in a folder with digits_cnn.pt and digits.npz; PARED_URL names the service."""

import os
import shutil

from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def main(page: Page) -> None:
    """Two files are sent, a quarter of the parameters is asked for, and what comes is downloaded."""
    page.goto("/")
    page.set_input_files("#model-file", "digits_cnn.pt")
    page.get_by_role("button", name="Upload the model").click()
    page.get_by_role("link", name="Shrink this model").wait_for()
    page.goto("/")
    page.set_input_files("#dataset-file", "digits.npz")
    page.get_by_role("button", name="Upload the data").click()
    page.get_by_role("link", name="Use it in a job").wait_for()
    page.goto("/")
    page.get_by_role("link", name="Shrink it").click()
    page.locator("#f-target-file-bytes").fill("")
    page.locator("#f-target-params").fill("0.25")
    page.locator("#f-epochs").fill("3")
    page.get_by_role("button", name="Start the job").click()
    file = page.get_by_role("link", name="model.pt", exact=True)
    file.wait_for()
    with page.expect_download() as download:
        file.click()
    download.value.save_as("small.pt")


with sync_playwright() as playwright:
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu", *root])
    window = browser.new_page(base_url=os.environ["PARED_URL"])
    window.set_default_timeout(900_000)
    main(window)
    browser.close()
