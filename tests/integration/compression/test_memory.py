"""A batch that does not fit into memory is run in parts that come to the same, down to one sample."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression import prune
from pared.compression.data import Data, load_dataset
from pared.compression.devices.memory import BatchSize, ran_out_of_memory
from pared.compression.measuring.running import predict
from pared.compression.tasks.classification import Classification
from pared.compression.training.calibration import learn_labels, loss_gradients
from pared.compression.training.gradients import add_gradients
from pared.compression.training.loop import fit
from pared.compression.work import DatasetFile
from pared.errors import ModelFailed, OutOfMemory
from pared.specs import Train

LEARN = learn_labels(Classification())


def samples(count=70):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    splits = ("train", "val", "test")
    return Data({split: [x] for split in splits}, dict.fromkeys(splits, y), Classification(), 3, "given", "npz")


class Small(nn.Module):
    """Runs out of memory at batches above `room`, as torch or TorchScript says it."""

    def __init__(self, room, *, error=torch.OutOfMemoryError, norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.room, self.error, self.seen = room, error, []
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        if len(x) > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB. The card has 1 GiB left.")
        self.seen.append((self.training, len(x)))
        return self.layers(x)


def trained(module, **fields):
    config = Train(epochs=2, lr=0.1, batch_size=32, **fields)
    return fit(module, samples(), config, LEARN, task=Classification(), seed=1, phase="x")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_parts_of_a_batch_come_to_the_same_training(error, optimizer):
    whole, parted = Small(1000), Small(9, error=error)
    expected, found = trained(whole, optimizer=optimizer), trained(parted, optimizer=optimizer)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parted.state_dict()[name], tensor, rtol=1e-5, atol=1e-5)
    losses = [[record.train_loss for record in run.history] for run in (expected, found)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert max(size for training, size in parted.seen if training) == 8
    assert expected.warnings == []
    (warning,) = found.warnings
    assert "batch of 32" in warning
    assert "at most 8" in warning
    assert "batch norm" not in warning


def test_parts_have_more_than_one_sample_where_that_can_be():
    x, y = torch.randn(9, 6), torch.randint(0, 3, (9,))
    module = Small(1000)
    module.train()
    add_gradients(module, (x,), y, LEARN, 4, nullcontext())
    assert [size for _, size in module.seen] == [3, 3, 3]


def test_smaller_parts_under_a_batch_norm_are_said():
    (warning,) = trained(Small(9, norm=True)).warnings
    assert "batch norms took their statistics from these smaller parts" in warning


def test_not_even_one_sample_is_out_of_memory_with_the_largest_batch_that_did_fit():
    with pytest.raises(OutOfMemory, match=r"one sample at a time: CUDA out of memory.*No batch did fit"):
        trained(Small(0))
    size, room = BatchSize(16), [5]

    def run(most):
        if most > room[0]:
            raise torch.OutOfMemoryError("no memory")
        return most

    assert size.run(run, 16, "train") == 4
    room[0] = 0
    with pytest.raises(OutOfMemory, match="largest batch that did fit was 4"):
        size.run(run, 16, "train")


def test_scoring_and_gradients_for_criteria_run_in_parts_too():
    data, small, large = samples(), Small(10).eval(), Small(1000).eval()
    for split in ("val", "test"):
        found, expected = (predict(each, data, split, Classification())[0] for each in (small, large))
        torch.testing.assert_close(found, expected)
    of_small, of_large = (
        list(loss_gradients(each, data, Classification(), seed=0, device="cpu")) for each in (small, large)
    )
    for found, expected in zip(of_small, of_large, strict=True):
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory. Tried to",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_what_torch_says_when_memory_runs_out_is_known(text):
    assert ran_out_of_memory(RuntimeError(text))


def test_other_failures_of_a_model_are_not_taken_for_a_lack_of_memory():
    class Broken(Small):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    assert not ran_out_of_memory(ValueError("my memory is full"))
    with pytest.raises(ModelFailed, match="mat1"):
        trained(Broken(1000))


def test_bytes_stay_bytes_until_they_are_taken_and_come_to_the_same(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 255, (80, 3, 5, 5)).astype(np.uint8)
    y = (x[:, 0].mean((1, 2)) > 127).astype(np.int64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 8), nn.ReLU(), nn.Linear(8, 2))
    fields = {
        "granularity": "weight",
        "amount": 0.5,
        "retrain": {"epochs": 2},
        "preprocess": {"scale": 1 / 255, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    }
    arrays = {f"{name}_{split}": array for split in ("train", "val", "test") for name, array in (("x", x), ("y", y))}
    np.savez(tmp_path / "bytes.npz", **arrays)
    file = DatasetFile(tmp_path / "bytes.npz", "bytes.npz")
    assert all(
        held.dtype == torch.uint8
        for held in load_dataset(file, task="classification", preprocess=None, seed=0).inputs["train"]
    )
    of_bytes, of_numbers = (prune(model, (kind, y), **fields) for kind in (x, x.astype(np.float32)))
    for name, tensor in of_numbers.model.state_dict().items():
        assert torch.equal(of_bytes.model.state_dict()[name], tensor)
    assert of_bytes.report.after.quality == of_numbers.report.after.quality
