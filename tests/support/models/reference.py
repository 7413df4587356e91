"""What a channel-pruned model must answer: the original, in eager mode, with the removed channels zeroed.

Written from the issue's sentence alone and sharing no code with the engine, so that it can catch it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from tests.support.models.gallery import images, sequences

Removed = Mapping[str, Mapping[str, list[int]]]
Norm = nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | sequences.RmsNorm | sequences.UnitLength | images.ChannelsFirstNorm


def zeroed_outputs(original: nn.Module, removed: Removed, *inputs: Tensor) -> Any:
    """The eager original's outputs with every removed slice zero, norms taking statistics over what is kept."""
    module = copy.deepcopy(original).eval()
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    with torch.no_grad():
        for name, by_dim in removed.items():
            for dim, indices in by_dim.items():
                tensors[name].index_fill_(int(dim), torch.tensor(indices), 0.0)
    for name, child in module.named_modules():
        gone = removed.get(f"{name}.weight", {}).get("0")
        if gone and isinstance(child, Norm):
            kept = torch.ones(len(child.weight), dtype=torch.bool)
            kept[gone] = False
            norm_over_kept(child, kept)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it does not call the norms that were replaced
    try:
        with torch.no_grad():
            return module(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def norm_over_kept(norm: nn.Module, kept: Tensor) -> None:
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

    def rms_norm(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[..., kept] = F.rms_norm(x[..., kept], [int(kept.sum())], norm.weight[kept], norm.eps)
        return out

    def unit_length(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[..., kept] = F.normalize(x[..., kept], dim=-1) * norm.weight[kept]
        return out

    if isinstance(norm, nn.LayerNorm):
        norm.forward = layer_norm
    elif isinstance(norm, images.ChannelsFirstNorm):
        norm.forward = lambda x: layer_norm(x.movedim(1, -1)).movedim(-1, 1)
    elif isinstance(norm, sequences.UnitLength):
        norm.forward = unit_length
    else:
        norm.forward = group_norm if isinstance(norm, nn.GroupNorm) else rms_norm
