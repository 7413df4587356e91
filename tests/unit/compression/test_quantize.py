from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression.architectures import build
from pared.compression.data import load_dataset
from pared.compression.pruning.weights import weight_masks
from pared.compression.quantization.shared_values import SharedValues, cluster, share_values
from pared.compression.tasks.classification import Classification
from pared.compression.training.calibration import learn_labels
from pared.compression.training.loop import fit
from pared.compression.work import DatasetFile
from pared.errors import ModelFailed, NothingToPrune
from pared.specs import Train
from pared.weights.packed import read, write


def layer(weights: list[list[float]]) -> nn.Sequential:
    module = nn.Sequential(nn.Linear(len(weights[0]), len(weights)))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor(weights))
    return module


def values_of(module: nn.Module) -> dict[str, set[float]]:
    return {name: set(p.detach().flatten().tolist()) for name, p in module.named_parameters() if p.dim() > 1}


# -- clusters -----------------------------------------------------------------------------------


def test_clusters_equal_hand_arithmetic():
    # Two centroids start at 0 and 10, split at 5; then (1+2)/2 … at (0+1+2+4)/4 = 1.75 and 10, split at 5.875.
    values = np.array([0.0, 1, 2, 4, 10])
    assert cluster(values, 2).tolist() == [0, 0, 0, 0, 1]
    # Three start at 0, 5, 10, split at 2.5 and 7.5: {0, 1, 2}, {4}, {10} is a fixed point.
    assert cluster(values, 3).tolist() == [0, 0, 0, 1, 2]


def test_the_first_split_moves_until_every_value_is_nearest_its_mean():
    values = np.array([0.0, 0.1, 0.2, 4.9, 5.2, 10.0])
    # 0 and 10, split at 5: means 1.3 and 7.6, split at 4.45: means 0.1 and 6.7, split at 3.4: settled.
    assert cluster(values, 2).tolist() == [0, 0, 0, 1, 1, 1]


def test_few_distinct_values_are_their_own_clusters():
    assert cluster(np.array([3.0, -1, 3, 7]), 4).tolist() == [1, 0, 1, 2]
    assert cluster(np.array([]), 4).tolist() == []


def test_no_cluster_is_empty_and_each_value_is_nearest_its_own_mean():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-1, 0.01, 500), rng.normal(1, 0.01, 500), [40.0]])
    codes = cluster(values, 32)
    means = np.array([values[codes == code].mean() for code in range(codes.max() + 1)])
    assert (np.bincount(codes) > 0).all()
    assert (np.abs(values[:, None] - means).argmin(1) == codes).all()


def test_half_a_million_weights_take_a_second_or_so():
    values = np.random.default_rng(0).normal(size=500_000)
    began = time.process_time()
    codes = cluster(values, 32)
    assert time.process_time() - began < 5
    assert len(np.unique(codes)) == 32


# -- shared values ------------------------------------------------------------------------------


def test_apply_gives_each_weight_the_mean_of_its_cluster_and_pruned_ones_zero():
    module = layer([[1.0, 2.0, 0.0], [9.0, 11.0, 0.0]])
    shared = share_values(module, 1)
    assert shared.codes["0.weight"].tolist() == [[0, 0, -1], [1, 1, -1]]
    assert shared.codebooks["0.weight"].tolist() == [1.5, 10.0]
    shared.apply(module)
    assert module[0].weight.tolist() == [[1.5, 1.5, 0.0], [10.0, 10.0, 0.0]]
    before = module[0].weight.detach().clone()
    shared.apply(module)
    assert torch.equal(module[0].weight, before)


def test_masks_say_what_is_pruned():
    module = layer([[1.0, 2.0, 0.0, 3.0]])
    masks = weight_masks(module, amount=0.25)
    masks.kept["0.weight"] = torch.tensor([[True, True, True, False]])
    shared = share_values(module, 1, kept=masks)
    assert shared.codes["0.weight"].tolist() == [[0, 1, 0, -1]]  # the zero is a weight like others
    shared.apply(module)
    assert module[0].weight.tolist() == [[0.5, 2.0, 0.5, 0.0]]


def test_gradients_become_the_mean_of_their_cluster():
    module = layer([[1.0, 2.0, 0.0], [9.0, 11.0, 0.0]])
    shared = share_values(module, 1)
    module[0].weight.grad = torch.tensor([[1.0, 3.0, 5.0], [-2.0, 4.0, 7.0]])
    shared.mask_gradients(module)
    assert module[0].weight.grad.tolist() == [[2.0, 2.0, 0.0], [1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.SGD, {"lr": 0.001, "momentum": 0.9, "nesterov": True}), (torch.optim.Adam, {"lr": 0.01})],
    ids=["sgd", "adam"],
)
def test_weights_of_a_cluster_move_alike_through_momentum_and_decay(optimizer, options):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    module[0].weight.data = module[0].weight.data.to(memory_format=torch.channels_last)
    shared = share_values(module, 3)
    shared.apply(module)
    steps = optimizer(module.parameters(), weight_decay=0.01, **options)
    for _ in range(20):
        steps.zero_grad()
        module(torch.randn(4, 3, 8, 8)).square().sum().backward()
        shared.mask_gradients(module)
        steps.step()
        unsnapped = {name: p.detach().clone() for name, p in module.named_parameters()}
        shared.apply(module)
        assert all(len(values) <= 8 for values in values_of(module).values())
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter, unsnapped[name], rtol=1e-5, atol=1e-7)


