"""The training loop, on small problems that are learned in well under a second."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pared.compression.measuring.running import forward
from pared.compression.pruning.importance import CalibrationStatistics
from pared.compression.pruning.weights import Masks, weight_masks
from pared.compression.tasks.classification import Classification
from pared.compression.tasks.regression import Regression
from pared.compression.training import progress
from pared.compression.training.calibration import learn_labels
from pared.compression.training.gradual import GradualSchedule
from pared.compression.training.loop import fit
from pared.compression.work import SilentObserver
from pared.errors import Diverged, ModelFailed
from pared.specs import Train


class Blobs:
    """Three classes around three points, as training samples and as few for validation."""

    def __init__(self, samples=90, regression=False):
        generator = torch.Generator().manual_seed(1)
        centres = torch.tensor([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
        self.splits = {}
        for split, count in {"train": samples, "val": 30, "test": 30}.items():
            y = torch.arange(count) % 3
            x = centres[y] + torch.randn(count, 4, generator=generator)
            self.splits[split] = x, (x @ torch.ones(4)) if regression else y

    def samples(self, split):
        return len(self.splits[split][1])

    def order(self, split, generator=None):
        count = len(self.splits[split][1])
        return torch.arange(count) if generator is None else torch.randperm(count, generator=generator)

    def take(self, split, indices):
        x, y = self.splits[split]
        return (x[indices],), y[indices]

    def batches(self, split, batch_size, generator=None):
        assert split != "test", "training must never look at the test split"
        for indices in torch.split(self.order(split, generator), batch_size):
            yield self.take(split, indices)

    def on(self, device):
        return self


class Net(nn.Module):
    """Batch-norm and dropout: both have state or chance that a resumed run must get right."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(4, 16)
        self.bn = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.2)
        self.fc2 = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc2(self.drop(torch.relu(self.bn(self.fc1(x)))))


def net(kind="eager"):
    torch.manual_seed(0)
    module = Net()
    if kind == "eager":
        return module
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


LEARN = learn_labels(Classification())


def run(module, config, **kwargs):
    return fit(module, Blobs(), config, LEARN, task=Classification(), seed=3, phase="retrain", **kwargs)


