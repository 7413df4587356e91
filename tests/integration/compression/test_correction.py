"""What layers take up of pruned weights without data."""

from __future__ import annotations

import copy
import hashlib
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pared.compression.coupling import find_bias_correction
from pared.compression.data import Data, load_dataset
from pared.compression.jobs import pruned
from pared.compression.loading import LoadedModel
from pared.compression.pruning.channels import remove_channels
from pared.compression.pruning.weights import weight_masks
from pared.compression.tasks.classification import Classification
from pared.compression.training.calibration import learn_labels
from pared.compression.training.loop import fit
from pared.compression.work import DatasetFile, ModelFile, Work
from pared.reports import Report
from pared.specs import PruneSpec, Train
from tests.support.models.zoo import exported, saved

LAYERS = [
    ["Conv2d", {"in_channels": 1, "out_channels": 16, "kernel_size": 3, "padding": 1, "bias": False}, "conv1"],
    ["BatchNorm2d", {"num_features": 16}, "bn1"],
    ["ReLU", {}, "act1"],
    ["MaxPool2d", {"kernel_size": 2}, "pool"],
    ["Conv2d", {"in_channels": 16, "out_channels": 32, "kernel_size": 3, "padding": 1}, "conv2"],
    ["BatchNorm2d", {"num_features": 32}, "bn2"],
    ["SiLU", {}, "act2"],
    ["AdaptiveAvgPool2d", {"output_size": 2}, "average"],
    ["Flatten", {}, "flat"],
    ["Linear", {"in_features": 128, "out_features": 10}, "fc"],
]


