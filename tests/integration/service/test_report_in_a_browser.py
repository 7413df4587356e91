"""The page of a hostile report in a real browser: it has its style, runs nothing and asks for nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.service.conftest import Api

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAYLOAD = (
    "\"'></title></style><script>document.title = 'run'</script><svg onload=\"document.title = 'run'\"><img src=/v1/x>"
)
REPORT = Path(__file__).parents[2] / "support/reports/distill.json"


def browse(url: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), "--headless", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={folder}"]
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    return subprocess.run([*command, *root, *options, url], capture_output=True, text=True, timeout=120)


@pytest.mark.campaign
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on PATH")
def test_a_browser_shows_the_page_and_runs_nothing_of_it(api: Api, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    report = json.loads(REPORT.read_text())
    report["verdict"] = PAYLOAD
    for part in (*report["layers"], *report["history"]):
        part.update({name: PAYLOAD for name in ("name", "phase") if name in part})
    job = api.submit()
    api.finish(job["id"], report=report)
    url = str(api.base_url.join(job["links"]["report"]))
    capfd.readouterr()

    shown = browse(url, tmp_path / "profile", "--dump-dom")
    assert "<title>pared: distill report</title>" in shown.stdout, shown.stderr
    assert shown.stdout.count("<script>document") == 0
    assert "&lt;script&gt;document" in shown.stdout
    assert not re.search("CONSOLE|Content Security Policy", shown.stderr), shown.stderr
    printed = browse(url, tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path}/page.pdf")
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF"), printed.stderr
    assert re.search(rb"/MediaBox \[0 0 59[456]\S* 84[12]\S*\]", pdf)  # A4

    asked = [json.loads(line)["path"] for line in capfd.readouterr().out.splitlines() if '"event":"request"' in line]
    assert asked
    assert set(asked) == {job["links"]["report"]}
