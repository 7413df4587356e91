"""How fast and how light the pages are with 10,000 jobs, a model of 1,000 layers and jobs of 1,000 epochs.

A real API serves rows that are written into its database; a real Chromium opens each page with nothing in its cache.
Run it with `make bench-pages`.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chromium import opened
from playwright.sync_api import CDPSession, Page
from results import machine, table, write_section
from sqlalchemy import insert
from sqlalchemy.orm import Session
from upload import running_api

from pared.state.owners import LOCAL_OWNER
from pared.state.session import make_engine, make_sessions
from pared.state.settings import Settings
from pared.state.tables import Job, JobEvent, Model, new_id

sys.path.append(str(Path(__file__).parents[1]))  # a script finds only what is beside it
from tests.support.inspections import inspection, layers

REPORT = Path(__file__).parents[1] / "tests/support/reports/search.json"
JOBS, LAYERS, EPOCHS = 10_000, 1_000, 1_000
ROUNDS = 3
MOST_PAINT_MS, MOST_TASK_MS, MOST_BYTES = 300, 50, 300_000
OBSERVE = """
window.longTasks = [];
new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map((task) => task.duration)))
  .observe({ type: "longtask" });
"""
LOOK = """() => {
  const [page] = performance.getEntriesByType("navigation");
  const loaded = [page, ...performance.getEntriesByType("resource")];
  return {
    server: page.responseStart - page.requestStart,
    paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null,
    bytes: loaded.reduce((sum, each) => sum + each.transferSize, 0),
    height: document.documentElement.scrollHeight,
  };
}"""


@dataclass(frozen=True)
class Seen:
    """One opening of a page."""

    server_ms: float
    paint_ms: float
    browser_cpu_ms: float
    bytes: int
    longest_task_ms: float


def main() -> None:
    """Fill a database, open each page, print, and write the section `pages`."""
    with tempfile.TemporaryDirectory(prefix="pared-pages-") as name, running_api(Path(name)) as (port, _):
        settings = Settings(data_dir=Path(name) / "data")
        sessions = make_sessions(make_engine(settings.effective_database_url))
        with sessions.begin() as session:
            pages = filled(session)
        load, rows = os.getloadavg()[0], []
        with opened(f"http://127.0.0.1:{port}", 1280, 900) as page:
            page.add_init_script(OBSERVE)
            visited(page, "/")  # what a browser and an API load first is not a page's
            for label, path in pages.items():
                rows.append(row_of(label, [visited(page, path) for _ in range(ROUNDS)]))
                print(*rows[-1], sep="\t", flush=True)
    header = [
        "page",
        "server, ms",
        "first paint, ms",
        "its thread, CPU ms",
        "longest task while scrolling, ms",
        "sent, KB",
        "missed",
    ]
    text = (
        f"## Pages\n\n{table(header, rows)}\n\n"
        f"{JOBS:,} jobs on SQLite, a model of {LAYERS:,} layers, jobs of {EPOCHS:,} epochs. Each page is opened "
        f"{ROUNDS} times from another, by a Chromium that has nothing in its cache: the median, and in brackets the "
        "least. The server's time is from the request to the first byte. CPU time is that of the page's thread in the "
        "browser for the whole page; it hardly depends on what else runs. Of tasks, which a browser names from 50 ms "
        f"on, it is the longest. The goals are a first paint within {MOST_PAINT_MS} ms, no task over {MOST_TASK_MS} ms "
        f"while a page is scrolled through, and {MOST_BYTES // 1000} KB with styles and scripts. {machine()}, shared "
        f"with other work: the load was {load:.0f} when it began, and all of the other times are longer by it. The "
        "first row is what a page without any data takes here.\n\n`make bench-pages`"
    )
    write_section("pages", text)


def row_of(label: str, seen: list[Seen]) -> list[str]:
    """A row of the table."""
    server, paint = [each.server_ms for each in seen], [each.paint_ms for each in seen]
    task, sent = max(each.longest_task_ms for each in seen), max(each.bytes for each in seen)
    goals = {
        "paint": statistics.median(paint) <= MOST_PAINT_MS,
        "scrolling": task <= MOST_TASK_MS,
        "bytes": sent <= MOST_BYTES,
    }
    missed = ", ".join(name for name, met in goals.items() if not met)
    cpu = [each.browser_cpu_ms for each in seen]
    shown = [f"{statistics.median(each):.0f} ({min(each):.0f})" for each in (server, paint, cpu)]
    return [label, *shown, f"{task:.0f}" if task else "none", f"{sent / 1000:.0f}", missed or "nothing"]


def visited(page: Page, path: str) -> Seen:
    """Open the page with nothing in the cache, look, and scroll through it."""
    page.goto("/problems")
    browser = page.context.new_cdp_session(page)
    browser.send("Network.clearBrowserCache")
    browser.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = cpu_s(browser)
    answer = page.goto(path)
    if answer is None or answer.status != 200:
        raise RuntimeError(f"{path} was answered {answer and answer.status}")
    page.wait_for_timeout(300)
    taken = 1000 * (cpu_s(browser) - before)
    browser.detach()
    found = page.evaluate(LOOK)
    return Seen(found["server"], found["paint"], taken, found["bytes"], longest_task(page, found["height"]))


def cpu_s(browser: CDPSession) -> float:
    """Seconds of a processor that the page's main thread has used for tasks."""
    metrics = {each["name"]: each["value"] for each in browser.send("Performance.getMetrics")["metrics"]}
    return float(metrics["TaskDuration"])


