"""Copies through TorchScript's format are what saving and loading the whole file gives."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from pared.compression.coupling.reloading import reloaded


class Net(nn.Module):
    """Layers that are one, weights that are one, and a buffer that is a part of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.b.weight, self.same = self.a.weight, self.a
        self.register_buffer("part", self.a.weight.detach()[1:3])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.same(x))) + self.part.sum()


class Recurrent(Net):
    """A layer that lists its weights once more."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.same(self.lstm(x[None])[0][0]))) + self.part.sum()


def through_a_file(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    return torch.jit.load(io.BytesIO(module.save_to_buffer()))


def shape_of(module: torch.jit.ScriptModule) -> list[object]:
    """Names, values, and which tensors share memory."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    shared = [(name, first.setdefault(each.untyped_storage().data_ptr(), name)) for name, each in tensors]
    places = [(each.dtype, each.shape, each.stride(), each.storage_offset(), each.tolist()) for _, each in tensors]
    return [shared, places, [name for name, _ in module.named_parameters()], len(module.save_to_buffer())]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", [Net, Recurrent])
@pytest.mark.parametrize("traced", [False, True])
def test_a_copy_is_as_the_file_loads_and_its_own(kind, traced):
    x = torch.rand(3, 4)
    net = kind().eval()
    made = torch.jit.trace(net, x) if traced else torch.jit.script(net)
    made.a.bias.requires_grad_(False)
    for module in (made, through_a_file(made)):
        copied, wanted = reloaded(module), through_a_file(module)
        assert shape_of(copied) == shape_of(wanted)
        assert torch.equal(copied(x), module(x))
        assert [each.requires_grad for each in copied.parameters()] == [
            each.requires_grad for each in module.parameters()
        ]
        assert not copied.training
        with torch.no_grad():
            copied.a.weight.zero_()
        assert not torch.equal(copied(x), module(x))
        assert module.a.weight.any()


def test_a_copy_that_is_only_read_shares_the_parameters_and_has_buffers_of_its_own():
    made = torch.jit.script(Net().eval())
    made.a.bias.requires_grad_(False)
    copied = reloaded(made, own_parameters=False)
    for (name, ours), theirs in zip(copied.named_parameters(), made.parameters(), strict=True):
        assert (ours.data_ptr(), ours.requires_grad) == (theirs.data_ptr(), theirs.requires_grad), name
        assert ours is not theirs
    assert torch.equal(copied(torch.ones(2, 4)), made(torch.ones(2, 4)))
    copied.norm.running_mean.fill_(5)
    copied.part.fill_(5)
    assert not made.norm.running_mean.any()
    assert not (made.a.weight == 5).any()
    assert copied.b.weight.data_ptr() == copied.a.weight.data_ptr()
