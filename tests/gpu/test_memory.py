"""Jobs that do not fit into the card's memory as they were asked for, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.gpu import networks
from tests.gpu.card import DEVICE, Card, needs_card
from tests.gpu.jobs import prune_upload
from tests.gpu.test_basics import computed_on, told
from tests.gpu.test_interruptions import free_again
from tests.gpu.up import Up
from tests.support.models import zoo

pytestmark = pytest.mark.gpu

BATCH = 3000
SIZE = {"cuda": 96, "cpu": 8}[DEVICE]
MIB_A_SAMPLE = SIZE**2 * 64 / 2**20  # of each layer of `networks.Deep`
FLOAT32 = {"epochs": 1, "lr": 0.01, "batch_size": BATCH, "precision": "float32"}


def deep(up: Up, layers: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = up.upload_model(networks.scripted(networks.Deep(layers, SIZE)), f"deep_{layers}.pt")
    dataset = up.upload_dataset(zoo.npz(*zoo.images(3, 8)(4000, 0)), "images_4000.npz")
    return {**prune_upload(up, model, "resnet", granularity="weight", retrain=FLOAT32), "dataset": dataset}


@needs_card
def test_a_batch_too_large_is_halved_and_gradients_are_added(alone: Up, before: Card, finding: dict[str, Any]) -> None:
    """A whole batch would take twice the card's memory."""
    report = alone.succeeded(alone.submit(deep(alone, round(2 * before.memory / (BATCH * MIB_A_SAMPLE)))))
    told(finding, report)
    finding["warnings"] = report["warnings"]
    computed_on(report, before)
    assert any("did not fit into memory" in warning for warning in report["warnings"])
    free_again(before, finding)


def test_what_cannot_fit_at_all_fails_as_out_of_memory(alone: Up, before: Card | None, finding: dict[str, Any]) -> None:
    mib = before.memory * 5 // 4 if before else 64 << 10
    model = alone.upload_model(networks.scripted(networks.Greedy(mib)), "greedy.pt")
    job = alone.ended(alone.submit(prune_upload(alone, model, "resnet", granularity="weight", retrain=FLOAT32)))
    finding["error"] = job["error"]
    assert (job["status"], job["error"]["code"]) == ("failed", "out-of-memory")
    assert job["attempt"] == 1
    free_again(before, finding)


def test_the_next_job_runs(alone: Up, before: Card | None, finding: dict[str, Any]) -> None:
    """With the spec of one that did not fit, and a network that does."""
    report = alone.succeeded(alone.submit(deep(alone, 2)))
    told(finding, report)
    computed_on(report, before)
    assert not any("did not fit" in warning for warning in report["warnings"])
    free_again(before, finding)
