"""Measurements, against values known from elsewhere."""

from __future__ import annotations

import gzip
import math

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression.measuring.latency import batch_of, measure_latency
from pared.compression.measuring.quality import Assessment, assess, compare
from pared.compression.measuring.size import count_bytes, count_macs, count_parameters, macs_by_weight
from pared.compression.tasks.classification import Classification
from pared.compression.tasks.regression import Regression
from pared.compression.tasks.statistics import mcnemar, paired_difference, paired_t, wilson


class Fixed:
    """Data whose inputs are the answers of `nn.Identity`."""

    def __init__(self, outputs, targets):
        self.outputs, self.targets = outputs, targets

    def batches(self, split, batch_size, generator=None):
        for start in range(0, len(self.targets), batch_size):
            yield (self.outputs[start : start + batch_size],), self.targets[start : start + batch_size]

    def samples(self, split):
        return len(self.targets)

    def on(self, device):
        return self


@pytest.mark.parametrize(
    ("right", "samples", "low", "high"),
    # Wilson 1927; the first is Newcombe's (1998) own example, 81 of 263: 0.2553 to 0.3662.
    [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718), (20, 20, 0.8389, 1.0)],
)
def test_wilson_interval_has_the_published_values(right, samples, low, high):
    interval = wilson(right, samples)
    assert interval.value == right / samples
    assert interval.low == pytest.approx(low, abs=1e-4)
    assert interval.high == pytest.approx(high, abs=1e-4)


def test_mcnemar_is_the_exact_binomial():
    # 2 · (C(12,0) + C(12,1) + C(12,2)) / 2¹² = 2 · 79 / 4096
    assert mcnemar(2, 10) == pytest.approx(158 / 4096)
    assert mcnemar(10, 2) == mcnemar(2, 10)
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(4, 4) == 1.0
    assert mcnemar(0, 0) == 1.0


def test_paired_difference_holds_its_value_and_never_has_no_width():
    same = paired_difference(0, 0, 100)
    assert same.value == 0
    assert same.low == pytest.approx(-same.high)
    assert 0 < same.high < 0.03
    # Agresti and Min (2005): (c* − b*)/n* ± 1.96 · √(b* + c* − (c* − b*)²/n*)/n* with half a sample added to each cell.
    interval = paired_difference(10, 2, 100)
    assert interval.value == -0.08
    half = 1.959964 * math.sqrt(13 - 64 / 102) / 102
    assert interval.low == pytest.approx(-8 / 102 - half)
    assert interval.high == pytest.approx(-8 / 102 + half)


def test_accuracy_and_comparison_on_ten_samples():
    targets = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    before = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])).float()
    after = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 1])).float()
    first, second = (assess(nn.Identity(), Fixed(outputs, targets), Classification()) for outputs in (before, after))
    assert first.quality.test.value == 0.9
    assert second.quality.test.value == 0.8
    # Each right answer has a loss of −log(e/(e+1)) = 0.3133, each wrong one of 1.3133.
    assert first.quality.loss == pytest.approx(0.3133 + 0.1, abs=1e-4)
    found = compare(first, second)
    assert found.quality_difference.value == pytest.approx(-0.1)
    assert found.p_value == 1.0  # one won, two lost
    assert found.equal_predictions == 0.7
    assert found.per_class == [
        {"class": 0, "samples": 5, "before": 0.8, "after": 1.0, "change": pytest.approx(0.2)},
        {"class": 1, "samples": 5, "before": 1.0, "after": 0.6, "change": pytest.approx(-0.4)},
    ]


def test_regression_is_scored_by_r2_and_a_paired_t_test():
    from scipy import stats  # takes a second to import
    from sklearn.metrics import r2_score

    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(200, generator=generator)
    close = (targets + 0.1 * torch.randn(200, generator=generator)).unsqueeze(1)
    far = (targets + 0.5 * torch.randn(200, generator=generator)).unsqueeze(1)
    first, second = (assess(nn.Identity(), Fixed(outputs, targets), Regression()) for outputs in (close, far))
    assert first.quality.test.value == pytest.approx(r2_score(targets, close[:, 0]), abs=1e-6)
    assert first.quality.test.low < first.quality.test.value < first.quality.test.high < 1
    assert first.quality.loss == pytest.approx(float(((close[:, 0] - targets) ** 2).mean()))
    found = compare(first, second)
    errors = [(each[:, 0].double() - targets.double()) ** 2 for each in (close, far)]
    assert found.p_value == pytest.approx(stats.ttest_rel(*errors).pvalue)
    assert found.quality_difference.high < 0
    assert compare(first, first).p_value == 1.0


@pytest.mark.parametrize("samples", [2, 3, 10, 1000, 1_000_000])
@pytest.mark.parametrize("shift", [0, 0.01, 0.3, 2, 100])
def test_the_paired_t_test_is_that_of_scipy(samples, shift):
    from scipy import stats  # takes a second to import

    differences = np.random.default_rng(samples).normal(size=samples) + shift
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert paired_t(differences) == pytest.approx(expected, rel=1e-8, abs=1e-290)


def test_where_nothing_can_be_tested_there_is_no_evidence():
    for differences in ([], [0.3], [0.0, 0.0], [0.3, math.nan], [math.inf, 0.1]):
        assert paired_t(np.array(differences)) == 1.0
    assert paired_t(np.full(5, 0.25)) == 0.0


def test_r2_of_a_constant_target_is_all_or_nothing():
    targets = torch.full((4,), 2.0)
    assert Regression().score(targets.clone(), targets) == 1.0
    assert Regression().score(targets + 1, targets) == 0.0


def test_an_answer_that_is_not_a_number_is_wrong_and_has_no_loss():
    outputs = torch.full((4, 2), math.nan)
    found = assess(nn.Identity(), Fixed(outputs, torch.tensor([0, 1, 0, 1])), Classification())
    assert (found.quality.test.value, found.quality.validation, found.quality.loss) == (0, 0, None)
    assert compare(found, found).equal_predictions == 0


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 100, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def test_macs_of_a_known_convolution_agree_whatever_the_kind_of_module():
    module, example = Scripted().eval(), (torch.randn(2, 3, 10, 10),)
    # 8 · 3 · 3 · 3 multiply-adds at each of 100 places, and 800 · 10 in the linear layer.
    expected = 8 * 27 * 100 + 800 * 10
    assert count_macs(module, example) == expected
    assert count_macs(torch.jit.script(module), example) == expected
    assert count_macs(torch.jit.trace(module, example), example) == expected


def test_macs_are_told_by_weight_whatever_the_kind_of_module():
    module, example = Scripted().eval(), (torch.randn(2, 3, 10, 10),)
    by_weight = {"conv.weight": 8 * 27 * 100, "fc.weight": 800 * 10}
    for each in (module, torch.jit.script(module), torch.jit.trace(module, example)):
        assert macs_by_weight(each, example) == (sum(by_weight.values()), by_weight)
    assert macs_by_weight(module, ()) == macs_by_weight(module, (torch.zeros(1),)) == (None, {})


def test_what_attention_multiplies_with_itself_belongs_to_no_weight():
    make, example, expected = MACS["encoder"]
    total, by_weight = macs_by_weight(make().eval(), (example,))
    assert (total, sum(by_weight.values())) == (expected, 5 * 2048)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.lstm, self.fc = nn.Embedding(10, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        return self.fc(self.lstm(self.words(x))[0][:, -1])


MACS = {
    # Per token and layer: q, k, v and output 4·16·16, the two of the feed-forward 2·16·32; per pair of tokens 2·16.
    "encoder": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        torch.rand(2, 5, 16),
        5 * 2048 + 25 * 32,
    ),
    "lstm": (Reader, torch.zeros(2, 7, dtype=torch.int64), 7 * 4 * 12 * (8 + 12) + 12 * 3),
    "conv3d": (lambda: nn.Conv3d(1, 2, 3), torch.rand(2, 1, 5, 5, 5), 2 * 27 * 27),
}


@pytest.mark.parametrize("kind", list(MACS))
def test_macs_count_what_runs_in_fused_kernels(kind):
    make, example, expected = MACS[kind]
    module = make().eval()
    assert count_macs(module, (example,)) == expected
    frozen = torch.jit.script(module)
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    assert count_macs(frozen, (example,)) == expected


def test_macs_are_unknown_where_the_model_takes_no_single_sample():
    class NeedsTwo(nn.Module):
        def forward(self, x):
            return x.view(2, -1)[:, :3] + x[1]

    assert count_macs(NeedsTwo(), (torch.randn(2, 3),)) is None


def test_parameters_count_shared_weights_once_and_constants_of_frozen_files():
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    assert count_parameters(module) == (16, 16)
    with torch.no_grad():
        module[0].weight[0] = 0
    assert count_parameters(module) == (16, 12)
    frozen = torch.jit.freeze(torch.jit.script(Scripted().eval()))
    assert count_parameters(frozen)[0] == count_parameters(Scripted())[0]


def test_bytes_are_those_of_the_file_and_of_gzip(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 5000)
    raw, compressed = count_bytes(path)
    assert raw == 1_280_000
    assert compressed == pytest.approx(len(gzip.compress(path.read_bytes(), 6)), abs=16)


def test_latency_is_measured_alternately_and_tells_fast_from_slow():
    calls = []

    class Recording(nn.Module):
        def __init__(self, name, width):
            super().__init__()
            self.name, self.fc = name, nn.Linear(width, width)

        def forward(self, x):
            calls.append(self.name)
            return self.fc(self.fc.weight.new_zeros(len(x), self.fc.in_features))

    slow, fast, warnings = measure_latency(
        Recording("slow", 1500), Recording("fast", 4), (torch.randn(2, 4),), limit_s=0.3, batch_sizes=(1, 32)
    )
    assert not warnings
    assert [latency.batch_size for latency in slow] == [1, 32]
    assert all(latency.runs >= 10 for latency in slow + fast)
    assert slow[1].p50_ms > fast[1].p50_ms
    assert all(latency.p95_ms >= latency.p50_ms for latency in slow + fast)
    timed = calls[10:]  # after the warm-up
    assert timed[:8] == ["slow", "fast", "fast", "slow"] * 2


def test_a_batch_size_that_the_model_refuses_is_said():
    class OnlyTwo(nn.Module):
        def forward(self, x):
            return x.view(2, 3)

    before, after, warnings = measure_latency(
        OnlyTwo(), OnlyTwo(), (torch.randn(2, 3),), batch_sizes=(2, 32), limit_s=0.05
    )
    assert [latency.batch_size for latency in before] == [latency.batch_size for latency in after] == [2]
    assert warnings[0].startswith("Latency at batch 32 was not measured. The model's own code raised")


def test_batch_of_repeats_samples():
    (batch,) = batch_of((torch.tensor([[1], [2]]),), 5)
    assert batch.flatten().tolist() == [1, 2, 1, 2, 1]


def test_assessments_keep_the_answers_in_stored_order():
    outputs = torch.randn(600, 3)
    found = assess(nn.Identity(), Fixed(outputs, torch.zeros(600, dtype=torch.long)), Classification())
    assert isinstance(found, Assessment)
    assert torch.equal(found.outputs, outputs)