def longest_task(page: Page, height: int) -> float:
    """Of the tasks while the page is scrolled from its top to its end; 0 if none was long."""
    page.evaluate("window.longTasks.length = 0")
    page.mouse.move(640, 450)
    for _ in range(min(60, height // 400 + 1)):
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(50)
    page.wait_for_timeout(200)
    return float(page.evaluate("Math.max(0, ...window.longTasks)"))


def filled(session: Session) -> dict[str, str]:
    """Write the rows. Returns the path of each page, by what it shows."""
    models = [model(number) for number in range(100)]
    large = model(100, LAYERS)
    session.execute(insert(Model), [*models, large])
    report = json.loads(REPORT.read_text())
    small = [job(models[number % 100]["id"], number, report) for number in range(JOBS)]
    for first in range(0, JOBS, 500):
        session.execute(insert(Job), small[first : first + 500])
    ended = [job(large["id"], 0, long_report(report)) | {"status": "succeeded", "error": None} for _ in range(5)]
    running = job(large["id"], 1, None) | {
        "status": "running",
        "stage": "retrain",
        "outcome": None,
        "progress": {"fraction": 0.99, "epoch": EPOCHS, "epochs": EPOCHS, "eta_s": 5.0},
        "lease_owner": "worker",
        "lease_expires_at": 9e9,
        "attempt": 1,
    }
    session.execute(insert(Job), ended)
    session.execute(insert(Job), [running])
    session.execute(insert(JobEvent), [*events(running["id"]), *events(ended[0]["id"])])
    middle = small[JOBS // 2]["id"]
    compared = "&".join(f"job={each['id']}" for each in ended)
    return {
        "help with errors, without data": "/problems",
        "start": "/",
        "jobs": "/jobs",
        "jobs, from the middle on": f"/jobs?after={middle}",
        "jobs that failed": "/jobs?status=failed",
        "jobs of a model": f"/jobs?model={models[7]['id']}",
        "jobs by a text that none has": "/jobs?text=nothing+is+called+so",
        "models": "/models",
        "a model of 1,000 layers": f"/models/{large['id']}",
        "its layers, sorted": f"/models/{large['id']}?sort=macs&page=5",
        "a new job for it": f"/jobs/new?type=prune&model={large['id']}",
        "a running job, 1,000 epochs": f"/jobs/{running['id']}",
        "a job's result, 1,000 epochs and layers": f"/jobs/{ended[0]['id']}",
        "its log": f"/jobs/{ended[0]['id']}/log",
        "five such jobs compared": f"/jobs/compare?{compared}",
    }


def model(number: int, count: int = 4) -> dict[str, Any]:
    """A row of a model of so many layers, which was inspected."""
    return {
        "id": new_id("mdl"),
        "owner": LOCAL_OWNER,
        "filename": f"net_{number}.pt",
        "sha256": f"{number:064x}",
        "size_bytes": 1_000_000 + number,
        "format": "torchscript",
        "status": "ready",
        "inspection": inspection(*layers(count)),
    }


def job(model_id: str, number: int, report: dict[str, Any] | None) -> dict[str, Any]:
    """A row of a job that ended."""
    failed = number % 5 == 4
    error = {"code": "diverged", "title": "Training diverged", "detail": f"The loss was NaN at epoch {number}."}
    spec = {"type": "prune", "model": model_id, "dataset": "builtin:digits", "amount": 0.25 + number % 50 / 100}
    return {
        "id": new_id("job"),
        "owner": LOCAL_OWNER,
        "type": "prune",
        "status": "failed" if failed else "succeeded",
        "spec": spec,
        "error": error if failed else None,
        "report": None if failed else report,
        "outcome": None if failed or report is None else {"verdict": report["verdict"], "failed_outputs": []},
        "stage": None,
        "progress": None,
        "started_at": 1.79e9 + number,
        "finished_at": 1.79e9 + number + 60,
        "attempt": 1,
        "lease_owner": None,
        "lease_expires_at": None,
    }


def long_report(report: dict[str, Any]) -> dict[str, Any]:
    """The report with as many epochs and layers as the goals name."""
    long = copy.deepcopy(report)
    epoch, layer = long["history"][0], long["layers"][0]
    long["history"] = [
        epoch | {"epoch": number, "train_loss": 2 / number, "validation": 0.99 - 0.5 / number}
        for number in range(1, EPOCHS + 1)
    ]
    long["layers"] = [
        layer
        | {"name": f"features.{number}", "shape_before": [64, 64, 3, 3], "shape_after": [64 - number % 40, 64, 3, 3]}
        for number in range(LAYERS)
    ]
    return long


def events(job_id: str) -> list[dict[str, Any]]:
    """What a job tells of its epochs."""
    told: list[tuple[str, dict[str, Any]]] = [("status", {"status": "running", "stage": "retrain"})]
    for epoch in range(1, EPOCHS + 1):
        for name, value in (("train_loss", 2 / epoch), ("validation_accuracy", 0.99 - 0.5 / epoch)):
            told.append(("metric", {"name": name, "value": value, "step": epoch, "phase": "retrain"}))
        told.append(("log", {"text": f"retrain: epoch {epoch} of {EPOCHS}, loss {2 / epoch:.4g}"}))
    return [
        {"job_id": job_id, "seq": seq, "kind": kind, "data": data} for seq, (kind, data) in enumerate(told, start=1)
    ]


if __name__ == "__main__":
    main()
