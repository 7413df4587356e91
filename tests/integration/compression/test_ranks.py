"""Trainings that ranks share: the same steps as one rank takes, whatever a loss is a mean over."""

from __future__ import annotations

import copy
import io
import time
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional

from pared.compression.measuring.running import forward
from pared.compression.pruning.weights import weight_masks
from pared.compression.ranks import ALONE, RankLost, Ranks
from pared.compression.tasks.classification import Classification
from pared.compression.training.calibration import learn_labels
from pared.compression.training.gradients import WeightedLoss
from pared.compression.training.loop import fit
from pared.errors import ModelFailed, Stalled
from pared.specs import Train
from tests.support.ranks import together

LEARN = learn_labels(Classification())
TASK = Classification()


class Images:
    """Three classes of small images; the last batch of 16 has 11 of 75 samples."""

    def __init__(self, samples=75):
        generator = torch.Generator().manual_seed(1)
        self.splits = {}
        for split, count in {"train": samples, "val": 30}.items():
            y = torch.arange(count) % 3
            self.splits[split] = torch.randn(count, 1, 6, 6, generator=generator) + y[:, None, None, None], y
        self.seen = []

    def samples(self, split):
        return len(self.splits[split][1])

    def batches(self, split, batch_size, generator=None):
        count = self.samples(split)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for indices in torch.split(order, batch_size):
            self.seen += [indices.tolist()] if split == "train" else []
            yield (self.splits[split][0][indices],), self.splits[split][1][indices]

    def on(self, device):
        return self


@cache
def scripted(norm):
    """A file, as uploads are."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.Flatten()]
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Sequential(*layers, nn.Linear(8 * 16, 3))), buffer)
    return buffer.getvalue()


def trained(ranks, config, loss=LEARN, norm=False, data=None, **kwargs):
    module = torch.jit.load(io.BytesIO(scripted(norm)))
    if "masked" in kwargs:
        kwargs["masks"] = weight_masks(module, amount=kwargs.pop("masked"))
    run = fit(module, data or Images(), config, loss, task=TASK, seed=3, phase="x", ranks=ranks, **kwargs)
    return run, module.state_dict()


def far(one, other):
    return max(float((a - b).abs().max()) for a, b in zip(one.values(), other.values(), strict=True))


def few_counted():
    """A mean over the samples of one class alone, of which shares of a batch have unequal numbers, or none."""

    def loss(module, inputs, targets):
        each = functional.cross_entropy(forward(module, inputs, TASK), targets, reduction="none")
        return each[targets == 0].sum() / (targets == 0).sum().clamp_min(1)

    return WeightedLoss(loss, lambda targets: (targets == 0).sum())


@pytest.mark.parametrize(
    ("config", "loss", "how"),
    [
        (Train(epochs=2, batch_size=16, lr=0.05), LEARN, {}),
        (Train(epochs=2, batch_size=16, lr=0.05, weight_decay=0.01), few_counted(), {"masked": 0.5}),
        (Train(epochs=2, batch_size=16, optimizer="adam", augment={"mixup": {"alpha": 0.2}}), None, {}),
    ],
    ids=["plain", "few counted, masked", "adam, mixed"],
)
def test_ten_steps_of_two_ranks_are_those_of_one(config, loss, how):
    loss = loss or learn_labels(TASK, config.augment)
    alone, weights = trained(ALONE, config, loss, **how)
    first, second = together(2, lambda ranks: trained(ranks, config, loss, **how))
    assert far(first[1], weights) < 1e-5
    assert far(first[1], second[1]) == 0
    for one, other in zip(alone.history, first[0].history, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, abs=1e-5)
        assert other.validation == pytest.approx(one.validation, abs=1e-5)
    assert first[0].warnings == []


def test_a_checkpoint_is_gone_on_from_by_another_number_of_ranks():
    config, states = Train(epochs=3, batch_size=16, lr=0.05), []
    whole, weights = trained(ALONE, config)

    def begin(ranks):
        return trained(ranks, config.model_copy(update={"epochs": 2}), keep=states.append if not ranks.rank else id)

    together(2, begin)
    three = [Images() for _ in range(3)]
    runs = together(3, lambda ranks: trained(ranks, config, data=three[ranks.rank], resume=copy.deepcopy(states[0])))
    one = Images()
    trained(ALONE, config, data=one, resume=states[0])
    assert one.seen == three[0].seen == three[2].seen
    assert all(far(each[1], weights) < 1e-5 for each in runs)
    assert runs[0][0].history[-1].validation == pytest.approx(whole.history[-1].validation, abs=1e-5)


def test_batch_norms_take_the_mean_of_the_shares_statistics_and_the_run_says_so():
    config = Train(epochs=1, batch_size=75, lr=1e-9)  # one step that changes nothing but the statistics
    _, alone = trained(ALONE, config, norm=True)
    first, second = together(2, lambda ranks: trained(ranks, config, norm=True))
    assert far(first[1], second[1]) == 0
    mean, variance = (next(key for key in alone if key.endswith(end)) for end in ("running_mean", "running_var"))
    best = first[0].best_epoch
    assert best == 1
    assert torch.allclose(first[1][mean], alone[mean], atol=1e-3)
    assert torch.allclose(first[1][variance], alone[variance], rtol=0.05)
    assert "Batch norms took their statistics from shares of at most 38 samples" in first[0].warnings[0]


def test_a_batch_of_few_samples_leaves_ranks_without_a_share():
    assert [[Ranks(rank, 3).share(5) for rank in range(3)], Ranks(0, 3).parts(5)] == [
        [slice(0, 3), slice(3, 5), slice(5, 5)],
        2,
    ]
    assert [Ranks(rank, 2).share(1) for rank in range(2)] == [slice(0, 1), slice(1, 1)]
    config = Train(epochs=1, batch_size=2, lr=0.01)
    _, weights = trained(ALONE, config, norm=True, data=Images(6))
    runs = together(2, lambda ranks: trained(ranks, config, norm=True, data=Images(6)))
    assert all(far(each[1], weights) < 1e-5 for each in runs)
    assert runs[0][0].warnings == []


def test_ranks_that_came_to_different_trainings_do_not_train():
    config = Train(epochs=1, batch_size=16)
    found = together(2, lambda ranks: trained(ranks, config, data=Images(75 - ranks.rank)))
    assert "another training" in str(found[1])
    assert isinstance(found[1], RuntimeError)
    assert isinstance(found[0], RankLost)


def test_what_hangs_on_time_is_the_first_ranks_also_where_it_fails():
    def failing():
        raise ModelFailed("no such batch")

    assert together(2, lambda ranks: ranks.led(lambda: ranks.rank + 7)) == [7, 7]
    found = together(2, lambda ranks: ranks.led(failing))
    assert [(type(each), str(each)) for each in found] == [(ModelFailed, "no such batch")] * 2


def test_more_than_the_memory_holds_goes_in_pieces():
    numbers = torch.randn(3, 2_500_001)

    def run(ranks):
        own = numbers[ranks.rank].clone()
        ranks.sum_(own)
        return own, ranks.agreed(bytes([ranks.rank]) * 5_000_000)

    for summed, agreed in together(3, run):
        assert torch.equal(summed, numbers[0] + numbers[1] + numbers[2])
        assert agreed == bytes(5_000_000)


def test_a_rank_that_does_not_come_ends_the_wait_of_the_first():
    found = together(2, lambda ranks: ranks.agreed(1) if not ranks.rank else time.sleep(0.5), limit_s=0.05)
    assert isinstance(found[0], Stalled)
    assert "Process 2 of the 2" in str(found[0])
