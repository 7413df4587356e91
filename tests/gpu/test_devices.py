"""Devices that a job asks for, and those that are written into files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.gpu import networks
from tests.gpu.card import Card, needs_card
from tests.gpu.jobs import Posted, prune_upload
from tests.gpu.test_basics import computed_on, told
from tests.gpu.up import Up
from tests.support.clean_process import CleanProcess
from tests.support.models import zoo

pytestmark = pytest.mark.gpu

Finding = dict[str, Any]


def runs_on_the_cpu(file: bytes, name: str, family: str, on_cpu: CleanProcess) -> None:
    """The result loads and answers where there is torch alone, and no device but the CPU."""
    answered = on_cpu.run(file, name, x=zoo.FAMILIES[family].inputs(5))
    assert answered["shapes"]["x"] == [5, 4]
    assert torch.tensor(answered["outputs"]["x"]).isfinite().all()


def test_a_job_for_the_cpu_runs_there(posted: Posted, finding: Finding) -> None:
    report = posted.report("device cpu")
    told(finding, report)
    said = report["reproduce"]
    finding.update(device=said["device"], driver=said["driver"], precision=said["precision"])
    computed_on(report, None)
    assert (said["driver"], said["precision"]) == (None, "float32")
    assert {latency["device"] for latency in report["after"]["latency"]} == {"cpu"}


@pytest.mark.parametrize("name", ["traced GRU", "traced LSTM", "code that names a card", "program that names a device"])
def test_devices_in_files(
    name: str, posted: Posted, before: Card | None, on_cpu: CleanProcess, finding: Finding
) -> None:
    report = posted.report(name)
    told(finding, report)
    computed_on(report, before)
    result = "model.pt2" if name.startswith("program") else "model.pt"
    family = "mlp" if name == "code that names a card" else "text_pool"
    runs_on_the_cpu(posted.up.download(posted.id(name), result), result, family, on_cpu)


def test_code_that_names_a_card_runs_on_the_cpu(posted: Posted, on_cpu: CleanProcess, finding: Finding) -> None:
    name = "code that names a card, on the CPU"
    report = posted.report(name)
    told(finding, report)
    computed_on(report, None)
    runs_on_the_cpu(posted.up.download(posted.id(name)), "model.pt", "mlp", on_cpu)


@needs_card
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("form", ["traced", "state dict"])
def test_files_made_on_a_card(
    form: str, device: str, posted: Posted, before: Card, on_cpu: CleanProcess, tmp_path: Path, finding: Finding
) -> None:
    up, family = posted.up, "text_pool" if form == "traced" else "mlp"
    example = networks.example_of(zoo.dataset(family))
    if form == "traced":
        model = up.upload_model(networks.made_on_the_card(networks.Recurrent(nn.GRU), example, tmp_path))
    else:
        layers = [["Linear", {"in_features": 16, "out_features": 32}], ["ReLU"]]
        layers += [["Linear", {"in_features": 32, "out_features": 4}]]
        module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        file = networks.made_on_the_card(module, example, tmp_path, state=True)
        model = up.upload_model(file, architecture={"layers": layers})
    job = up.submit(prune_upload(up, model, family, device=device, outputs=["torchscript"]))
    report = up.succeeded(job)
    told(finding, report)
    computed_on(report, before if device == "cuda" else None)
    runs_on_the_cpu(up.download(job), "model.pt", family, on_cpu)


@needs_card
def test_several_workers_serve_the_card(posted: Posted, up: Up, before: Card, finding: Finding) -> None:
    posted.id("device cpu")
    workers = up.get("/readyz")["checks"]["worker"]["workers"]
    finding["workers"] = [worker["device"] for worker in workers]
    assert all("cuda" in worker["devices"] for worker in workers)
