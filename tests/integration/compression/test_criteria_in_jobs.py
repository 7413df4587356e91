"""Jobs remove what their criterion ranks lowest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pared.errors import NothingToPrune
from tests.integration.compression.test_methods import file_of, pruning, run


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def upload(tmp_path):
    torch.manual_seed(0)
    module = Normed().eval()
    with torch.no_grad():
        module.bn1.weight[[1, 2, 5, 7]] = 0.01
        # These say much to nobody: large weights, read by none.
        module.conv1.weight[[0, 3, 4, 6]] *= 10
        module.conv2.weight[:, [0, 3, 4, 6]] = 0
    path = tmp_path / "normed.pt"
    torch.jit.save(torch.jit.script(module), path)
    return file_of(path)


@pytest.mark.parametrize(
    ("criterion", "layer", "removed"),
    [
        ("magnitude", "conv1", [1, 2, 5, 7]),
        ("l2", "conv1", [1, 2, 5, 7]),
        ("lamp", "conv1", [1, 2, 5, 7]),
        ("bn_scale", "conv1", [1, 2, 5, 7]),
        ("activation", "conv1", [1, 2, 5, 7]),
        ("taylor", "conv1", [0, 3, 4, 6]),
        ("hessian", "conv1", [0, 3, 4, 6]),
        ("geometric_median", "conv1", [1, 2, 5, 7]),
    ],
)
def test_a_job_removes_what_its_criterion_ranks_lowest(upload, tmp_path, criterion, layer, removed):
    report = run(pruning(criterion=criterion, retrain=None), {"model": upload}, tmp_path / "out")
    assert {part.name: part.removed_units for part in report.layers}[layer] == removed


def test_a_job_zeroes_the_weights_that_the_loss_does_not_feel(upload, tmp_path):
    spec = pruning(granularity="weight", amount=0.2, criterion="taylor", retrain=None)
    run(spec, {"model": upload}, tmp_path / "out")
    weight = torch.jit.load(tmp_path / "out" / "model.pt").conv1.weight
    assert int((weight[[0, 3, 4, 6]] == 0).sum()) == 36
    same = run(spec, {"model": upload}, tmp_path / "again")
    assert same.reproduce.outputs == run(spec, {"model": upload}, tmp_path / "out").reproduce.outputs


def test_layers_without_a_batch_norm_are_named(tmp_path):
    path = tmp_path / "plain.pt"
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))), path)
    with pytest.raises(NothingToPrune, match="batch norm"):
        run(pruning(criterion="bn_scale", retrain=None), {"model": file_of(path)}, tmp_path / "out")
