"""Owns copies of TorchScript through its own format, which have code of their own."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_C: Any = torch._C  # whose classes of modules have no declared methods


def reloaded(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A deep copy through TorchScript's own format, so that no compiled plan of the original comes along.

    Its tensors are on the CPU. Devices that its code names are those of the original: place it where it is to run.
    """
    cpp_module = vars(module).get("_actual_script_module", module)._c  # of a module that was just traced
    held = list(_held(cpp_module))
    if all(_is_plain(layer) for layer in _layers(cpp_module)) and all(_is_dense(tensor) for _, _, tensor in held):
        twin = _reloaded_code(cpp_module, held)
    else:
        twin = _loaded(cpp_module)
    # Gradients are not asked for by the file for tensors that were frozen by hand.
    for new, old in zip(twin.parameters(), module.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    twin.train(module.training)
    return twin


def _reloaded_code(cpp_module: Any, held: list[tuple[Any, str, Tensor]]) -> torch.jit.ScriptModule:
    """The code goes through the format, the tensors beside it: to write, sum and read them takes most of the time."""
    twin = copy.deepcopy(cpp_module)
    own = list(_held(twin))
    tensors = _as_shared([tensor for _, _, tensor in held], [tensor for _, _, tensor in own])
    for layer, name, tensor in own:
        layer.setattr(name, tensor.detach().new_empty(0))
    del own
    loaded = _loaded(twin)
    for (layer, name, _), (_, original_name, original), tensor in zip(_held(loaded._c), held, tensors, strict=True):
        if name != original_name:
            raise RuntimeError(f"{name} of the copy stands where {original_name} was")
        layer.setattr(name, tensor.requires_grad_(original.requires_grad))
    return loaded


def _as_shared(originals: list[Tensor], copies: list[Tensor]) -> list[Tensor]:
    """The copies, of which those are one tensor, or share memory, whose originals do."""
    users: dict[int, set[int]] = {}
    for tensor in originals:
        users.setdefault(tensor.untyped_storage().data_ptr(), set()).add(id(tensor))
    storages: dict[int, Any] = {}
    made: dict[int, Tensor] = {}
    for original, own in zip(originals, copies, strict=True):
        if id(original) in made:
            continue
        storage: Any = original.untyped_storage()
        whole = storage.nbytes() == original.numel() * original.element_size() and original.stride() == own.stride()
        if whole and len(users[storage.data_ptr()]) == 1:
            made[id(original)] = own.detach()
            continue
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.clone()
        place = original.storage_offset(), original.shape, original.stride()
        made[id(original)] = original.detach().new_empty(0).set_(storages[storage.data_ptr()], *place)
    return [made[id(original)] for original in originals]


def _loaded(cpp_module: Any) -> torch.jit.ScriptModule:
    loaded: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(cpp_module.save_to_buffer()), map_location="cpu")  # type: ignore[no-untyped-call]
    return loaded


def _layers(cpp_module: Any) -> Iterator[Any]:
    yield cpp_module
    for child in dict(_C.ModuleDict(cpp_module).items()).values():
        yield from _layers(child)


def _held(cpp_module: Any) -> Iterator[tuple[Any, str, Tensor]]:
    """Each parameter and buffer, with the layer that holds it and its name there."""
    for layer in _layers(cpp_module):
        for name, tensor in [*_C.ParameterDict(layer).items(), *_C.BufferDict(layer).items()]:
            yield layer, name, tensor


def _is_plain(layer: Any) -> bool:
    """Whether a layer holds parameters, buffers, layers and numbers alone, and is written as such."""
    kinds = layer._type().containedTypes()
    tensors = len(_C.ParameterDict(layer).items()) + len(_C.BufferDict(layer).items())
    return (
        all(isinstance(kind, (_C.TensorType, _C.ClassType)) or _is_simple(kind) for kind in kinds)
        and sum(isinstance(kind, _C.TensorType) for kind in kinds) == tensors
        and sum(isinstance(kind, _C.ClassType) for kind in kinds) == len(_C.ModuleDict(layer).items())
        and not layer._has_method("__getstate__")
    )


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is no more than its memory says."""
    special = tensor.is_quantized or tensor.is_conj() or tensor.is_neg()
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and not special


def _is_simple(kind: Any) -> bool:
    """Whether no value of a type holds a tensor or an object."""
    parts = kind.containedTypes()
    return isinstance(kind, _SIMPLE) or (isinstance(kind, _CONTAINERS) and all(map(_is_simple, parts)))


_SIMPLE = (_C.BoolType, _C.IntType, _C.FloatType, _C.StringType, _C.DeviceObjType, _C.NoneType)
_CONTAINERS = (_C.OptionalType, _C.ListType, _C.TupleType, _C.DictType)