class Cnn(nn.Module):
    """`LAYERS`, of which the one convolution has no bias and the other one has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = nn.functional.silu(self.bn2(self.conv2(x)))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_dataset(DatasetFile(None, "builtin:digits"), task="classification", preprocess=None, seed=0)


@pytest.fixture(scope="module")
def cnn(digits: Data) -> nn.Module:
    torch.manual_seed(0)
    module = Cnn()
    learn = learn_labels(Classification())
    fit(module, digits, Train(epochs=6, lr=0.05), learn, task=Classification(), seed=0, phase="dense")
    return module.eval()


def prune(module: nn.Module, folder: Path, form: str = "torchscript", **fields: object) -> tuple[Report, nn.Module]:
    """The result of a job without data."""
    path = folder / form
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    contents = {
        "torchscript": lambda: saved(torch.jit.script(module)),
        "state_dict": buffer.getvalue,
        "program": lambda: exported(module, torch.zeros(2, 1, 8, 8)),
    }
    path.write_bytes(contents[form]())
    architecture = {"layers": LAYERS} if form == "state_dict" else None
    file = ModelFile(path, form, hashlib.sha256(path.read_bytes()).hexdigest(), architecture)
    spec = {"type": "prune", "model": "mdl_" + "0" * 26, "example_inputs": [{"shape": [2, 1, 8, 8]}], **fields}
    report, result = pruned(PruneSpec.model_validate(spec), Work({"model": file}, None, folder, timed=False))
    return report, result.module


def accuracy(module: nn.Module, data: Data) -> float:
    with torch.no_grad():
        answers = module(*data.inputs["test"]).argmax(1)
    return (answers == data.targets["test"]).float().mean().item()


def uncorrected(module: nn.Module, spec: dict[str, Any]) -> nn.Module:
    copied = copy.deepcopy(module)
    if spec.get("granularity") == "weight":
        weight_masks(copied, amount=spec["amount"]).apply(copied)
        return copied
    loaded = LoadedModel(torch.jit.script(copied), "torchscript", "scripted")
    return remove_channels(loaded, (torch.zeros(2, 1, 8, 8),), amount=spec["amount"]).loaded.module


@pytest.mark.parametrize(
    "spec",
    [{"amount": 0.3}, {"amount": 0.5}, {"granularity": "weight", "amount": 0.85}],
    ids=lambda s: str(s["amount"]),
)
def test_without_data_more_accuracy_is_kept(spec: dict[str, Any], cnn: nn.Module, digits: Data, tmp_path: Path) -> None:
    report, corrected = prune(cnn, tmp_path, **spec)
    without, with_ = accuracy(uncorrected(cnn, spec), digits), accuracy(corrected, digits)
    print(f"{spec}: {accuracy(cnn, digits):.3f} -> {without:.3f}, corrected {with_:.3f}")
    assert with_ > without + 0.05
    (told,) = (warning for warning in report.warnings if "took up" in warning)
    assert "conv2, fc" in told
    assert told.endswith("For conv1 that average is not known." if "granularity" in spec else "conv2, fc.")


def test_every_format_is_corrected_alike(cnn: nn.Module, digits: Data, tmp_path: Path) -> None:
    (x,) = digits.inputs["test"]
    scripted, *others = (prune(cnn, tmp_path, form, amount=0.5)[1] for form in ("torchscript", "state_dict", "program"))
    with torch.no_grad():
        expected = scripted(x)
        assert (expected - uncorrected(cnn, {"amount": 0.5})(x)).abs().max() > 0.1
        for module in others:
            torch.testing.assert_close(module(x), expected, atol=1e-4, rtol=1e-4)


def normed(activation: nn.Module, *, bias: bool = True) -> nn.Sequential:
    """A batch norm of three channels with β = −1, 0, 2 and γ = 0.5, 1, 0, an activation and a layer."""
    module = nn.Sequential(nn.BatchNorm1d(3), activation, nn.Linear(3, 2, bias=bias), nn.BatchNorm1d(2)).eval()
    module[0].weight.data = torch.tensor([0.5, 1.0, 0.0])
    module[0].bias.data = torch.tensor([-1.0, 0.0, 2.0])
    module[2].weight.data = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]])
    module[3].running_var.fill_(4.0)
    return module


def test_what_goes_behind_a_relu_is_known_in_closed_form() -> None:
    # E[relu(N(β, γ²))] = β Φ(β/γ) + γ φ(β/γ), of N(0, 1): 1/√(2π); of a channel that is always 2: 2.
    def relu(beta: float, gamma: float) -> float:
        ratio = beta / gamma
        return beta * (1 + math.erf(ratio / math.sqrt(2))) / 2 + gamma * math.exp(-(ratio**2) / 2) / math.sqrt(
            2 * math.pi
        )

    module = normed(nn.ReLU())
    weight = module[2].weight.detach()
    lost = weight * torch.tensor([1.0, 0.0, 1.0])
    found = find_bias_correction(module, (torch.zeros(4, 3),), {"2.weight": lost})
    assert (found.corrected, found.unknown) == ({"2"}, set())
    expected = lost @ torch.tensor([relu(-1.0, 0.5), 0.0, 2.0])
    torch.testing.assert_close(found.changes["2.bias"].float(), expected, atol=1e-4, rtol=1e-4)
    assert "3.running_mean" not in found.changes


def test_without_a_bias_the_batch_norm_behind_takes_it_up() -> None:
    module = normed(nn.Identity(), bias=False)
    lost = module[2].weight.detach() * torch.tensor([1.0, 0.0, 1.0])
    found = find_bias_correction(module, (torch.zeros(4, 3),), {"2.weight": lost})
    # The means: β; the variances: γ², so that of w = (1, 2, 3) one part in 17 goes, and of (−1, ½, 0) one half.
    torch.testing.assert_close(found.changes["3.running_mean"].float(), torch.tensor([-5.0, -1.0]))
    torch.testing.assert_close(found.changes["3.running_var"].float(), torch.tensor([-4 / 17, -2.0]))
    found.apply(module)
    torch.testing.assert_close(module[3].running_mean, torch.tensor([-5.0, -1.0]))


def test_a_neuron_that_is_always_the_same_goes_without_a_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        module[1].weight[2:5] = 0.0
        module[1].bias[2:5] = torch.tensor([1.0, -2.0, 0.5])
    x = torch.randn(5, 1, 8, 8)
    report, smaller = prune(module, tmp_path, amount=3 / 8)
    assert report.removed["1.weight"]["0"] == [2, 3, 4]
    torch.testing.assert_close(smaller(x), module(x), atol=1e-4, rtol=1e-4)


class Gated(nn.Module):
    """A product of two branches, whose mean does not follow from theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(64, 8), nn.Linear(64, 8), nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.fc(self.norm(self.a(x)) * torch.sigmoid(self.b(x)))


def test_what_is_not_known_is_left_and_told() -> None:
    module = Gated().eval()
    found = find_bias_correction(module, (torch.zeros(2, 1, 8, 8),), {"fc.weight": module.fc.weight.detach()})
    assert (found.changes, found.corrected, found.unknown) == ({}, set(), {"fc"})
