"""Folds what torch computes a layer's weight from into the plain weight: in state dicts, and in modules."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pared.errors import UnsupportedModel
from pared.weights.parametrized import computed_from
from pared.wording import shortened

OFF_ADVICE = (
    "Take it off before saving the model: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), or "
    "remove_weight_norm, remove_spectral_norm, prune.remove."
)


@dataclass
class Folded:
    """What was folded: name of each plain weight -> the tensors that it was computed from.

    `sparse`: names of those whose computation forces zeros, as a mask does. `saved`: by how many parameters there are
    now fewer.
    """

    sources: dict[str, list[str]] = field(default_factory=dict)
    sparse: set[str] = field(default_factory=set)
    saved: int = 0

    def notes(self, parameters: int) -> list[str]:
        """The warning of it, if anything was folded. `parameters`: how many the model has now."""
        return [folded_note(self.sources, parameters + self.saved, parameters)] if self.sources else []


def plain_name(name: str) -> str | None:
    """The name of the weight that torch computes from this tensor: `conv.weight` for `conv.weight_v`; or None."""
    head, separator, _ = name.rpartition("_")
    if ".parametrizations." in f".{name}":
        return next(iter(computed_from([name])))
    return head if separator and name.endswith(("_v", "_g", "_orig", "_raw", "_bar")) else None


def folded_note(sources: Mapping[str, Sequence[str]], before: int, after: int) -> str:
    """The warning that plain weights stand for computed ones.

    Args:
        sources: name of each plain weight -> the tensors that it was computed from.
        before, after: parameters of the model as it came, and with plain weights.
    """
    names = [f"{name} (from {', '.join(tensors)})" for name, tensors in sources.items()]
    return (
        f"The model computes weights from others, as weight norm, spectral norm and masks do. They were folded into "
        f"plain weights: {shortened(names, between='; ')}. "
        "Scores, zeros and training are those of the plain weights, and what "
        f"the computation held to (a norm, a bound) no longer binds them in training. Here the model counts "
        f"{after:,} parameters, where the upload has {before:,}."
    )


# -- state dicts ----------------------------------------------------------------------------------


def fold_state(state: Mapping[str, Tensor], transposed: Collection[str] = ()) -> tuple[dict[str, Tensor], Folded]:
    """A state dict with plain weights in the place of what they are computed from.

    Args:
        transposed: names of transposed convolutions, whose spectral norm is taken along their second dimension.

    Raises:
        UnsupportedModel: what a weight comes to cannot be told from the tensors.
    """
    folded, plain = Folded(), dict(state)
    for name, parts in computed_from(state).items():
        weight = _weight({part: state[tensor] for part, tensor in parts.items()}, _is(name, transposed))
        if weight is None:
            raise UnsupportedModel(
                f"The file holds {', '.join(parts.values())} in the place of {name}, and what that comes to cannot be "
                f"told from them. {OFF_ADVICE}"
            )
        folded.sources[name] = [*parts.values()]
        folded.saved += sum(state[parts[part]].numel() for part in parts if _is_parameter(part, parts)) - weight.numel()
        if "mask" in parts:
            folded.sparse.add(name)
        first, *others = parts.values()
        plain = {name if key == first else key: weight if key == first else plain[key] for key in plain}
        plain = {key: tensor for key, tensor in plain.items() if key not in others}
    return plain, folded


def _is_parameter(part: str, parts: Collection[str]) -> bool:
    """Whether torch trains such a part; u, v and masks it only keeps."""
    return part.startswith(("orig", "g")) or (part == "v" and "g" in parts)


def _is(weight: str, layers: Collection[str]) -> bool:
    """Whether a weight is of one of these layers; its name may have a prefix more."""
    layer = weight.rpartition(".")[0]
    return any(f".{layer}".endswith(f".{known}") for known in layers)


def _weight(parts: Mapping[str, Tensor], transposed: bool) -> Tensor | None:
    """What these tensors come to, by their names; None: no such parametrization is known."""
    match sorted(parts):
        case ["original0", "original1"]:
            return _normed(parts["original1"], parts["original0"])
        case ["g", "v"]:
            return _normed(parts["v"], parts["g"])
        case ["0._u", "0._v", "original"]:
            return _over_sigma(parts["original"], parts["0._u"], parts["0._v"], transposed)
        case ["orig", "u", "v"]:
            return _over_sigma(parts["orig"], parts["u"], parts["v"], transposed)
        case ["mask", "orig"] if parts["mask"].shape == parts["orig"].shape:
            return parts["orig"] * parts["mask"]
    return None


def _normed(v: Tensor, g: Tensor) -> Tensor | None:
    """w = g · v / ‖v‖, the norm over all dimensions that g has not. Salimans and Kingma 2016, arXiv:1602.07868."""
    if g.dim() == 0:
        return torch.mul(v, g / v.norm())
    if g.dim() != v.dim() or any(size not in (1, full) for size, full in zip(g.shape, v.shape, strict=True)):
        return None
    over = [dim for dim, size in enumerate(g.shape) if size == 1]
    return torch.mul(v, g / torch.linalg.vector_norm(v, dim=over, keepdim=True))


def _over_sigma(weight: Tensor, u: Tensor, v: Tensor, transposed: bool) -> Tensor | None:
    """w / σ, σ = uᵀWv. Miyato et al. 2018, arXiv:1802.05957."""
    for dim in (1, 0) if transposed else (0, 1):
        if dim < weight.dim() and weight.shape[dim] == u.numel() and weight.numel() == u.numel() * v.numel():
            return weight / torch.dot(u, weight.movedim(dim, 0).reshape(len(u), -1) @ v)
    return None


# -- modules --------------------------------------------------------------------------------------


def fold_module(module: nn.Module) -> Folded:
    """Take parametrizations, weight norms, spectral norms and masks off a module in place; weights stay as they are.

    What is computed from tensors that the module holds twice stays.

    Args:
        module: in eval mode.
    """
    folded = Folded()
    before = sum(parameter.numel() for parameter in module.parameters())
    count = Counter(id(tensor) for _, tensor in module.named_parameters(remove_duplicate=False))
    for path, layer in list(module.named_modules()):
        if any(count[id(tensor)] > 1 for tensor in layer.parameters()):
            continue
        with torch.no_grad():
            origins = _without_parametrizations(layer) if parametrize.is_parametrized(layer) else _without_hooks(layer)
        prefix = f"{path}." if path else ""
        for leaf, (sources, sparse) in origins.items():
            folded.sources[f"{prefix}{leaf}"] = [f"{prefix}{source}" for source in sources]
            folded.sparse |= {f"{prefix}{leaf}"} if sparse else set()
    folded.saved = before - sum(parameter.numel() for parameter in module.parameters())
    return folded


_Origins = dict[str, tuple[list[str], bool]]
"""Name of a folded tensor within its layer -> what it was computed from there, and whether zeros are forced."""


def _without_parametrizations(layer: nn.Module) -> _Origins:
    """Fold without torch's own function, which changes the layer's class: copies of the layer share it."""
    origins: _Origins = {}
    values: dict[str, nn.Parameter | Tensor] = {}
    for leaf, made in layer.get_submodule("parametrizations").named_children():
        tensor = getattr(layer, leaf).detach().clone()
        shaken = copy.deepcopy(made)
        for parameter in shaken.parameters():
            parameter.uniform_(0.5, 1.5)
        parameters = [*made.parameters(recurse=False)]
        trains = any(parameter.requires_grad for parameter in parameters)
        values[leaf] = nn.Parameter(tensor, requires_grad=trains) if parameters else tensor
        names = [f"parametrizations.{leaf}.{name}" for name in made.state_dict()]
        origins[leaf] = names, bool(((tensor == 0) & (shaken() == 0)).any())
    layer.__class__ = type(layer).__bases__[0]
    del layer.parametrizations
    for leaf, value in values.items():
        if isinstance(value, nn.Parameter):
            layer.register_parameter(leaf, value)
        else:
            layer.register_buffer(leaf, value)
    return origins


def _without_hooks(layer: nn.Module) -> _Origins:
    origins: _Origins = {}
    for hook in reversed(list(layer._forward_pre_hooks.values())):  # a later one may make what an earlier one takes
        for kind, (remove, name) in _REMOVE.items():
            if isinstance(hook, kind):
                leaf = str(getattr(hook, name))
                parts = {part: getattr(layer, f"{leaf}_{part}", None) for part in ("orig", "g", "v", "u", "mask")}
                tensors = {part: tensor for part, tensor in parts.items() if isinstance(tensor, Tensor)}
                remove(layer, leaf)
                getattr(layer, leaf).requires_grad_(any(tensor.requires_grad for tensor in tensors.values()))
                origins[leaf] = [f"{leaf}_{part}" for part in tensors], "mask" in tensors
    return origins


_REMOVE: dict[type, tuple[Callable[[nn.Module, str], nn.Module], str]] = {
    WeightNorm: (remove_weight_norm, "name"),
    SpectralNorm: (remove_spectral_norm, "name"),
    torch_prune.BasePruningMethod: (torch_prune.remove, "_tensor_name"),
}
"""Kind of hook -> what takes it off, and the attribute that names its tensor."""
