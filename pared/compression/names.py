"""What a model's tensors and layers are called, and which of them the patterns of a spec mean."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from pared.compression.coupling.interpreter import StorageKey, storage_key
from pared.wording import shortened


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters under all their names."""
    return dict(module.named_parameters(remove_duplicate=False))


def layer_of(tensor_name: str) -> str:
    """The layer that a tensor belongs to."""
    return tensor_name.rpartition(".")[0] or tensor_name


def weight_layers(module: nn.Module) -> dict[str, str]:
    """Name of each weight tensor (of two or more dimensions) -> name of its layer."""
    return {name: layer_of(name) for name, tensor in tensors(module).items() if tensor.dim() >= 2}


def tied_names(module: nn.Module) -> dict[str, list[str]]:
    """Name of each parameter -> all names of that tensor, its own among them."""
    together: dict[StorageKey, list[str]] = {}
    for name, tensor in tensors(module).items():
        together.setdefault(storage_key(tensor), []).append(name)
    return {name: names for names in together.values() for name in names}


def matching(module: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters of layers that match under one of their names, and are excluded under none."""
    names_of = tied_names(module)
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if matches([layer_of(alias) for alias in names_of[name]], include, exclude)
    }


def unmatched_patterns(layers: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Those of the patterns that none of the layers matches."""
    return [pattern for pattern in patterns if not any(fnmatchcase(layer, pattern) for layer in layers)]


def matches(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a layer may be touched that goes by these names."""
    included, excluded = (any(fnmatchcase(n, p) for n in names for p in patterns) for patterns in (include, exclude))
    return included and not excluded


def no_match(what: str, names: list[str], include: Sequence[str], exclude: Sequence[str]) -> str:
    """Says that the patterns leave nothing to prune, and which layers there are."""
    if not names:
        return f"The model has no {what} that could be pruned. A frozen TorchScript file has none: upload it unfrozen."
    return (
        f"No layer with {what} matches include {list(include)} and exclude {list(exclude)}. "
        f"The layers are: {shortened(names, 20)}."
    )
