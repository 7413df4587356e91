"""Devices and tensors among the values that a module holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

Graph = Any  # _C.Graph
Node = Any  # _C.Node
Value = Any  # _C.Value
CPU = torch.device("cpu")
_C: Any = torch._C  # whose types lack most of what is used here


def leaves(value: Any) -> Iterator[torch.device | Tensor]:
    """The devices and tensors in a value."""
    if isinstance(value, (torch.device, Tensor)):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))


def is_away(value: Any, target: torch.device) -> bool:
    """Whether a device or tensor in the value is not on the target."""
    return any((leaf if isinstance(leaf, torch.device) else leaf.device) != target for leaf in leaves(value))


class Moved:
    """Moves values to a target; a tensor that comes again, under another name or in a list, is moved once."""

    def __init__(self, target: torch.device) -> None:
        self.target = target
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # with the tensor that has this id, so that it keeps it

    def know(self, tensor: Tensor, moved: Tensor) -> None:
        """Something else has moved this tensor."""
        self._known[id(tensor)] = tensor, moved

    def of(self, value: Any) -> Any:
        """A value with its devices and tensors on the target."""
        if isinstance(value, torch.device):
            return self.target
        if isinstance(value, Tensor):
            if id(value) not in self._known:
                self.know(value, self._tensor(value))
            return self._known[id(value)][1]
        if isinstance(value, (list, tuple)):
            parts = [self.of(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, dict):
            return {key: self.of(part) for key, part in value.items()}
        return value

    def _tensor(self, tensor: Tensor) -> Tensor:
        if tensor.device == self.target:
            return tensor
        moved = tensor.detach().to(self.target)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(moved, requires_grad=tensor.requires_grad)
        return moved.requires_grad_(tensor.requires_grad)


def device_named(*name: Any) -> torch.device | None:
    """The device of a name, such as `cuda:0`; None, if there is none."""
    try:
        return torch.device(*name)
    except (RuntimeError, TypeError):
        return None
