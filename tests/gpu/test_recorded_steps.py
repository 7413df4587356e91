"""Training steps that are recorded once and launched again: they come to what steps one by one come to."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pared.compression.data import Data
from pared.compression.data.loader import Loader
from pared.compression.tasks.classification import Classification
from pared.compression.training import gradients
from pared.compression.training.calibration import learn_labels
from pared.compression.training.gradients import Gradients
from pared.compression.training.loop import fit
from pared.specs import Train
from tests.gpu.card import needs_card

pytestmark = [pytest.mark.gpu, needs_card]

LEARN = learn_labels(Classification())


class Net(nn.Module):
    """A convolution, a batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


class Branching(Net):
    """Goes one of two ways by what it computed."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))
        return y * 2.0 if bool(y.sum() > 0) else y


class ByChance(Net):
    """Goes one of two ways by a number drawn on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))
        return y * 2.0 if bool(torch.rand([1], device=torch.device("cpu")) > 0.5) else y


class Counting(Net):
    """Counts its calls, and lets the count weigh."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1)) / float(self.calls)


class Dropping(nn.Module):
    """Nothing but dropout before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(x.flatten(1)))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was recorded."""
    made: list[Any] = []
    record = gradients._Recorder._record

    def watched(self: Any, batch: Any) -> None:
        record(self, batch)
        made.append(self)

    monkeypatch.setattr(gradients._Recorder, "_record", watched)
    return made


def samples() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 255, (330, 1, 8, 8), generator=generator, dtype=torch.uint8)
    y = x[:, 0, :3].float().mean(2).argmax(1)
    splits = ("train", "val", "test")
    return Data({split: [x] for split in splits}, dict.fromkeys(splits, y), Classification(), 3, "given", "npz")


def trained(kind: type[nn.Module], data: Data | None = None, **fields: Any) -> tuple[dict[str, Tensor], list[float]]:
    torch.manual_seed(0)
    module = torch.jit.script(kind())
    config = Train(epochs=5, lr=0.001, batch_size=32, precision="float32", **fields)
    run = fit(module, data or samples(), config, LEARN, task=Classification(), seed=1, phase="x", device="cuda")
    return {name: tensor.cpu() for name, tensor in module.state_dict().items()}, [e.train_loss for e in run.history]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_recorded_steps_come_to_what_steps_one_by_one_come_to(optimizer, recorded, monkeypatch, finding):
    """The last batch of each epoch is smaller, and is never one of them."""
    found, losses = trained(Net, optimizer=optimizer)
    assert len(recorded) == 1
    monkeypatch.setattr(gradients, "WORTH_RECORDING", 1 << 30)
    expected, one_by_one = trained(Net, optimizer=optimizer)
    assert len(recorded) == 1
    finding["losses"] = [[round(loss, 5) for loss in each] for each in (losses, one_by_one)]
    assert losses == pytest.approx(one_by_one, rel=1e-2)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", [Branching, ByChance, Counting])
def test_what_may_go_another_way_is_not_recorded(kind, recorded, finding):
    _, losses = trained(kind)
    finding["losses"] = losses
    assert recorded == []
    assert losses[-1] < losses[0] or kind is Counting


def test_dropout_draws_anew_in_every_recorded_step(recorded, finding):
    module = torch.jit.script(Dropping()).cuda().train()
    steps = Gradients(module, LEARN, list(module.parameters()), nullcontext(), batch_size=16, steps=100, device="cuda")
    x, y = torch.rand(16, 1, 8, 8, device="cuda"), torch.zeros(16, dtype=torch.long, device="cuda")
    torch.manual_seed(3)
    losses = [float(steps((x,), y)) for _ in range(12)]
    finding["losses"] = losses
    assert len(recorded) == 1
    assert len(set(losses)) == 12


def test_a_recording_that_fails_leaves_training_and_dropout_as_they_are(monkeypatch, finding):
    class Waiting(Dropping):
        def forward(self, x: Tensor) -> Tensor:
            if torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize()
            return self.fc(self.drop(x.flatten(1)))

    module = Waiting().cuda().train()
    steps = Gradients(module, LEARN, list(module.parameters()), nullcontext(), batch_size=16, steps=100, device="cuda")
    x, y = torch.rand(16, 1, 8, 8, device="cuda"), torch.zeros(16, dtype=torch.long, device="cuda")
    losses = [float(steps((x,), y)) for _ in range(12)]
    finding["losses"] = losses
    assert len(set(losses)) == 12
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_samples_that_do_not_fit_on_the_card_come_to_the_same(finding):
    data = samples()
    data.loaders["cuda"] = Loader("cuda", 0)
    streamed, losses = trained(Net, data)
    resident, expected = trained(Net)
    finding["losses"] = losses
    assert losses == pytest.approx(expected, rel=1e-2)
    for name, tensor in resident.items():
        torch.testing.assert_close(streamed[name], tensor, rtol=1e-2, atol=1e-2)
