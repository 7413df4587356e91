"""No result answers NaN or infinity where the upload gives finite numbers, by any path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression import distill, prune
from pared.compression.coupling.verify import relative_difference
from pared.compression.measuring.finite import hold_finite_on_example
from pared.compression.measuring.quality import assess, compare
from pared.compression.tasks.classification import Classification
from pared.compression.tasks.regression import Regression
from pared.compression.training.loop import fit
from pared.errors import ModelFailed, NotFinite
from pared.specs import Train

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
EXAMPLE = [{"shape": [4, 6]}]


class Fixed:
    """The outputs themselves as inputs, for `nn.Identity`."""

    def __init__(self, outputs, targets):
        self.outputs, self.targets = outputs, targets

    def samples(self, split):
        return len(self.targets)

    def batches(self, split, batch_size, generator=None):
        yield (self.outputs,), self.targets

    def on(self, device):
        return self


class Cosine(nn.Module):
    """Divides by the lengths of its weights, so that a row of zeros gives 0/0; no plain weight says the same."""

    def __init__(self, classes=3):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 16, bias=False)
        self.fc3 = nn.Linear(16, classes)

    def forward(self, x):
        x = torch.relu(self.fc1(x))
        return self.fc3(self.fc2(x) / self.fc2.weight.norm(2, 1))


class Masked(nn.Module):
    """Answers −inf for a class on purpose."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 4)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, -math.inf]))

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x))) + self.mask


def test_only_what_is_expected_is_no_difference():
    nan, inf = math.nan, math.inf
    assert not relative_difference(torch.tensor([nan]), torch.ones(1)) <= 1
    assert not relative_difference(torch.ones(1), torch.tensor([nan])) <= 1
    assert relative_difference(torch.tensor([1.0]), torch.tensor([inf])) == inf
    assert relative_difference(torch.tensor([nan, -inf, 2.0]), torch.tensor([nan, -inf, 2.0])) == 0
    assert relative_difference(torch.tensor([-inf, 5.0]), torch.tensor([-inf, 4.0])) == 0.25


# -- scores -------------------------------------------------------------------------------------


def test_nan_is_no_class_and_no_better_score():
    targets = torch.tensor([0, 0, 0, 1])
    outputs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    upload = assess(nn.Identity(), Fixed(outputs, targets), Classification())
    broken = outputs.clone()
    broken[2] = math.nan  # argmax says 0, which would be right
    assert assess(nn.Identity(), Fixed(broken, targets), Classification()).quality.test.value == 0.75
    with pytest.raises(NotFinite, match=r"^The student answers NaN .* 1 of 4 samples of the validation .*sample 2"):
        assess(nn.Identity(), Fixed(broken, targets), Classification(), upload=upload, role="The student")


@pytest.mark.parametrize("task", [Classification(), Regression()], ids=lambda task: task.name)
def test_what_the_upload_answers_so_on_purpose_stays_allowed(task):
    outputs = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    outputs[3], outputs[5, 1] = math.nan, -math.inf
    targets = torch.zeros(8, dtype=torch.int64) if isinstance(task, Classification) else torch.randn(8, 2)
    upload = assess(nn.Identity(), Fixed(outputs, targets), task)
    result = assess(nn.Identity(), Fixed(outputs + 0.1, targets), task, upload=upload)
    assert result.quality.samples == (8 if isinstance(task, Classification) else 6)
    assert math.isfinite(result.quality.test.value)
    assert math.isfinite(result.quality.validation)
    found = compare(upload, result)
    assert all(map(math.isfinite, (found.p_value, found.quality_difference.value, found.quality_difference.low)))
    if isinstance(task, Regression):
        assert math.isfinite(result.quality.loss)
    with pytest.raises(NotFinite):
        assess(nn.Identity(), Fixed(outputs.index_fill(0, torch.tensor([0]), math.inf), targets), task, upload=upload)


def test_an_upload_that_answers_no_number_at_all_is_refused():
    with pytest.raises(ModelFailed, match="no sample with finite numbers"):
        assess(nn.Identity(), Fixed(torch.full((4, 1), math.nan), torch.zeros(4)), Regression())


def test_an_epoch_that_answers_nan_is_never_the_best():
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):  # wrong at first; after a step the logarithm of a negative number
            return torch.stack([-x[:, 0].abs() - self.scale.log(), x[:, 0].abs()], dim=1)

    module, data = Fragile(), Fixed(torch.ones(8, 1), torch.zeros(8, dtype=torch.int64))
    config = Train(epochs=1, lr=10.0, momentum=0.0)

    def loss(trained, inputs, targets):
        return trained.scale.sum()

    found = fit(module, data, config, loss, task=Classification(), seed=0, phase="x")
    assert (found.best_epoch, found.best_score) == (0, 0)
    assert found.history[0].validation is None
    assert module.scale.item() == 1


