"""Goals of latency, measured where the job computes or where the model will run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.gpu import networks
from tests.gpu.card import DEVICE, Card
from tests.gpu.jobs import prune, prune_upload
from tests.gpu.test_basics import computed_on, told
from tests.gpu.up import Up

pytestmark = pytest.mark.gpu

WIDTH = {"cuda": 384, "cpu": 24}[DEVICE]
RETRAIN = {"epochs": 1, "lr": 0.01}


def test_a_goal_of_latency(alone: Up, before: Card | None, finding: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = alone.upload_model(networks.scripted(networks.Wide(WIDTH)), "wide.pt")
    target = {"latency": 0.7, "latency_batch_size": 64}
    report = alone.succeeded(alone.submit(prune_upload(alone, model, "resnet", target=target, retrain=RETRAIN)))
    told(finding, report)
    finding.update(reached=report["goal"]["reached"], points=len(report["frontier"]))
    computed_on(report, before)
    assert {latency["device"] for latency in report["after"]["latency"]} == {DEVICE}
    assert report["goal"]["status"] == "met"


def test_latency_of_the_cpu(alone: Up, before: Card | None, finding: dict[str, Any]) -> None:
    """The job trains on the card; the model will run on a processor."""
    target = {"latency": 0.8, "latency_batch_size": 32}
    spec = prune(alone, "plain_cnn", target=target, retrain=RETRAIN, latency_device="cpu")
    report = alone.succeeded(alone.submit(spec))
    told(finding, report)
    finding.update(reached=report["goal"]["reached"], points=len(report["frontier"]))
    computed_on(report, before)
    assert {latency["device"] for latency in report["after"]["latency"]} == {"cpu"}
    assert report["goal"]["status"] == "met"
