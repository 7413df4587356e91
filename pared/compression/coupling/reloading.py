"""Owns copies of TorchScript through its own format, which have code of their own."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.jit._script import RecursiveScriptModule

from pared.compression.devices.memory import ran_out_of_memory
from pared.errors import UnsupportedModel

_C: Any = torch._C  # whose classes of modules have no declared methods


def reloaded(module: torch.jit.ScriptModule, *, own_parameters: bool = True) -> torch.jit.ScriptModule:
    """A deep copy through TorchScript's own format, so that no compiled plan of the original comes along.

    Its tensors are on the CPU. Devices that its code names are those of the original: place it where it is to run.

    Args:
        own_parameters: if not, the copy's parameters share memory with the original's where that can be; its buffers
            are its own. For a copy that is read and run, and not trained.
    """
    cpp_module = vars(module).get("_actual_script_module", module)._c  # of a module that was just traced
    held = list(_held(cpp_module))
    if _is_plain_throughout(cpp_module) and all(_is_dense(tensor) for _, _, tensor in held):
        twin = _reloaded_code(cpp_module, held, own_parameters=own_parameters)
    else:
        twin = _loaded(cpp_module)
    # Gradients are not asked for by the file for tensors that were frozen by hand.
    for new, old in zip(twin.parameters(), module.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    twin.train(module.training)
    return twin


def with_same_tensors(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A copy that shares the code, and the tensors too where all of them have names, for others to be put there."""
    if isinstance(module, RecursiveScriptModule) and _is_plain_throughout(module._c):
        twin: torch.jit.ScriptModule = torch.jit._recursive.wrap_cpp_module(_frame(module._c, {}))  # type: ignore[no-untyped-call]
        return twin
    with torch.no_grad():
        return copy.deepcopy(module)


def _frame(cpp_module: Any, made: dict[Any, Any]) -> Any:
    """A copy of a module and of all its layers, which holds the same tensors. `made`: layer -> its copy."""
    if cpp_module not in made:
        twin = made[cpp_module] = copy.copy(cpp_module)
        for name, child in _C.ModuleDict(cpp_module).items():
            twin.setattr(name, _frame(child, made))
    return made[cpp_module]


def _reloaded_code(
    cpp_module: Any, held: list[tuple[Any, str, Tensor]], *, own_parameters: bool
) -> torch.jit.ScriptModule:
    """The code goes through the format, the tensors beside it: to write, sum and read them takes most of the time."""
    twin = _frame(cpp_module, {})
    for layer, name, tensor in list(_held(twin)):
        layer.setattr(name, tensor.detach().new_empty(0))
    loaded = _loaded(twin)
    parameters = [tensor for layer in _layers(cpp_module) for _, tensor in _C.ParameterDict(layer).items()]
    shared = set() if own_parameters else set(map(id, parameters))
    tensors = _as_shared([tensor for _, _, tensor in held], shared)
    for (layer, name, _), (_, original_name, original), tensor in zip(_held(loaded._c), held, tensors, strict=True):
        if name != original_name:
            raise RuntimeError(f"{name} of the copy stands where {original_name} was")
        layer.setattr(name, tensor.requires_grad_(original.requires_grad))
    return loaded


def _as_shared(originals: list[Tensor], shared: set[int]) -> list[Tensor]:
    """Copies, of which those are one tensor, or share memory, whose originals do.

    Args:
        shared: of the originals with these ids, the memory itself.
    """
    users: dict[int, set[int]] = {}
    for tensor in originals:
        users.setdefault(tensor.untyped_storage().data_ptr(), set()).add(id(tensor))
    storages: dict[int, Any] = {}
    made: dict[int, Tensor] = {}
    for original in originals:
        if id(original) in made:
            continue
        if id(original) in shared:
            made[id(original)] = original.detach()
            continue
        storage: Any = original.untyped_storage()
        whole = storage.nbytes() == original.numel() * original.element_size()
        if whole and len(users[storage.data_ptr()]) == 1:
            own = original.detach().clone()
            if own.stride() == original.stride():
                made[id(original)] = own
                continue
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.clone()
        place = original.storage_offset(), original.shape, original.stride()
        made[id(original)] = original.detach().new_empty(0).set_(storages[storage.data_ptr()], *place)
    return [made[id(original)] for original in originals]


def _loaded(cpp_module: Any) -> torch.jit.ScriptModule:
    try:
        saved = cpp_module.save_to_buffer()
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise
        # What tells which lines of source the code came from is read only when it is written.
        raise UnsupportedModel(
            f"torch opens this TorchScript file, and cannot write it: {str(error).splitlines()[0][:200]}. A part of it "
            "is damaged. Save and upload it again."
        ) from error
    loaded: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(saved), map_location="cpu")  # type: ignore[no-untyped-call]
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


def _is_plain_throughout(cpp_module: Any) -> bool:
    return all(_is_plain(layer) for layer in _layers(cpp_module))


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
