"""Losses between inner layers of teachers and students of any family and in any form of file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from pared.compression import distill


def _nets() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "feature_nets", Path(__file__).parents[3] / "benchmarks" / "feature_nets.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NETS = _nets()
IN_MAKE_TEST = ("CNN -> MLP", "transformer -> narrower with half the layers", "GRU -> CNN", "residual -> transformer")
TERMS = [
    {"kind": "kl"},
    {"kind": "labels", "weight": 0.1},
    {"kind": "hint", "weight": 0.5},
    {"kind": "relational", "weight": 0.1, "features": "auto"},
    {"kind": "cosine", "features": "auto"},
]
POSITIONS = {"kind": "attention"}


def digits(samples: int = 240) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).random((samples, 1, 8, 8), dtype=np.float32)
    return {"x": x, "y": (x.mean((1, 2, 3)) * 97).astype(np.int64) % 10}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_MAKE_TEST else pytest.mark.campaign) for name in NETS.PAIRS]
)
def test_files_of_other_families_learn_from_each_others_inner_layers(name: str, tmp_path: Path) -> None:
    make, form, make_student, student_form = NETS.PAIRS[name]
    torch.manual_seed(0)
    teacher = NETS.saved(make(), form, tmp_path, "teacher")
    student = NETS.saved(make_student(), student_form, tmp_path, "student")
    terms = TERMS if "MLP" in name else [*TERMS, POSITIONS]
    data = digits()
    done = distill(
        str(teacher),
        str(student),
        (data["x"], data["y"]),
        loss={"kind": "combined", "terms": terms},
        train={"epochs": 3, "lr": 0.005},
        outputs=["torchscript"],
    )
    losses = [record.train_loss for record in done.report.history]
    assert losses[-1] < losses[0]
    pairs = done.report.features
    assert {pair.term for pair in pairs} == {term["kind"] for term in terms} - {"kl", "labels"}
    assert all(pair.chosen == "auto" and pair.teacher and pair.student for pair in pairs)
    for term in {pair.term for pair in pairs}:
        students = [pair.student for pair in pairs if pair.term == term]
        assert len(students) == len(set(students)) >= 1
