"""What is computed where: on the device that a spec names, and timed where the model will run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pared.compression import distill, prune
from pared.compression.export.formats import Formats
from pared.compression.jobs.prune_job import PruneJob
from pared.compression.jobs.size_search import Sizes
from pared.compression.jobs.stages import Stages
from pared.compression.loading import LoadedModel
from pared.compression.report.parts import measure_both
from pared.compression.work import ModelFile, SilentObserver, Work
from pared.errors import DeviceUnavailable
from pared.specs import PruneSpec

X = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
DATA = (X, X[:, :3].argmax(1))


def mlp(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def loaded(module: nn.Module) -> LoadedModel:
    return LoadedModel(torch.jit.script(module.eval()), "torchscript", "scripted")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("field", ["device", "latency_device"])
def test_cuda_is_refused_with_advice_where_torch_has_none(field):
    for act in (
        lambda **fields: prune(mlp(), DATA, amount=0.5, **fields),
        lambda **fields: distill(mlp(), mlp(8), DATA, **fields),
    ):
        with pytest.raises(DeviceUnavailable, match=f"Leave {field} out") as refused:
            act(**{field: "cuda"})
        assert [error["pointer"] for error in refused.value.errors] == [f"/{field}"]


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_the_report_says_what_computed_and_where_latency_was_measured(device):
    if device == "auto" and torch.cuda.is_available():
        pytest.skip("there is a GPU, and auto takes it")
    report = prune(mlp(), DATA, amount=0.5, retrain={"epochs": 1}, device=device, latency_device="cpu").report
    assert report.reproduce.device.startswith("cpu (")
    assert report.reproduce.driver is None
    assert {latency.device for latency in (*report.before.latency, *report.after.latency)} == {"cpu"}
    assert not any("Latency was measured" in warning for warning in report.warnings)


def test_a_job_on_a_gpu_measures_latency_where_the_model_will_run(tmp_path: Path):
    """On the processor, which needs no GPU to be shown: nothing here may go to the job's own device."""
    work = Work({}, None, tmp_path, device="cuda", latency_device="cpu")
    measured = measure_both(loaded(mlp()), loaded(mlp(4)), (X[:4],), work, lambda: None, (1,))
    assert [each.latency[0].device for each in (measured.before, measured.after)] == ["cpu", "cpu"]
    assert any("measured on the processor, as asked for" in warning for warning in measured.warnings)


def test_a_goal_of_latency_is_looked_for_where_the_model_will_run(tmp_path: Path):
    original = loaded(mlp(64))
    path = tmp_path / "m.pt"
    torch.jit.save(original.module, path)
    work = Work({"model": ModelFile(path, "m.pt", "")}, None, tmp_path, device="cuda", latency_device="cpu")
    spec = PruneSpec(
        type="prune", model="mdl_" + "0" * 26, target={"latency": 0.9}, device="cuda", latency_device="cpu"
    )
    formats = Formats(["torchscript"], (X[:4],), log=lambda _: None, tick=lambda: None)
    sizes = Sizes(PruneJob(spec, work, Stages(SilentObserver()), original, (X[:4],), None, None, formats))
    sizes.least({"latency": 0.9})
    assert any(point.latency is not None for point in sizes.points)
