"""Scores against hand arithmetic, and what each criterion does to a whole job."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression.coupling import ChannelGroup, input_norms
from pared.compression.pruning.importance import CalibrationStatistics, channel_scores, weight_scores
from pared.criteria.lamp import share_of_larger
from pared.errors import NothingToPrune
from tests.compression.test_methods import file_of, pruning, run

# Two units with two incoming weights each in layer a; b adds to the same units, over another dimension.
WEIGHTS = {"a.weight": torch.tensor([[3.0, -4.0], [1.0, 2.0]]), "b.weight": torch.tensor([[12.0, -2.0]])}
ONE = ChannelGroup(["a"], 2, {("a.weight", 0): np.array([0, 1])}, [("a.weight", 0)])
TWO = ChannelGroup(
    ["a", "b"],
    2,
    {("a.weight", 0): np.array([0, 1]), ("b.weight", 1): np.array([0, 1])},
    [("a.weight", 0), ("b.weight", 1)],
)
GRADIENTS = [
    {"a.weight": torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "b.weight": torch.zeros(1, 2)},
    {"a.weight": torch.tensor([[-1.0, 0.0], [2.0, 0.0]]), "b.weight": torch.zeros(1, 2)},
]

STATISTICS = CalibrationStatistics(
    lambda: GRADIENTS, lambda: {"a.weight": torch.tensor([[1.0, 3.0]]), "b.weight": torch.tensor([[2.0, 1.0]])}
)


@pytest.mark.parametrize(
    ("criterion", "group", "scores"),
    [
        ("magnitude", ONE, [7, 3]),
        ("magnitude", TWO, [19, 5]),
        ("l2", ONE, [5, math.sqrt(5)]),
        ("l2", TWO, [13, 3]),
        ("lamp", ONE, [1, 5 / 30]),
        ("geometric_median", ONE, [math.sqrt(40), math.sqrt(40)]),
        ("geometric_median", TWO, [math.sqrt(40 + 196), math.sqrt(40 + 196)]),
        ("activation", ONE, [3 + 12, 1 + 6]),
        ("activation", TWO, [15 + 24, 7 + 2]),
        # g·w of the first unit: 3 − 2 and −3; of the second: 2 and 2.
        ("taylor", ONE, [(1**2 + 3**2) / 2, (2**2 + 2**2) / 2]),
        ("hessian", ONE, [(9 + 4 + 9) / 4, (4 + 4) / 4]),
    ],
)
def test_channels_are_scored_as_by_hand(criterion: str, group: ChannelGroup, scores: list[float]) -> None:
    [found] = channel_scores([group], criterion, WEIGHTS, statistics=STATISTICS)  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx(scores)


def test_the_geometric_median_spares_the_one_that_is_unlike_the_others() -> None:
    weights = {"a.weight": torch.tensor([[1.0, 1.0], [1.1, 1.0], [1.0, 0.9], [-1.0, -1.0]])}
    group = ChannelGroup(["a"], 4, {("a.weight", 0): np.arange(4)}, [("a.weight", 0)])
    [found] = channel_scores([group], "geometric_median", weights)
    assert int(found.argmax()) == 3


def test_channels_of_several_indices_are_compared_as_a_whole() -> None:
    """A unit that was flattened has several rows, not next to each other."""
    weights = {"a.weight": torch.tensor([[1.0], [5.0], [2.0], [7.0], [9.0]])}
    group = ChannelGroup(["a"], 2, {("a.weight", 0): np.array([0, 1, 0, 1, -1])}, [("a.weight", 0)])
    [found] = channel_scores([group], "geometric_median", weights)
    assert found.tolist() == pytest.approx([math.sqrt(4**2 + 5**2)] * 2)
    [found] = channel_scores([group], "magnitude", weights)
    assert found.tolist() == [3, 12]


def test_batch_norm_scales_score_the_channels_they_scale() -> None:
    weights = WEIGHTS | {"bn.weight": torch.tensor([-0.5, 0.1])}
    members = ONE.members | {("bn.weight", 0): np.array([0, 1])}
    group = ChannelGroup(["a"], 2, members, ONE.out_axes)
    [found] = channel_scores([group], "bn_scale", weights, scales=["bn.weight", "elsewhere.weight"])
    assert found.tolist() == pytest.approx([0.5, 0.1])
    with pytest.raises(NothingToPrune, match="there is none after a"):
        channel_scores([ONE], "bn_scale", weights, scales=["bn.weight"])


def test_lamp_is_the_share_of_all_that_are_no_smaller() -> None:
    found = share_of_larger(torch.tensor([[4.0, 1.0], [0.0, 4.0]]))
    assert found.flatten().tolist() == pytest.approx([4 / 8, 1 / 9, 0, 1])


def test_single_weights_are_scored_as_by_hand() -> None:
    weights = {"a.weight": torch.tensor([[3.0, -4.0], [0.0, 2.0]])}
    gradients = [{"a.weight": torch.tensor([[1.0, 0.5], [7.0, -1.0]])}] * 2
    statistics = CalibrationStatistics(lambda: gradients, lambda: {"a.weight": torch.tensor([[2.0, 0.5]])})
    assert weight_scores(weights, "activation", statistics=statistics)["a.weight"].tolist() == [[6, 2], [0, 1]]
    assert weight_scores(weights, "l2")["a.weight"].tolist() == [[3, 4], [0, 2]]
    assert weight_scores(weights, "taylor", statistics=statistics)["a.weight"].tolist() == [[18, 8], [0, 8]]
    lamp = weight_scores(weights, "lamp")["a.weight"]
    assert lamp.flatten().tolist() == pytest.approx([9 / 25, 1, 0, 4 / 29])
    drawn = weight_scores(weights, "random", generator=torch.Generator().manual_seed(0))["a.weight"]
    assert drawn[1, 0] == 0
    assert (drawn.flatten()[[0, 1, 3]] > 0).all()


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


class Inputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.grouped = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1, groups=2)
        self.up, self.fc = nn.ConvTranspose2d(4, 3, 1), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.up(self.grouped(self.plain(x))).mean((2, 3)))


@pytest.mark.parametrize("scripted", [True, False])
def test_input_norms_are_those_of_what_the_layers_read(scripted: bool) -> None:
    torch.manual_seed(0)
    module = Inputs().eval()
    batches = [(torch.randn(3, 2, 5, 5),), (torch.randn(2, 2, 5, 5),)]
    norms = input_norms(torch.jit.script(module) if scripted else module, batches)

    read: dict[str, list[torch.Tensor]] = {}
    for name, layer in module.named_children():
        layer.register_forward_pre_hook(lambda _, args, name=name: read.setdefault(name, []).append(args[0]))
    for inputs in batches:
        module(*inputs)
    for name, layer in module.named_children():
        dims = [dim for dim in range(read[name][0].dim()) if dim != 1]
        norm = torch.stack([x.double().square().sum(dims) for x in read[name]]).sum(0).sqrt()
        if name == "grouped":  # two filters for the first two channels, two for the others
            norm = norm[[0, 1, 0, 1, 2, 3, 2, 3]]
        shape = {"plain": (1, 2, 1, 1), "grouped": (4, 2, 1, 1), "up": (4, 1, 1, 1), "fc": (1, 3)}[name]
        wanted = norm.reshape(shape).expand_as(layer.weight)
        torch.testing.assert_close(norms[f"{name}.weight"].expand_as(layer.weight), wanted)


def test_a_layer_whose_inputs_are_not_seen_is_named() -> None:
    with pytest.raises(NothingToPrune, match=r"emb.weight is of another kind"):
        weight_scores({"emb.weight": torch.ones(2, 2)}, "activation", statistics=STATISTICS)
