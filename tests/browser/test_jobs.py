"""Pages about jobs: live while a job goes on, with its result, listed and compared; for whoever may see them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pared.state import lifecycle
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


def test_a_page_follows_its_job_from_the_queue_to_the_result(
    api: Api, visiting: Callable[..., Visit], tmp_path: Path
):
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
