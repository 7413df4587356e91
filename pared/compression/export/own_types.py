"""Gives results the floating-point types of their upload: what was half precision is so again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pared.compression.loading import LoadedModel


def round_to_own_types(loaded: LoadedModel) -> None:
    """Round the module's tensors, in place, to numbers that the upload's types have: what is measured is what is kept.

    The module stays in float32. Zeros stay zeros, and what nothing has changed stays as it is.
    """
    tensors = {**dict(loaded.module.named_parameters()), **dict(loaded.module.named_buffers())}
    with torch.no_grad():
        for name, dtype in loaded.dtypes.items():
            tensor = tensors.get(name)
            if tensor is not None and tensor.is_floating_point() and tensor.dtype != dtype:
                tensor.copy_(tensor.to(dtype))


def own_state(loaded: LoadedModel, module: nn.Module) -> dict[str, Tensor]:
    """The state dict of its module in the upload's types; tensors that keep their type are not copied."""
    return {
        name: tensor.detach().to(loaded.dtypes.get(name, tensor.dtype)) for name, tensor in module.state_dict().items()
    }
