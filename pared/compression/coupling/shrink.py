"""Removes chosen indices from a model's tensors, and changes the sizes written in its code to match."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.interpreter import StorageKey, inlined_graph, nodes_of, storage_key
from pared.compression.coupling.model import CountedPatch, Removed
from pared.compression.coupling.reloading import reloaded, with_same_tensors
from pared.compression.coupling.writing import Indices, kept_count, write


def remove(
    module: torch.jit.ScriptModule, removed: Removed, patches: list[CountedPatch], *, to_count: bool = False
) -> torch.jit.ScriptModule:
    """A copy of a ScriptModule without these indices.

    Its own code is untouched, and shared with the original, unless a size written in it must change: then calls are
    inlined and that literal alone is replaced. The copy loads anywhere without source, as the original does.

    Args:
        to_count: what is made is run once, to count, and neither trained nor saved.
    """
    shrunk = sliced(module, removed)
    changed = changed_sizes(removed, patches)
    if not changed:
        return shrunk
    # With code of its own, and the parameters of what nobody else has.
    shrunk = reloaded(shrunk, own_parameters=False)
    graph = inlined_graph(shrunk)
    nodes = list(nodes_of(graph))
    indices = _removed_indices(removed)
    for counted in changed:
        write(graph, nodes[counted.patch.node], counted, indices)
    if to_count:
        return shrunk
    return reloaded(shrunk, own_parameters=False)  # so that what is checked and trained is what the file will say


def changed_sizes(removed: Removed, patches: list[CountedPatch]) -> list[CountedPatch]:
    """The sizes written in the code that a removal changes."""
    if not removed:
        return []
    indices = _removed_indices(removed)
    return [c for c in patches if c.patch.computed or kept_count(c, indices) != len(c.members) + c.patch.fixed]


def sliced(module: torch.jit.ScriptModule, removed: Removed) -> torch.jit.ScriptModule:
    """A copy that shares the code, with every named tensor replaced by its kept part. Tied tensors stay tied."""
    tensors = tensors_of(module)
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    by_storage = {storage_key(tensors[name]): by_dim for name, by_dim in removed.items()}
    twin = with_same_tensors(module)
    # A ScriptModule has no get_submodule, and a layer called `code` or `graph` is no attribute of it.
    owners = dict(twin.named_modules(remove_duplicate=False))
    parts: dict[StorageKey, Tensor] = {}
    for name, tensor in tensors.items():
        key = storage_key(tensor)
        if key not in parts:
            own = tensor.detach()
            part = kept_part(own, by_storage[key]) if key in by_storage else own.clone()
            parts[key] = nn.Parameter(part, requires_grad=tensor.requires_grad) if name in parameters else part
        owner, _, leaf = name.rpartition(".")
        setattr(owners[owner], leaf, parts[key])
    original: Any
    layer: Any
    for original, layer in zip(module.modules(), twin.modules(), strict=True):
        if hasattr(original, "_flat_weights"):  # a scripted recurrent layer's own list of its weights
            layer._flat_weights = [parts[storage_key(weight)] for weight in original._flat_weights]
    return twin


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names: a removal may name a tied tensor by any."""
    buffers = dict(module.named_buffers(remove_duplicate=False))
    return buffers | dict(module.named_parameters(remove_duplicate=False))


def kept_part(tensor: Tensor, by_dim: dict[str, list[int]]) -> Tensor:
    """The tensor without the removed indices of each dimension, contiguous."""
    for dim, indices in by_dim.items():
        keep = torch.ones(tensor.shape[int(dim)], dtype=torch.bool)
        keep[indices] = False
        tensor = tensor.index_select(int(dim), keep.nonzero().squeeze(1))
    return tensor.contiguous()


def _removed_indices(removed: Removed) -> Indices:
    return {(name, int(dim)): set(indices) for name, dims in removed.items() for dim, indices in dims.items()}
