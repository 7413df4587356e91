"""Pages about jobs: live while a job goes on, with its result, listed and compared; for whoever may see them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pared.state import lifecycle
from pared.state.keys import add_key
from pared.state.owners import create_owner
from pared.state.tables import WorkerHeartbeat
from tests.integration.service.conftest import Api, serving
from tests.support.browsing import Visit

REPORTS = Path(__file__).parents[1] / "support/reports"
HOSTILE = "\"'><script>document.title = 'run'</script>\x1b[31m\u202e{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("api"), max_requests_per_s=0) as api:
        yield api


def report_of(name: str) -> dict[str, Any]:
    return json.loads((REPORTS / f"{name}.json").read_text())


def write(api: Api, job_id: str, fence: int, values: dict[str, Any], *events: tuple[str, dict[str, Any]]) -> None:
    """What a worker writes down while it holds a job."""
    with api.parts.sessions.begin() as session:
        assert lifecycle.advance(session, job_id, fence, values, events)  # type: ignore[arg-type]


def enter(api: Api, job_id: str, fence: int, stage: str) -> None:
    write(api, job_id, fence, {"stage": stage}, ("status", {"status": "running", "stage": stage}))


def epochs(first: int, last: int) -> list[tuple[str, dict[str, Any]]]:
    said: list[tuple[str, dict[str, Any]]] = []
    for epoch in range(first, last + 1):
        for name, value in (("train_loss", 2 / epoch), ("validation_accuracy", 0.98 - 0.3 / epoch)):
            said.append(("metric", {"name": name, "value": value, "step": epoch, "phase": "retrain"}))
        said.append(("log", {"text": f"retrain: epoch {epoch} of {last}, loss {2 / epoch:.4g}"}))
    return said


def submitted(api: Api, filename: str = "digits_cnn.pt", **fields: Any) -> str:
    model = api.upload(str(time.monotonic_ns()).encode(), filename)["id"]
    api.inspected(model)
    job_id: str = api.submit(model=model, dataset="builtin:digits", **fields)["id"]
    return job_id


def test_a_page_follows_its_job_from_the_queue_to_the_result(api: Api, visiting: Callable[..., Visit], tmp_path: Path):
    job_id = submitted(api)
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto(f"/jobs/{job_id}")
    assert page.get_by_text("It is next").is_visible()
    visit.check(tmp_path, "queued")
    visit.context.grant_permissions(["notifications"])
    page.evaluate("window.stays = true")

    fence = api.claim(job_id)
    enter(api, job_id, fence, "validate")
    enter(api, job_id, fence, "retrain")
    progress = {"fraction": 0.42, "epoch": 4, "epochs": 10, "eta_s": 75.0}
    write(api, job_id, fence, {"progress": progress}, ("progress", progress), *epochs(1, 4))
    page.get_by_text("epoch 4 of 10, about 1 min 15 s left").wait_for()
    page.get_by_role("img", name="validation accuracy").wait_for()
    assert page.title().startswith("42 % · prune of digits_cnn.pt")
    assert page.locator("[aria-current=step]").inner_text().startswith("▸ Train")
    visit.check(tmp_path, "running")

    api.finish_claimed(job_id, fence, {"model.pt": b"small"}, report_of("search"))
    page.get_by_role("heading", name="Files").wait_for()
    assert page.title().startswith("✓ Succeeded")
    assert page.evaluate("window.stays")
    visit.check(tmp_path, "succeeded")


def test_jobs_are_listed_filtered_and_compared(api: Api, visiting: Callable[..., Visit], tmp_path: Path):
    jobs = []
    for name in ("search", "weights", "distill"):
        jobs.append(submitted(api, f"net_{name}.pt", amount=0.3 + 0.1 * len(jobs)))
        api.finish(jobs[-1], report=report_of(name))
    failed = submitted(api, HOSTILE)
    api.fail(failed)
    visit = visiting(str(api.base_url))
    page = visit.page
    page.goto("/jobs")
    assert page.get_by_role("link", name="net_distill.pt").is_visible()
    visit.check(tmp_path, "jobs")
    page.get_by_label("State").select_option("failed")
    page.get_by_role("button", name="Show").click()
    assert page.locator("tbody tr").count() == 1
    assert "Training diverged" in page.locator("tbody").inner_text()
    page.get_by_role("link", name="All jobs").click()
    page.get_by_label("File name, id or error").fill("NET_w")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="net_weights.pt").wait_for()
    assert page.locator("tbody tr").count() == 1
    page.get_by_role("link", name="All jobs").click()
    for name in ("net_search.pt", "net_weights.pt", "net_distill.pt"):
        page.get_by_label(name).check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name="3 jobs side by side").wait_for()
    assert page.get_by_role("row", name="amount 0.5 0.4 0.3").is_visible()
    assert page.locator("figure svg a").count() == 3
    visit.check(tmp_path, "compare")


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/jobs/compare", 422, "Tick 2 to 5 jobs"),
        (f"/jobs/compare?job={'job_' + '0' * 26}&job=x", 404, "Job ids look like"),
        ("/jobs?status=done", 422, "is one of queued"),
        ("/jobs?text=%00", 422, "no name has"),
        ("/jobs?model=%25", 422, "the id of a model"),
        (f"/jobs/{'job_' + '0' * 26}", 404, "There is no job"),
        ("/jobs/%3Cscript%3E", 404, "Job ids look like"),
        (f"/jobs/{'job_' + '0' * 26}/live", 404, "There is no job"),
        (f"/jobs/{'job_' + '0' * 26}/log?before=0", 422, "The request is not valid"),
        ("/admin", 403, "pared keys add NAME --scope admin"),
    ],
)
def test_what_cannot_be_shown_is_a_page_that_says_why(api: Api, path: str, status: int, says: str):
    answer = api.get(path, headers={"Accept": "text/html"})
    assert answer.status_code == status
    assert says in answer.text
    assert answer.headers["content-type"].startswith("text/html")


def test_whoever_runs_the_service_sees_how_it_does(tmp_path: Path, visiting: Callable[..., Visit]):
    with serving(tmp_path / "data", require_keys=True, retention_days=30, max_stored_bytes=10**6) as api:
        sessions = api.parts.sessions
        owner = create_owner(sessions, "ann").id
        secret = add_key(sessions, owner, "browser", scopes=["read", "submit", "admin"]).secret
        add_key(sessions, owner, "old one", valid_s=3600)
        api.headers["X-API-Key"] = secret
        api.fail(submitted(api))
        api.claim(submitted(api))
        submitted(api)
        with sessions.begin() as session:
            session.add(WorkerHeartbeat(name="worker", sandbox="standard", device="cpu: 2 threads of an old one"))
        visit = visiting(str(api.base_url))
        page = visit.page
        page.goto("/sign-in?next=/admin")
        page.get_by_label("API key").fill(secret)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="The whole service").wait_for()
        assert "prune job_" in page.get_by_role("row", name="cpu: 2 threads").inner_text()
        assert page.get_by_role("row", name="diverged prune 1").is_visible()
        visit.check(tmp_path, "admin")
        page.get_by_role("link", name="Limits and keys").click()
        assert "this browser's" in page.get_by_role("row", name="browser").inner_text()
        assert page.get_by_text("30 days").is_visible()
        visit.check(tmp_path, "account")
