"""What the service does on a card: it names it, inspects, plans, prunes and distills there, and reports from there."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch

import pared
from tests.gpu.card import DEVICE, Card
from tests.gpu.jobs import Posted
from tests.gpu.up import Up
from tests.support.clean_process import CleanProcess
from tests.support.models import zoo

pytestmark = pytest.mark.gpu

Finding = dict[str, Any]


def computed_on(report: dict[str, Any], card: Card | None) -> None:
    """The report's own word for where the job ran."""
    device = report["reproduce"]["device"]
    assert (card.name in device) if card else device.startswith("cpu"), device


def told(finding: Finding, report: dict[str, Any]) -> None:
    """What a line says of every job."""
    quality = report["after"]["quality"]
    finding["job_s"] = round(sum(report["seconds"].values()), 1)
    finding["epochs_s"] = [round(epoch["seconds"], 2) for epoch in report["history"]]
    finding["test"] = None if quality is None else round(quality["test"]["value"], 3)


def test_readyz_names_the_card(up: Up, before: Card | None, finding: Finding) -> None:
    ready = up.get("/readyz")
    (worker,) = ready["checks"]["worker"]["workers"]
    finding.update(worker=worker, card=before)
    assert worker["devices"] == ([DEVICE] if DEVICE == "cpu" else ["cpu", "cuda"])
    assert worker["device_problem"] is None
    assert before is None or before.name in worker["device"]
    assert ready["sandbox"] == "standard"


def test_inspection(up: Up, posted: Posted, finding: Finding) -> None:
    posted.id("prune channels")
    row = up.inspected(posted.specs["prune channels"]["model"])
    finding["sandbox"] = row.get("inspection", {}).get("sandbox")
    assert row["status"] == "ready", row["reason"]
    layers = {layer["name"]: layer for layer in row["inspection"]["layers"]}
    assert layers["layer1.conv1"]["prunable_channels"]


def test_a_plan_says_what_the_job_does(up: Up, posted: Posted, finding: Finding) -> None:
    report = posted.report("prune channels")
    with pared.Client(up.url) as client:
        plan = client.jobs.plan(posted.specs["prune channels"])
    finding["verdict"] = plan.verdict[:120]
    assert plan.exact
    assert (plan.after.parameters, plan.after.macs) == (report["after"]["parameters"], report["after"]["macs"])


def test_prune_channels(posted: Posted, before: Card | None, finding: Finding) -> None:
    report = posted.report("prune channels")
    told(finding, report)
    finding["stages_s"] = {stage: round(seconds, 1) for stage, seconds in report["seconds"].items()}
    computed_on(report, before)
    assert len(report["history"]) == 4
    assert report["after"]["parameters"] < report["before"]["parameters"] / 2
    assert report["after"]["quality"]["test"]["value"] > 0.8
    assert {latency["device"] for latency in report["after"]["latency"]} == {DEVICE}


def test_the_report_says_how_it_was_computed(posted: Posted, before: Card | None, finding: Finding) -> None:
    """Left to itself pared takes the card, and bfloat16 there."""
    report = posted.report("the device is left to pared")
    said = report["reproduce"]
    finding.update({name: said[name] for name in ("device", "driver", "precision", "threads")})
    finding["torch"] = said["versions"]["torch"]
    computed_on(report, before)
    assert said["versions"]["torch"] == torch.__version__
    assert said["driver"] == (before.driver if before else None)
    assert said["precision"] == ("bfloat16" if before else "float32")
    exact = posted.report("float32")
    computed_on(exact, before)
    assert exact["reproduce"]["precision"] == "float32"


@pytest.mark.parametrize(
    ("name", "zeros"),
    [("prune weights", 0.5), ("prune weights along a ramp", 0.8), ("a ramp by slopes, regrowing", 0.8)],
)
def test_weights(name: str, zeros: float, posted: Posted, before: Card | None, finding: Finding) -> None:
    report = posted.report(name)
    told(finding, report)
    computed_on(report, before)
    result = torch.jit.load(io.BytesIO(posted.up.download(posted.id(name))))
    matrices = [p for p in result.parameters() if p.dim() >= 2]
    share = sum(int((p == 0).sum()) for p in matrices) / sum(p.numel() for p in matrices)
    finding["zeros"] = round(share, 4)
    assert share == pytest.approx(zeros, abs=0.001)
    assert report["after"]["quality"]["test"]["value"] > 0.7


@pytest.mark.parametrize("name", ["distill knowledge", "distill features", "distill a regression"])
def test_students(name: str, posted: Posted, before: Card | None, finding: Finding) -> None:
    report = posted.report(name)
    told(finding, report)
    computed_on(report, before)
    assert len(report["history"]) >= 3
    assert report["after"]["quality"]["test"]["value"] > 0.3


def test_the_same_seed_gives_the_same_figures(posted: Posted, before: Card | None, finding: Finding) -> None:
    reports = [posted.report(name) for name in ("the same seed", "the same seed, again")]
    first, second = (
        {
            "losses": [epoch["train_loss"] for epoch in report["history"]],
            "validation": [epoch["validation"] for epoch in report["history"]],
            "quality": report["after"]["quality"],
        }
        for report in reports
    )
    finding["last_losses"] = [first["losses"][-1], second["losses"][-1]]
    finding["same_bytes"] = reports[0]["reproduce"]["outputs"] == reports[1]["reproduce"]["outputs"]
    computed_on(reports[0], before)
    assert first == second


def test_every_format_runs_on_the_cpu(
    posted: Posted, before: Card | None, on_cpu: CleanProcess, finding: Finding
) -> None:
    report = posted.report("every format")
    told(finding, report)
    computed_on(report, before)
    job, inputs = posted.id("every format"), zoo.FAMILIES["plain_cnn"].inputs(5)
    finding["files"] = sorted(report["reproduce"]["outputs"])
    files = {"model.pt", "model.safetensors", "model.pt2", "model.onnx", "model.packed"}
    assert files <= set(report["reproduce"]["outputs"])
    answers = [
        torch.tensor(on_cpu.run(posted.up.download(job, name), name, x=inputs)["outputs"]["x"])
        for name in ("model.pt", "model.pt2")
    ]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "shared values",
        "activation",
        "taylor",
        "hessian",
        "n:m",
        "block",
        "head",
        "residual_block",
        "in steps",
        "a goal of MACs",
        "without data",
    ],
)
def test_ways(name: str, posted: Posted, before: Card | None, finding: Finding) -> None:
    """Every other way to choose what goes."""
    report = posted.report(name)
    told(finding, report)
    computed_on(report, before)
    assert report["after"]["nonzero_parameters"] < report["before"]["nonzero_parameters"]
    assert all(math.isfinite(epoch["train_loss"]) for epoch in report["history"])
