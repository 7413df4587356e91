"""What a channel-pruned model must answer: the original, in eager mode, with the removed channels zeroed.

Written from the issue's sentence alone and sharing no code with the engine, so that it can catch it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

Removed = Mapping[str, Mapping[str, list[int]]]


def zeroed_outputs(original: nn.Module, removed: Removed, inputs: Tensor) -> Tensor:
    """The eager original's outputs with every removed slice zero, norms taking statistics over what is kept."""
    module = copy.deepcopy(original).eval()
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for name, by_dim in removed.items():
            for dim, indices in by_dim.items():
                tensors[name].index_fill_(int(dim), torch.tensor(indices), 0.0)
    for name, child in module.named_modules():
        gone = removed.get(f"{name}.weight", {}).get("0")
        if gone and isinstance(child, nn.LayerNorm | nn.GroupNorm):
            kept = torch.ones(len(child.weight), dtype=torch.bool)
            kept[gone] = False
            norm_over_kept(child, kept)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it does not call the norms that were replaced
    try:
        with torch.no_grad():
            return module(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def norm_over_kept(norm: nn.LayerNorm | nn.GroupNorm, kept: Tensor) -> None:
    """Make `norm` take mean and variance over the kept elements alone, and answer zero elsewhere."""

    def layer_norm(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        weight, bias = norm.weight[kept], norm.bias[kept]
        out[..., kept] = F.layer_norm(x[..., kept], [int(kept.sum())], weight, bias, norm.eps)
        return out

    def group_norm(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for group in torch.arange(len(kept)).chunk(norm.num_groups):
            mine = group[kept[group]]
            if len(mine):
                out[:, mine] = F.group_norm(x[:, mine], 1, norm.weight[mine], norm.bias[mine], norm.eps)
        return out

    norm.forward = layer_norm if isinstance(norm, nn.LayerNorm) else group_norm  # type: ignore[method-assign]
