"""The real methods in a real child, as the worker starts it."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from torch import nn

COUNTING = """
import sys
from worker import child

def counted(method):
    def run(spec, work):
        import torch

        before = set(sys.modules)
        report = method(spec, work)
        for name in sorted(set(sys.modules) - before):
            work.observer.log(f"imported {name}")
        work.observer.log(f"CUDA was asked before the fork: {torch.cuda._is_in_bad_fork()}")
        return report

    return run

child.main({spec: counted(method) for spec, method in child.all_methods().items()})
"""


@pytest.fixture
def model() -> bytes:
    torch.manual_seed(0)
    content = io.BytesIO()
    layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    torch.jit.save(torch.jit.trace(layers, torch.rand(2, 1, 8, 8)), content)
    return content.getvalue()


def test_training_imports_nothing_large_after_the_fork(bench, tmp_path, model):
    program = tmp_path / "counting.py"
    program.write_text(COUNTING)
    retrain = {"epochs": 1, "lr": 0.01}
    outputs = ["torchscript", "state_dict"]
    queued = bench.submit("0", content=model, dataset="builtin:digits", retrain=retrain, outputs=outputs)
    job = bench.run(queued, command=(sys.executable, "-P", str(program)))
    assert job.status == "succeeded", job.error
    said = [event.data["text"] for event in bench.events(job.id, "log")]
    imported = [text for text in said if text.startswith("imported ")]
    assert len(imported) <= 20, imported  # what takes milliseconds
    assert "CUDA was asked before the fork: False" in said
