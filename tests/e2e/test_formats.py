"""Formats by real processes: one that cannot be written is told before training, and costs itself alone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pared
from tests.support.models import zoo
from tests.support.processes import Processes, wait_for
from tests.support.stack import Stack, new_stack


class NoOnnx(nn.Module):
    """ONNX has no operator for what it computes first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(torch.lgamma(1 + x.abs()))))


@functools.cache
def scripted() -> bytes:
    torch.manual_seed(0)
    return zoo.saved(torch.jit.script(NoOnnx().eval()))


def pruning(stack: Stack, *outputs: str, samples: int = 300, **retrain: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(samples, 6)).astype(np.float32), rng.integers(0, 4, samples)
    return {
        "type": "prune",
        "model": stack.upload_model(scripted(), "lgamma.pt"),
        "dataset": stack.upload_dataset(zoo.npz(x, y), "data.npz"),
        "amount": 0.5,
        "retrain": {"epochs": 1} | retrain,
        "outputs": list(outputs),
    }


def models(stack: Stack, job: str) -> dict[str, str]:
    """Name and digest of each file that a job made, beside its report."""
    return {row["name"]: row["sha256"] for row in stack.artifacts(job) if row["name"] != "report.json"}


def test_the_others_are_kept_and_the_missing_one_is_named_everywhere(embedded: Stack) -> None:
    spec = pruning(embedded, "onnx", "torchscript", "state_dict")
    job, kept_alone = embedded.submit(spec), embedded.submit(spec | {"outputs": ["torchscript", "state_dict"]})
    report, alone = embedded.succeeded(job), embedded.succeeded(kept_alone)
    (failed,) = report["failed_outputs"]
    assert (failed["format"], failed["code"]) == ("onnx", "export-failed")
    assert "lgamma" in failed["detail"]
    assert alone["failed_outputs"] == []
    assert models(embedded, job) == models(embedded, kept_alone)
    assert set(models(embedded, job)) == {"model.pt", "model.safetensors"}

    seen = embedded.job(job)
    assert seen["error"] is None
    assert seen["result"]["failed_outputs"] == report["failed_outputs"]
    assert seen["result"]["verdict"].endswith(" Not written: onnx.")
    said = [str(event["data"].get("text") or event["data"].get("stage")) for event in embedded.events(job)]
    (early,) = [index for index, text in enumerate(said) if text.startswith("onnx will be missing")]
    assert failed["detail"] in said[early]
    assert early < said.index("retrain")
    with pared.Client(embedded.url) as client:
        assert client.jobs.get(job).wait().failed_outputs[0].model_dump() == failed
        plan = client.jobs.plan(spec)
    assert [each.model_dump() for each in plan.failed_outputs] == [failed]
    assert set(plan.files) == {"model.pt", "model.safetensors"}


def test_where_none_can_be_written_the_job_fails_within_seconds_as_its_plan_does(embedded: Stack) -> None:
    spec = pruning(embedded, "onnx", samples=3000, epochs=1000)
    job = embedded.submit(spec)
    ended = embedded.ended(job)
    assert ended["status"] == "failed"
    assert ended["error"]["code"] == "export-failed"
    assert "ONNX cannot hold this model" in ended["error"]["detail"]
    assert "`outputs` may name `torchscript`" in ended["error"]["detail"]
    assert not any(event["data"].get("stage") == "retrain" for event in embedded.events(job))
    assert embedded.artifacts(job) == []
    planned = embedded.http.post("/v1/jobs:plan", json=spec)
    assert (planned.status_code, planned.json()["type"]) == (422, "/problems/export-failed")
    assert planned.json()["detail"] == ended["error"]["detail"]


@pytest.mark.campaign  # in every run without a service: tests/integration/compression/test_formats.py
def test_a_student_is_written_in_what_holds_it(embedded: Stack) -> None:
    spec = pruning(embedded)
    distilling = {
        "type": "distill",
        "teacher": spec["model"],
        "student": {"from_teacher": {"width": 0.5}},
        "dataset": spec["dataset"],
        "train": {"epochs": 1},
        "outputs": ["onnx", "state_dict", "torchscript"],
    }
    job = embedded.submit(distilling)
    report = embedded.succeeded(job)
    assert [failed["format"] for failed in report["failed_outputs"]] == ["onnx"]
    assert embedded.job(job)["result"]["failed_outputs"] == report["failed_outputs"]
    assert set(models(embedded, job)) == {"model.safetensors", "model.pt"}
    refused = embedded.ended(embedded.submit(distilling | {"outputs": ["onnx"], "train": {"epochs": 1000}}))
    assert (refused["status"], refused["error"]["code"]) == ("failed", "export-failed")


@pytest.mark.campaign
def test_a_job_whose_worker_was_killed_ends_the_same(processes: Processes, scratch: Path) -> None:
    stack = new_stack(scratch / "formats", processes)
    spec = pruning(stack, "torchscript", "onnx", samples=2000, epochs=24, batch_size=16)
    undisturbed, job = stack.submit(spec), stack.submit(spec)
    whole = stack.succeeded(undisturbed)
    wait_for(lambda: stack.job_row(job).checkpoint_step, "a checkpoint", every_s=0.02)
    stack.workers[0].kill()
    stack.start_worker()
    report = stack.succeeded(job)
    assert stack.job(job)["attempt"] == 2
    assert report["failed_outputs"] == whole["failed_outputs"]
    assert [failed["format"] for failed in report["failed_outputs"]] == ["onnx"]
    assert models(stack, job) == models(stack, undisturbed)
    said = [str(event["data"].get("text")) for event in stack.events(job)]
    assert sum(text.startswith("onnx will be missing") for text in said) == 1
    stack.stop()
