"""Quantize jobs by real processes: int8 files are made and run in the sandbox, as their plans say."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import pared
from tests.support.models import zoo
from tests.support.stack import Stack

SPECS: dict[str, tuple[str, zoo.Form, dict[str, Any]]] = {
    "weights": ("resnet", "scripted", {"outputs": ["torchscript", "packed", "onnx"]}),
    "dynamic": ("mlp", "state_dict", {"method": "dynamic"}),
    "static": ("plain_cnn", "traced", {"method": "static", "calibration": {"samples": 64}}),
}


@pytest.mark.parametrize("name", SPECS)
def test_the_files_are_int8_as_planned_and_score_as_reported(embedded: Stack, name: str) -> None:
    family, form, fields = SPECS[name]
    extra = {"architecture": zoo.architecture(family)} if form == "state_dict" else {}
    data = zoo.dataset(family)
    spec = {
        "type": "quantize",
        "model": embedded.upload_model(zoo.upload(family, form), f"{family}.pt", **extra),
        "dataset": embedded.upload_dataset(data, f"{family}.npz"),
        **fields,
    }
    job = embedded.submit(spec)
    with pared.Client(embedded.url) as client:
        plan = client.jobs.plan(spec)
    report = embedded.succeeded(job)
    assert report["runtime"] == ("torch" if name == "weights" else "onnxruntime")
    written = {row["name"]: row["size_bytes"] for row in embedded.artifacts(job) if row["name"] != "report.json"}
    assert {name: file.size_bytes for name, file in plan.files.items() if file.exact} == {
        name: size for name, size in written.items() if name != "model.packed"
    }
    assert [(layer.name, layer.precision) for layer in plan.layers] == [
        (layer["name"], layer["precision"]) for layer in report["layers"]
    ]
    precisions = {layer["precision"] for layer in report["layers"]}
    assert precisions == ({"int8_weights"} if name == "weights" else {"int8"})
    assert report["after"]["quality"]["test"]["value"] > report["before"]["quality"]["test"]["value"] - 0.05
    assert len(report["after"]["latency"]) == 2
    x = np.load(io.BytesIO(data))["x"][:5].astype(np.float32)
    if "model.onnx" in written:
        session = onnxruntime.InferenceSession(embedded.download(job, "model.onnx"))
        assert len(session.run(None, {"x0": x})[0]) == 5
    if "model.pt" in written:
        assert len(torch.jit.load(io.BytesIO(embedded.download(job, "model.pt")))(torch.from_numpy(x))) == 5


def test_nothing_to_quantize_is_told_before_anything_is_measured(embedded: Stack) -> None:
    spec = {
        "type": "quantize",
        "model": embedded.upload_model(zoo.upload("plain_cnn", "scripted"), "plain_cnn.pt"),
        "dataset": embedded.upload_dataset(zoo.dataset("plain_cnn"), "plain_cnn.npz"),
    }
    first = embedded.submit(spec)
    embedded.succeeded(first)
    again = embedded.upload_model(embedded.download(first, "model.pt"), "int8.pt")
    job = embedded.submit(spec | {"model": again})
    ended = embedded.ended(job)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "nothing-to-quantize")
    assert "holds int8 weights already" in ended["error"]["detail"]
    assert not any(event["data"].get("stage") == "baseline" for event in embedded.events(job))
