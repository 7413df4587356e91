"""Puts the smaller weights into a copy of the uploaded checkpoint, in the place of the old ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pared.compression.coupling.interpreter import storage_key
from pared.compression.export.own_types import own_state
from pared.compression.loading import LoadedModel, load_weights_only
from pared.compression.loading.checkpoints import is_optimizer, parts_of
from pared.compression.loading.loaded import Origin
from pared.errors import ExportFailed
from pared.wording import shortened

FILE = "model.ckpt"


def write_checkpoint(loaded: LoadedModel, directory: Path) -> list[Path]:
    """Write the upload's own checkpoint again: its nesting, names and types, and all else that lies in it.

    The state of optimizers goes, for it is that of the old weights.

    Raises:
        ExportFailed: the upload is no checkpoint, or the file does not hold what was written into it.
    """
    origin = loaded.origin
    if origin is None or origin.container not in ("zip_state_dict", "legacy_state_dict"):
        raise ExportFailed(
            "A checkpoint is written into the wrapping that the upload had, and this upload is no state dict that "
            "torch.save wrote. Ask for `state_dict`."
        )
    whole = load_weights_only(origin.path, legacy=origin.container == "legacy_state_dict")
    _drop_optimizers(whole)
    old = _at(whole, origin)
    new = _replaced(old, own_state(loaded), origin)
    old.clear()  # in place: whatever else in the file is the same dict stays the same
    old.update(new)
    path = directory / FILE
    torch.save(whole, path)
    again = _at(load_weights_only(path, legacy=False), origin)
    tensors = {name: tensor for name, tensor in new.items() if isinstance(tensor, Tensor)}
    if any(not _alike(again.get(name), tensor) for name, tensor in tensors.items()):
        raise ExportFailed(f"{FILE} does not hold what was written into it. Submit the job again.")
    return [path]


def checkpoint_notes(origin: Origin | None) -> list[str]:
    """What a reader of a written checkpoint must know of it."""
    notes = []
    if origin is not None and origin.optimizers:
        notes.append(
            f"The checkpoint is written without the state of its optimizers ({shortened(origin.optimizers)}), which "
            "belongs to the weights as they were: training goes on with a new optimizer."
        )
    if origin is not None and origin.others:
        notes.append(
            f"The checkpoint's other state dicts stay as they were uploaded: {shortened(origin.others)}. To make one "
            "of them smaller, upload the checkpoint again with `weights` set to it."
        )
    return notes


def _at(whole: Any, origin: Origin) -> dict[str, Any]:
    """The state dict in the checkpoint."""
    for key in origin.keys:
        whole = whole[key]
    found: dict[str, Any] = whole
    return found


def _replaced(old: Mapping[str, Any], state: Mapping[str, Tensor], origin: Origin) -> dict[str, Any]:
    """The entries of the old state dict, in their order, with the new tensors in the place of theirs."""
    by_file = {file_name: name for name, file_name in origin.names.items()}
    part_of = {part: plain for plain, parts in origin.folded.items() for part in parts}
    new: dict[str, Any] = {}
    shared: dict[Any, Tensor] = {}
    for key, value in old.items():
        file_name = part_of.get(key, key)
        if file_name not in by_file:
            new[key] = value
        elif file_name not in new and by_file[file_name] in state:
            tensor = _alone(state[by_file[file_name]])
            if isinstance(value, Tensor) and value.numel():  # what was one tensor is one again
                first = shared.setdefault(storage_key(value), tensor)
                tensor = first if _alike(first, tensor) else tensor
            new[file_name] = _as(value, tensor)
    for name, tensor in state.items():
        if name not in origin.names and not name.endswith("num_batches_tracked"):
            new[origin.prefix + name] = _alone(tensor)
    return new


def _alone(tensor: Tensor) -> Tensor:
    """A copy in memory of its own, for torch.save writes all memory that a tensor is a part of."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _as(old: Any, tensor: Tensor) -> Tensor:
    """The tensor, or a parameter where the old one is."""
    if isinstance(old, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=old.requires_grad)
    return tensor


def _alike(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and one.dtype == other.dtype and torch.equal(one, other)


def _drop_optimizers(whole: Any) -> None:
    for _, part in parts_of(whole):
        if isinstance(part, dict):
            for key in [key for key, value in part.items() if is_optimizer(value)]:
                del part[key]
        elif isinstance(part, list):
            part[:] = [value for value in part if not is_optimizer(value)]
        else:
            for value in part:
                if is_optimizer(value):
                    value.clear()  # a tuple keeps its length
