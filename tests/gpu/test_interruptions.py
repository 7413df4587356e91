"""Jobs that are interrupted in mid-epoch: one whose process is killed, one that is canceled."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest

from tests.gpu.card import DEVICE, Card, card
from tests.gpu.jobs import prune_upload
from tests.gpu.test_basics import computed_on, told
from tests.gpu.up import Up
from tests.support.models import zoo
from tests.support.processes import wait_for
from worker.forkserver import CHILD_NAME

pytestmark = pytest.mark.gpu

Finding = dict[str, Any]
LEFT_MIB = 128
"""Most memory of the card that may be in use beyond what was before; a process that computes there takes several times
that."""
EPOCHS = {"cuda": 40, "cpu": 12}[DEVICE]


def long_training(up: Up, epochs: int) -> dict[str, Any]:
    """A job with epochs of some tenths of a second."""
    x, y = zoo.images(3, 8)(6000, 0)
    model = up.upload_model(zoo.upload("resnet", "scripted"), "resnet_scripted.pt")
    retrain = {"epochs": epochs, "batch_size": 32, "lr": 0.001}
    dataset = up.upload_dataset(zoo.npz(x, y), "many_images.npz")
    return {**prune_upload(up, model, "resnet", retrain=retrain), "dataset": dataset}


def in_epoch(up: Up, job: str, epoch: int) -> None:
    """Wait until it trains that epoch, with a checkpoint of the one before."""

    def there() -> bool:
        row = up.job_row(job)
        assert row.status in ("queued", "running"), up.job(job)["error"]
        return (row.checkpoint_step or 0) >= epoch - 1

    wait_for(there, f"{job} trains epoch {epoch}", every_s=0.05)


def free_again(before: Card | None, finding: Finding) -> None:
    """Wait until no more of the card's memory is in use than before anything was started."""
    if before is None:
        return
    began = time.monotonic()
    try:
        wait_for(lambda: card().used <= before.used + LEFT_MIB, "the card's memory is free again")
    finally:
        finding.update(before_mib=before.used, after_mib=card().used, free_after_s=round(time.monotonic() - began, 1))


def test_when_nothing_runs_the_card_is_free(alone: Up, before: Card | None, finding: Finding) -> None:
    free_again(before, finding)


def test_a_killed_child_resumes(alone: Up, before: Card | None, finding: Finding) -> None:
    up = alone
    job = up.submit(long_training(up, EPOCHS))
    in_epoch(up, job, 3)
    time.sleep(0.2)  # somewhere within the epoch
    (child,) = (process for process in up.api.tree() if _name(process) == CHILD_NAME)
    child.kill()
    killed_at = time.monotonic()
    wait_for(lambda: up.job_row(job).attempt == 2, "a second attempt")
    finding["resumed_after_s"] = round(time.monotonic() - killed_at, 1)
    report = up.succeeded(job)
    told(finding, report)
    computed_on(report, before)
    assert [epoch["epoch"] for epoch in report["history"]] == list(range(1, EPOCHS + 1))
    assert any("goes on from checkpoint" in text for text in _logged(up, job))
    free_again(before, finding)


def test_a_canceled_job_ends_and_frees_the_card(alone: Up, before: Card | None, finding: Finding) -> None:
    up = alone
    job = up.submit(long_training(up, 1000))
    in_epoch(up, job, 2)
    finding["in_use_mib"] = card().used if before else None
    asked_at = time.monotonic()
    assert up.http.post(f"/v1/jobs/{job}/cancel").status_code == 202
    assert up.ended(job, 30)["status"] == "canceled"
    finding["ended_after_s"] = round(time.monotonic() - asked_at, 1)
    assert up.artifacts(job) == []
    free_again(before, finding)


def _name(process: psutil.Process) -> str | None:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return None


def _logged(up: Up, job: str) -> list[str]:
    return [event["data"]["text"] for event in up.events(job) if event["event"] == "log"]
