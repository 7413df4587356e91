"""A module that holds the tensors of a state dict under their own names, and cannot run."""

from __future__ import annotations

from typing import Any, NoReturn, Self

from torch import Tensor, nn

from pared.compression.coupling.interpreter import storage_key
from pared.compression.loading.state_dicts import ReadState
from pared.errors import InvalidArchitecture

_STATISTICS = ("running_mean", "running_var")  # of batch norms, which no training changes


def is_parameter(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of a state dict is trained, as far as its name and type tell."""
    return tensor.is_floating_point() and not name.endswith(_STATISTICS)


class WeightsAlone(nn.Module):
    """The tensors of a state dict. Names that were one tensor in the file are one here.

    The names stand as they are, full stops and all: a tree of modules could not hold every name that a file may have.
    """

    def __init__(self, read: ReadState) -> None:
        super().__init__()
        shared: dict[Any, nn.Parameter] = {}
        for name, tensor in read.state.items():
            if not is_parameter(name, tensor):
                self._buffers[name] = tensor
                continue
            stored = read.as_stored.get(read.origin.names[name])
            key = name if stored is None else storage_key(stored)
            self._parameters[name] = shared.setdefault(key, nn.Parameter(tensor.detach()))

    def train(self, mode: bool = True) -> Self:
        """It has no modes, and a tensor may be called `training`."""
        return self

    def forward(self, *_: Any) -> NoReturn:
        """It has no code.

        Raises:
            InvalidArchitecture: always.
        """
        raise InvalidArchitecture("A state dict holds weights only: to run them, give the `architecture`.")