# -- examples -----------------------------------------------------------------------------------


def test_an_example_alone_shows_it_and_names_the_layer():
    upload = torch.jit.script(Cosine().eval())
    broken = Cosine()
    broken.load_state_dict(upload.state_dict())
    with torch.no_grad():
        broken.fc2.weight[3] = 0
    with pytest.raises(NotFinite, match=r"first NaN is made by torch.div behind the layer fc2.*exclude"):
        hold_finite_on_example(upload, torch.jit.script(broken.eval()), (X[:4],))
    hold_finite_on_example(torch.jit.script(broken), torch.jit.script(broken), (X[:4],))


def test_a_broken_weight_that_the_example_does_not_reach_is_found():
    upload, broken = (nn.Embedding(9, 2) for _ in range(2))
    with torch.no_grad():
        broken.weight[8] = math.inf
    with pytest.raises(NotFinite, match=r"tensor weight holds 2 numbers"):
        hold_finite_on_example(upload, broken, (torch.zeros(2, 3, dtype=torch.int64),))
    hold_finite_on_example(broken, broken, (torch.zeros(2, 3, dtype=torch.int64),))


# -- jobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"retrain": None},
        {"retrain": {"epochs": 1}},
        {"retrain": {"epochs": 2}, "schedule": "iterative", "steps": 2},
        {"retrain": {"epochs": 1}, "quantize": {"bits": 2}, "outputs": ["packed"]},
        {"data": None, "example_inputs": EXAMPLE},
    ],
    ids=["scored", "retrained", "steps", "shared", "no data"],
)
def test_a_pruned_model_that_answers_nan_is_no_success(fields):
    torch.manual_seed(0)
    fields = {"data": (X, Y), "amount": 0.95, "include": ["fc2"], **fields}
    with pytest.raises(NotFinite, match="behind the layer fc2"):
        prune(Cosine().eval(), granularity="weight", **fields)


def test_a_search_passes_over_what_answers_nan(tmp_path):
    torch.manual_seed(0)
    fields = {"include": ["fc2"], "target": {"max_accuracy_drop": 0.9}, "directory": tmp_path, "retrain": None}
    found = prune(Cosine().eval(), (X, Y), granularity="weight", **fields).report
    broken = [point for point in found.frontier if point.validation is None]
    assert broken
    assert not any(point.met for point in broken)
    assert 0 < found.goal.amount < min(point.amount for point in broken)
    lines = (tmp_path / "frontier.csv").read_text().splitlines()
    assert len(lines) == len(found.frontier) + 1
    assert "nan" not in "".join(lines).lower()


def test_a_search_of_which_every_point_answers_nan_says_so():
    class Fragile(Cosine):  # any zero breaks it
        def forward(self, x):
            return super().forward(x) + 0 * self.fc2.weight.square().log().sum()

    with pytest.raises(NotFinite, match=r"torch\.mul behind the layer fc2"):
        prune(Fragile().eval(), (X, Y), granularity="weight", target={"max_accuracy_drop": 0.9}, retrain=None)


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_masked_classes_are_pruned_and_retrained_as_ever(granularity):
    torch.manual_seed(0)
    retrain = {"epochs": 1, "teach": None}
    found = prune(Masked().eval(), (X, Y), granularity=granularity, amount=0.3, retrain=retrain)
    assert torch.equal(found.model(X).isfinite(), torch.tensor([True, True, True, False]).expand(60, 4))


class Narrow(nn.Module):
    """Divides by nothing where its input is beyond what it was trained on."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x) / (x.abs().amax(1, keepdim=True) < 50)


def test_a_student_that_fails_on_test_samples_alone_is_no_success(tmp_path):
    path, x = tmp_path / "data.npz", X.clone()
    x[50, 2] = 99
    parts = {"train": slice(30), "val": slice(30, 45), "test": slice(45, 60)}
    np.savez(
        path,
        **{f"x_{name}": x[part] for name, part in parts.items()},
        **{f"y_{name}": Y[part] for name, part in parts.items()},
    )
    teacher = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(NotFinite, match=r"The student answers NaN or infinity for 1 of 15 .* test split \(sample 5"):
        distill(teacher, Narrow().eval(), path, train={"epochs": 1})