def test_a_centroid_descends_the_loss_by_the_mean_gradient():
    module = layer([[1.0, 3.0]])
    shared = SharedValues({"0.weight": torch.tensor([[0, 0]], dtype=torch.int16)}, {"0.weight": torch.tensor([2.0])})
    shared.apply(module)
    module[0].weight.grad = torch.tensor([[0.5, 1.5]])
    shared.mask_gradients(module)
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert module[0].weight.tolist() == [[pytest.approx(2 - 0.1 * 1.0)] * 2]


def test_biases_and_layers_are_chosen():
    module = build({"name": "mlp", "kwargs": {"in_features": 6, "widths": [9], "classes": 3}})
    names = [name for name, _ in module.named_parameters()]
    weights = [name for name in names if name.endswith("weight")]
    assert list(share_values(module, 2).codes) == weights
    with_biases = share_values(module, 2, biases=True).codes
    assert [name for name in with_biases if name.endswith("bias")] == [names[1]]  # the other has 3, fewer than 2^2
    first = names[0].removesuffix(".weight")
    assert list(share_values(module, 2, exclude=[first]).codes) == weights[1:]
    with pytest.raises(NothingToPrune, match="nowhere"):
        share_values(module, 2, include=["nowhere"])
    with pytest.raises(ValueError, match="1 to 8"):
        share_values(module, 9)
    with torch.no_grad():
        next(module.parameters())[0, 0] = float("nan")
    with pytest.raises(ModelFailed, match="finite"):
        share_values(module, 2)


def test_state_goes_through_a_file(tmp_path):
    module = layer([[1.0, 2.0, 0.0], [9.0, 11.0, 0.0]])
    shared = share_values(module, 1)
    torch.save(shared.state(), tmp_path / "s.pt")
    again = SharedValues.from_state(torch.load(tmp_path / "s.pt", weights_only=True))
    again.apply(module)
    assert module[0].weight.tolist() == [[1.5, 1.5, 0.0], [10.0, 10.0, 0.0]]


def test_a_tensor_that_is_pruned_away_stays_zero():
    module = layer([[0.0, 0.0]])
    shared = share_values(module, 4)
    module[0].weight.grad = torch.ones(1, 2)
    shared.mask_gradients(module)
    shared.apply(module)
    assert module[0].weight.grad.tolist() == module[0].weight.tolist() == [[0.0, 0.0]]


# -- training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DatasetFile(None, "builtin:digits"), task="classification", preprocess=None, seed=0)


def trained(digits, **more):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    fit(module, digits, Train(epochs=6, lr=0.05), learn_labels(Classification()), task=Classification(), seed=0,
        phase="train")  # fmt: skip
    return module


def test_training_holds_shared_and_pruned_weights_and_wins_back_what_sharing_cost(digits, tmp_path):
    module = trained(digits)
    masks = weight_masks(module, amount=0.6)
    masks.apply(module)
    shared = share_values(module, 2, kept=masks, biases=True)
    checkpoints = []
    run = {"task": Classification(), "seed": 0, "phase": "retrain", "masks": shared}
    config = Train(epochs=4, lr=0.02, weight_decay=1e-3)
    done = fit(module, digits, config, learn_labels(Classification()), keep=checkpoints.append, **run)
    assert done.best_epoch > 0
    for name, parameter in module.named_parameters():
        if name in masks.kept:
            assert (parameter[~masks.kept[name]] == 0).all()
            assert len(parameter[masks.kept[name]].unique()) <= 4
            codes = shared.codes[name]
            assert all(len(parameter[codes == code].unique()) == 1 for code in range(4))
    # Resumed in the middle, it ends with the same bits.
    torch.manual_seed(0)
    other = trained(digits)
    again = SharedValues.from_state(shared.state())
    fit(other, digits, config, learn_labels(Classification()), resume=checkpoints[1], **(run | {"masks": again}))
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )
    # And a file of it takes less than two bits for each of its weights.
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    write(tmp_path / "m.packed", arrays)
    assert all(np.array_equal(read(tmp_path / "m.packed").tensors[name], array) for name, array in arrays.items())
    assert (tmp_path / "m.packed").stat().st_size < sum(array.size for array in arrays.values()) * 2 / 8 + 300
