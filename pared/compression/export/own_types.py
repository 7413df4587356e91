"""Gives results the floating-point types of their upload: what was half precision is so again."""

from __future__ import annotations

import torch
from torch import Tensor

from pared.compression.loading import LoadedModel, own_types


def round_to_own_types(loaded: LoadedModel) -> None:
    """Round the module's tensors, in place, to numbers that the upload's types have: what is measured is what is kept.

    The module stays in float32. Zeros stay zeros, and what nothing has changed stays as it is.
    """
    if not loaded.forms:
        return
    type_of = own_types(loaded.forms)
    with torch.no_grad():
        for name, tensor in [*loaded.module.named_parameters(), *loaded.module.named_buffers()]:
            if tensor.is_floating_point() and tensor.dtype != type_of(name):
                tensor.copy_(tensor.to(type_of(name)))


def own_state(loaded: LoadedModel) -> dict[str, Tensor]:
    """The state dict of its module in the upload's types; tensors that keep their type are not copied."""
    type_of = own_types(loaded.forms)
    return {
        name: tensor.detach().to(type_of(name)) if tensor.is_floating_point() else tensor.detach()
        for name, tensor in loaded.module.state_dict().items()
    }
