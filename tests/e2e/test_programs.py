"""torch.export programs (.pt2) through the whole service: inspected, distilled, asked for, the same bytes each time."""

from __future__ import annotations

import io

import pytest
import torch

from tests.support.models import zoo
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def fixed() -> bytes:
    """What `torch.export.export(model, args)` gives who asks for nothing else: a program of one batch size."""
    return zoo.exported(zoo.trained("mlp"), zoo.FAMILIES["mlp"].inputs(2), fixed=True)


def test_a_program_is_inspected_as_one(embedded: Stack, fixed: bytes) -> None:
    row = embedded.inspected(embedded.upload_model(fixed, "mlp.pt2"))
    assert (row["status"], row["format"]) == ("ready", "exported_program")
    inspection = row["inspection"]
    assert inspection["flavour"] == "exported"
    assert inspection["inputs"] == [{"shape": [4, 16], "dtype": "float32"}]
    assert "exported for a batch of 2 alone" in inspection["warnings"][0]
    assert {layer["name"]: layer["prunable_channels"] for layer in inspection["layers"]}["net.0"]


def test_a_damaged_program_is_rejected_with_its_reason(embedded: Stack, fixed: bytes) -> None:
    row = embedded.inspected(embedded.upload_model(fixed[:-100], "cut.pt2"))
    assert row["status"] == "rejected"
    assert "damaged" in row["reason"]["detail"]


def test_a_program_teaches_a_program_twice_alike(embedded: Stack, fixed: bytes) -> None:
    torch.manual_seed(1)
    student = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4)).eval()
    spec = {
        "type": "distill",
        "teacher": embedded.upload_model(fixed, "mlp.pt2"),
        "student": embedded.upload_model(zoo.exported(student, torch.randn(2, 16)), "student.pt2"),
        "dataset": embedded.upload_dataset(zoo.dataset("mlp"), "mlp.npz"),
        "train": {"epochs": 6, "lr": 0.01},
    }
    jobs = [embedded.submit(spec) for _ in range(2)]
    reports = [embedded.succeeded(job) for job in jobs]
    files = [embedded.download(job, "model.pt2") for job in jobs]
    assert files[0] == files[1]
    assert reports[0]["before"]["file_bytes"] == len(fixed)
    assert reports[0]["after"]["file_bytes"] == len(files[0]) < len(fixed)
    assert reports[0]["after"]["quality"]["test"]["value"] > 0.6
    program = torch.export.load(io.BytesIO(files[0]))
    assert program.module()(zoo.FAMILIES["mlp"].inputs(5)).shape == (5, 4)


def test_half_of_a_program_in_every_format(embedded: Stack, fixed: bytes) -> None:
    spec = {
        "type": "distill",
        "teacher": embedded.upload_model(fixed, "mlp.pt2"),
        "student": {"from_teacher": {"width": 0.5}},
        "dataset": embedded.upload_dataset(zoo.dataset("mlp"), "mlp.npz"),
        "train": {"epochs": 1},
        "outputs": ["onnx", "exported_program", "state_dict", "torchscript"],
    }
    job = embedded.submit(spec)
    report = embedded.succeeded(job)
    assert report["after"]["parameters"] < report["before"]["parameters"]
    named = {row["name"] for row in embedded.artifacts(job)}
    assert {"model.pt", "model.pt2", "model.safetensors", "model.onnx"} <= named
    x = zoo.FAMILIES["mlp"].inputs(3)
    script = torch.jit.load(io.BytesIO(embedded.download(job)))
    program = torch.export.load(io.BytesIO(embedded.download(job, "model.pt2")))
    torch.testing.assert_close(program.module()(x), script(x))