@pytest.mark.parametrize("kind", ["eager", "scripted"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_pruned_weights_stay_exactly_zero_through_momentum_and_weight_decay(kind, optimizer):
    module = net(kind)
    run(module, Train(epochs=2, lr=0.05, batch_size=16))  # momentum and weights are well away from zero
    masks = weight_masks(module, amount=0.7)
    before = masks.sparsity()
    config = Train(epochs=8, optimizer=optimizer, lr=0.05, momentum=0.9, weight_decay=0.1, batch_size=8)
    kept_states = []
    run(module, config, masks=masks, keep=kept_states.append)
    weights = dict(module.named_parameters())
    pruned = sum(int((weights[name] == 0).sum()) for name in masks.kept)
    total = sum(weights[name].numel() for name in masks.kept)
    assert pruned == round(0.7 * total)
    assert masks.sparsity() == before
    names = [name for name, _ in module.named_parameters()]
    for state in kept_states:
        for index, buffers in state["optimizer"]["state"].items():
            if names[index] in masks.kept:
                for value in buffers.values():
                    if torch.is_tensor(value) and value.dim():
                        assert not value[~masks.kept[names[index]]].any()


@pytest.mark.parametrize("kind", ["eager", "scripted"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(kind, optimizer):
    config = Train(epochs=5, optimizer=optimizer, lr=0.02, weight_decay=0.01, batch_size=16)
    whole = net(kind)
    masks = weight_masks(whole, amount=0.5)
    expected = run(whole, config, masks=masks)

    class Killed(Exception):
        pass

    saved: list[bytes] = []

    def keep_and_die(state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        saved.append(buffer.getvalue())
        if state["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        run(net(kind), config, masks=masks, keep=keep_and_die)
    torch.manual_seed(999)  # another process, another state of chance
    resumed = net(kind)
    state = torch.load(io.BytesIO(saved[-1]), weights_only=True)
    found = run(resumed, config, masks=masks, resume=state)

    assert found.best_epoch == expected.best_epoch
    assert [r.model_dump(exclude={"seconds"}) for r in found.history] == [
        r.model_dump(exclude={"seconds"}) for r in expected.history
    ]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_resumed_run_on_augmented_samples_ends_with_the_same_bits():
    config = Train(epochs=4, lr=0.02, batch_size=16, augment={"mixup": {"alpha": 0.4, "p": 0.8}})
    learn = learn_labels(Classification(), config.augment)

    def weights_of(config, keep=lambda _: None, resume=None):
        module = net()
        how = {"task": Classification(), "seed": 3, "phase": "retrain", "keep": keep, "resume": resume}
        fit(module, Blobs(), config, learn if config.augment else LEARN, **how)
        return module.state_dict()

    states = []
    whole = weights_of(config, states.append)
    torch.manual_seed(999)
    resumed = weights_of(config, resume=states[1])
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    plain = weights_of(config.model_copy(update={"augment": None}))
    assert not torch.equal(plain["fc1.weight"], whole["fc1.weight"])


def test_a_run_killed_after_its_last_epoch_resumes_to_its_end():
    config = Train(epochs=2, lr=0.02)
    states: list[dict[str, Any]] = []
    module = net()
    expected = run(module, config, keep=states.append)
    again = net()
    assert run(again, config, resume=states[-1]) == expected
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


def test_the_best_epoch_is_kept_not_the_last():
    module = net()
    good = run(module, Train(epochs=6, lr=0.05))
    before = copy.deepcopy(module.state_dict())
    # Steps so large that every epoch is worse than the start.
    worse = run(module, Train(epochs=2, lr=5.0))
    assert worse.best_epoch == 0
    assert worse.best_score == good.best_score
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in before.items())


def test_among_equal_scores_the_lowest_validation_loss_wins():
    module = net()
    saved = []
    found = run(module, Train(epochs=12, lr=0.05), keep=lambda state: saved.append(state["best"]))
    best = [(record.validation, record.epoch) for record in found.history]
    assert found.best_score == max(score for score, _ in best)
    assert [(b["score"], -b["loss"]) for b in saved] == sorted((b["score"], -b["loss"]) for b in saved)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    def trained(seed):
        module = net()
        fit(module, Blobs(), Train(epochs=3, lr=0.1), LEARN, task=Classification(), seed=seed, phase="retrain")
        return module.fc1.weight

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_one_sgd_step_equals_hand_arithmetic():
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(2.0)

    class One:
        def samples(self, split):
            return 1

        def batches(self, split, batch_size, generator=None):
            yield (torch.tensor([[3.0]]),), torch.tensor([3.0])

        def on(self, device):
            return self

    # L = (w·3 − 3)² = 9; dL/dw = 2·3·3 = 18, plus weight decay 0.5·2 = 1; w = 2 − 0.1·19 = 0.1, whose loss is 7.29.
    config = Train(epochs=1, lr=0.1, momentum=0.0, weight_decay=0.5)
    found = fit(module, One(), config, learn_labels(Regression()), task=Regression(), seed=0, phase="x")
    assert found.history[0].train_loss == 9.0
    assert found.best_epoch == 1
    assert module.weight.item() == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["eager", "scripted"])
def test_bfloat16_is_computed_in_and_kept_nowhere(kind):
    module, outputs = net(kind), []

    def loss(trained, inputs, targets):
        outputs.append(forward(trained, inputs, Classification()))
        return Classification().loss(outputs[-1], targets)

    config = Train(epochs=2, lr=0.05, batch_size=16, precision="bfloat16")
    found = fit(module, Blobs(), config, loss, task=Classification(), seed=3, phase="retrain")
    assert {output.dtype for output in outputs} == {torch.float32}, "a loss of 8 bits is too coarse"
    assert all(torch.equal(output, output.bfloat16().float()) for output in outputs)
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32, torch.int64}
    assert found.best_score > 0.8
    exact = net(kind)
    run(exact, Train(epochs=2, lr=0.05, batch_size=16))
    assert not all(torch.equal(a, b) for a, b in zip(module.parameters(), exact.parameters(), strict=True))
    again = net(kind)
    run(again, config)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


def test_divergence_says_what_to_try():
    with pytest.raises(Diverged, match=r"learning rate of 10.* Try 1\b"):
        fit(
            nn.Linear(4, 1),
            Blobs(regression=True),
            Train(epochs=60, lr=10, batch_size=1),
            learn_labels(Regression()),
            task=Regression(),
            seed=0,
            phase="x",
        )


def test_a_last_batch_of_one_does_not_break_batch_norm():
    data = Blobs(samples=33)
    found = fit(net(), data, Train(epochs=1, batch_size=16), LEARN, task=Classification(), seed=0, phase="x")
    assert len(found.history) == 1


def test_a_frozen_file_says_that_nothing_can_be_trained():
    frozen = torch.jit.freeze(net("scripted").eval())
    with pytest.raises(ModelFailed, match="frozen TorchScript"):
        run(frozen, Train(epochs=1))


def test_weights_that_the_file_froze_are_left_alone():
    module = net()
    module.fc1.requires_grad_(False)
    before = module.fc1.weight.clone()
    run(module, Train(epochs=3, lr=0.1))
    assert torch.equal(module.fc1.weight, before)


class Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x), x


class Breaks(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(x)


@pytest.mark.parametrize("script", [False, True])
@pytest.mark.parametrize(("module", "text"), [(Tuple(), "returns a tuple"), (Breaks(), "cannot be multiplied")])
def test_a_model_that_cannot_be_trained_fails_in_its_own_words(module, text, script):
    with pytest.raises(ModelFailed, match=text):
        run(torch.jit.script(module) if script else module, Train(epochs=1))


class Tokens(nn.Module):
    """Two inputs, one of them integers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.fc = nn.Linear(8, 2)

    def forward(self, tokens, x):
        return self.fc(torch.cat([self.embed(tokens).mean(1), x], 1))


def test_several_inputs_and_token_ids_are_learned():
    tokens = torch.randint(0, 7, (64, 5), generator=torch.Generator().manual_seed(0))
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    y = ((tokens > 3).float().mean(1) + 0.1 * x[:, 0] > 0.45).long()

    class Pairs:
        def samples(self, split):
            return len(y)

        def batches(self, split, batch_size, generator=None):
            yield (tokens, x), y

        def on(self, device):
            return self

    module = torch.jit.script(Tokens())
    found = fit(
        module, Pairs(), Train(epochs=60, optimizer="adam", lr=0.1), LEARN, task=Classification(), seed=0, phase="x"
    )
    assert found.best_score > 0.9


def test_a_long_epoch_gives_signs_of_life(monkeypatch):
    class Counting(SilentObserver):
        def __init__(self):
            self.fractions, self.metrics = [], []

        def progress(self, fraction, *, epoch=None, epochs=None):
            self.fractions.append(fraction)

        def metric(self, name, value, *, step, phase):
            self.metrics.append((name, step, phase))

    monkeypatch.setattr(progress, "_SIGN_OF_LIFE_S", 0.0)  # every batch is then a long one
    observer = Counting()
    run(net(), Train(epochs=2, batch_size=9), observer=observer, span=(0.2, 0.6))
    assert len(observer.fractions) > 20
    assert min(observer.fractions) == 0.2
    assert max(observer.fractions) == pytest.approx(0.6)
    assert ("train_loss", 1, "retrain") in observer.metrics
    assert ("validation_accuracy", 2, "retrain") in observer.metrics


def test_convolutions_of_every_rank_train():
    class Volume(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Conv1d(1, 2, 2), nn.Conv2d(2, 2, 2), nn.Conv3d(2, 3, 1)

        def forward(self, x):
            x = self.one(x[:, None])
            x = self.two(torch.stack([x, x], dim=2))
            return self.three(x[:, :, None]).flatten(2).mean(2)

    module = Volume()
    found = run(module, Train(epochs=1))
    assert len(found.history) == 1
    assert all(parameter.is_contiguous() for parameter in module.parameters())


def test_the_loss_on_labels_equals_hand_arithmetic():
    module = nn.Identity()
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    loss = LEARN(module, (logits,), torch.tensor([0, 1]))
    # −log ½ = 0.6931; −log(1 / (e + 1)) = 1.3133; the mean is 1.0032.
    assert loss.item() == pytest.approx(1.0032, abs=1e-4)
    assert torch.equal(loss, functional.cross_entropy(logits, torch.tensor([0, 1])))


def test_masks_come_back_from_a_checkpoint():
    masks = weight_masks(net(), amount=0.5)
    assert Masks.from_state(masks.state()).sparsity() == masks.sparsity()


# -- ramps, rates and early stop ----------------------------------------------------------------


def to_ninety_percent(share=0.6, regrow=0.0):
    def masks(module, progress, slopes):
        assert not slopes, "nobody asked for them"
        amount = 0.9 * (1 - (1 - progress) ** 3)
        return weight_masks(module, amount=amount, regrow=regrow * (1 - progress))

    return GradualSchedule(masks, share)


RAMPED = Train(epochs=5, lr=0.1, batch_size=4, lr_schedule="cosine", warmup=0.05, nesterov=True, weight_decay=1e-4)


@pytest.mark.parametrize("kind", ["eager", "scripted"])
@pytest.mark.parametrize("regrow", [0.0, 0.3])
def test_a_ramp_ends_at_its_amount_with_exact_zeros(kind, regrow):
    module = net(kind)
    found = run(module, RAMPED, ramp=to_ninety_percent(regrow=regrow))
    weights = 4 * 16 + 16 * 3
    assert sum(int(kept.sum()) for kept in found.masks.kept.values()) == weights - round(0.9 * weights)
    for name, parameter in module.named_parameters():
        if name in found.masks.kept:
            assert (parameter[~found.masks.kept[name]] == 0).all()
    assert found.best_epoch > 3, "the epochs before the ramp's end have too many weights"


def test_a_ramp_that_is_stopped_goes_on_with_the_same_bits():
    whole, states = net(), []
    expected = run(whole, RAMPED, ramp=to_ninety_percent(regrow=0.2), keep=states.append)
    for state in states:
        again = net()
        found = run(again, RAMPED, ramp=to_ninety_percent(regrow=0.2), resume=state)
        assert found.best_epoch == expected.best_epoch
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))
        assert all(torch.equal(found.masks.kept[name], kept) for name, kept in expected.masks.kept.items())


def test_a_ramp_is_told_the_slopes_of_the_training():
    told, seen = [], []

    def masks(module, progress, slopes):
        told.append((len(seen), {name: tensor.clone() for name, tensor in slopes.items()}))
        return weight_masks(module, amount=0.5 * progress)

    def loss(module, inputs, targets):
        seen.append({})
        return LEARN(module, inputs, targets)

    module = net()
    for name, parameter in module.named_parameters():
        parameter.register_hook(lambda gradient, name=name: seen[-1].update({name: gradient.clone()}))
    ramp = GradualSchedule(masks, 0.6, by_gradients=True)
    fit(module, Blobs(), RAMPED, loss, task=Classification(), seed=3, phase="retrain", ramp=ramp)
    steps, last = told[-1]
    assert len(told) > 10
    assert set(last) == {name for name, _ in module.named_parameters()}
    ages = torch.arange(steps).flip(0)
    shares = 0.99**ages / (0.99**ages).sum()
    for name, slope in last.items():
        squares = torch.stack([gradients[name] for gradients in seen[:steps]]).square()
        torch.testing.assert_close(slope, torch.tensordot(shares, squares, 1).sqrt())


def test_a_ramp_by_slopes_that_is_stopped_goes_on_with_the_same_bits():
    def masks(module, progress, slopes):
        gradients = CalibrationStatistics(lambda: [slopes], dict)
        return weight_masks(module, amount=0.9 * progress, criterion="hessian", statistics=gradients)

    ramp = GradualSchedule(masks, 0.8, by_gradients=True)
    whole, states = net(), []
    run(whole, RAMPED, ramp=ramp, keep=states.append)
    for state in states:
        again = net()
        run(again, RAMPED, ramp=ramp, resume=state)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_a_ramp_of_a_single_step_is_done_in_it():
    module = net()
    found = run(module, Train(epochs=1, batch_size=4096), ramp=to_ninety_percent())
    assert found.masks.sparsity() == pytest.approx(0.9, abs=0.01)
    assert found.best_epoch == 1


def test_the_rate_warms_up_and_falls_along_a_cosine(monkeypatch):
    seen = []
    step = torch.optim.SGD.step

    def noted(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    samples = Blobs().samples("train")
    config = Train(epochs=2, lr=0.2, batch_size=samples // 5, lr_schedule="cosine", warmup=0.2)
    run(net(), config)
    steps = len(seen)
    cosine = [0.2 * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    warm = 0.2 * steps
    expected = [rate * ((step + 1) / (warm + 1) if step < warm else 1) for step, rate in enumerate(cosine)]
    assert seen == pytest.approx(expected)


def test_training_stops_when_nothing_gets_better_and_stays_stopped():
    states = []
    config = Train(epochs=50, lr=0.1, patience=3)
    found = run(net(), config, keep=states.append)
    assert len(found.history) < 50
    assert len(found.history) == found.best_epoch + 3
    again = run(net(), config, resume=states[-1])
    assert [record.epoch for record in again.history] == [record.epoch for record in found.history]
