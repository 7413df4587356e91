"""Recurrent layers whose gradients cuDNN would refuse on a card: they are told apart without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pared.compression.training.gradients import cudnn_disabled, cudnn_refuses

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, about traced recurrent layers
X = torch.rand(2, 3, 4)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.memory, self.out = kind(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.memory(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_in_eval_mode_do_without_cudnn(kind):
    """Tracing, freezing and exporting in eval mode make it permanent."""
    network = Recurrent(kind)
    forever = [
        torch.jit.trace(network.eval(), X).train(),
        torch.jit.freeze(torch.jit.script(network.eval())),
        torch.export.export(network.eval(), (X,)).module(),
    ]
    assert all(map(cudnn_refuses, forever))
    for either in (network, torch.jit.script(network)):
        assert not cudnn_refuses(either.train())
        assert cudnn_refuses(either.eval())
    assert not cudnn_refuses(torch.jit.trace(network.train(), X, check_trace=False))


def test_other_layers_keep_cudnn():
    network = nn.Sequential(nn.Conv1d(3, 2, 1), nn.ReLU())
    assert not any(map(cudnn_refuses, (network.eval(), torch.jit.trace(network, X))))
    with cudnn_disabled(False):
        assert torch.backends.cudnn.enabled
    with cudnn_disabled(True):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled
