"""Lists the layer kinds that a JSON layer list may name, and reads such a list into checked `Layer` trees.

An entry is `[kind]`, `[kind, {kwargs}]` or `[kind, {kwargs}, "name"]`. Only the kinds below exist: nothing
in a list can name any other callable. State-dict keys follow these rules:

* a layer without a name is called by its index within its list, as in `nn.Sequential`;
* names join with dots to the *names* of the structures around them, so an unnamed `Residual` does not
  disturb flat keys such as `conv2.weight`;
* indices join to the whole path, as in `layer1.0.shortcut.0.weight`.
"""

from __future__ import annotations

import inspect
import keyword
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import fx, nn

from pared.compression.architectures.modules import (
    MultiheadAttention,
    PatchMerge,
    PositionalEmbedding,
    SelfAttention,
    StochasticDepth,
    WindowAttention,
    encoder_layer,
    prepended,
    scale,
    shift,
)
from pared.errors import InvalidArchitecture, telling_line

MAX_DEPTH = 32
MAX_LAYERS = 20_000
_OTHERS = (
    "A layer list is a short form for chains of these; upload any other model as a torch.export program: "
    "torch.export.save(torch.export.export(model, args), path)."
)


# -- the whitelist ------------------------------------------------------------------------------

_TORCH_KINDS = (
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Linear",
    "Embedding",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LayerNorm",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "LeakyReLU",
    "PReLU",
    "ELU",
    "SELU",
    "GELU",
    "SiLU",
    "Mish",
    "Softplus",
    "Hardswish",
    "Hardsigmoid",
    "Hardtanh",
    "Tanh",
    "Sigmoid",
    "GLU",
    "Softmax",
    "LogSoftmax",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "ZeroPad2d",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "Flatten",
    "Upsample",
    "Identity",
    "PixelShuffle",
    "PixelUnshuffle",
    "ChannelShuffle",
)

MODULES: dict[str, Callable[..., nn.Module]] = {kind: getattr(nn, kind) for kind in _TORCH_KINDS} | {
    "TransformerEncoderLayer": encoder_layer,
    "SelfAttention": SelfAttention,
    "PositionalEmbedding": PositionalEmbedding,
    "MultiheadAttention": MultiheadAttention,
    "WindowAttention": WindowAttention,
    "PatchMerge": PatchMerge,
    "StochasticDepth": StochasticDepth,
}
"""Kinds that are one module."""

PARAMETERS: dict[str, Callable[..., nn.Parameter]] = {"Scale": scale, "Shift": shift, "Prepend": prepended}
"""Kinds that are one tensor, of the layer's own name: times x, added to x, or placed before x along dimension 1."""

STRUCTURES: dict[str, tuple[str, ...]] = {
    "Sequential": ("layers",),  # layers in order, under one name
    "Residual": ("layers", "shortcut"),  # layers(x) + shortcut(x); no shortcut: + x
    "Gate": ("layers", "shortcut"),  # shortcut(x) * layers(x), as in squeeze-and-excitation; no shortcut: x * …
    "Resized": ("layers",),  # layers(x), interpolated to the height and width of x
    "Concat": ("branches", "dim"),  # branches side by side along dim (default 1); an empty branch passes x on
    "Repeat": ("layers", "times"),  # the same layers, with the same weights, several times
}
"""Kinds that hold layers, and the arguments they take."""

OPERATIONS: dict[str, tuple[str, ...]] = {
    "Mean": ("dim",),  # mean over one dimension or several
    "Transpose": ("dim0", "dim1"),
    "Permute": ("dims",),
    "Reshape": ("shape",),  # the shape after the batch dimension; one entry may be -1
    "Select": ("dim", "index"),  # one position along a dimension, which goes
}
"""Kinds without weights that rearrange a tensor, and the arguments they need."""

_WEIGHTED: dict[str, Callable[..., nn.Module | nn.Parameter]] = {**MODULES, **PARAMETERS}
_HIDDEN_ARGUMENTS = {"args", "kwargs", "device", "dtype", "_weight", "_freeze"}
_RESERVED_NAMES = set(dir(fx.GraphModule)) | set(vars(nn.Module())) | {"meta", "x"}
_NAME = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]*|[0-9]+)(?:\.(?:[A-Za-z_][A-Za-z0-9_]*|[0-9]+))*")


@dataclass(frozen=True)
class Layer:
    """One checked entry of a layer list."""

    kind: str
    kwargs: dict[str, Any]
    name: str
    """Dotted name within the whole model: the prefix of its state-dict keys."""
    label: str | None
    """The name in the entry."""
    where: str
    """Its position, for messages: `layers[3].shortcut[0]`."""
    children: dict[str, list[Layer]] = field(default_factory=dict)
    """The lists a structure holds, by argument (`layers`, `shortcut`) or branch (`branches[0]`)."""


def read_layers(entries: Any) -> list[Layer]:
    """Check a JSON layer list.

    Raises:
        InvalidArchitecture: naming the position of the bad layer and what is known there.
    """
    reader = _Reader()
    return reader.chain(entries, "layers", path="", named="", depth=0)


def write_layers(layers: list[Layer]) -> list[list[Any]]:
    """The JSON form of checked layers: the inverse of `read_layers`."""
    entries = []
    for layer in layers:
        kwargs = dict(layer.kwargs)
        branches = [write_layers(child) for key, child in layer.children.items() if key.startswith("branches")]
        if branches:
            kwargs["branches"] = branches
        kwargs |= {key: write_layers(child) for key, child in layer.children.items() if not key.startswith("branches")}
        entry: list[Any] = [layer.kind, kwargs]
        entries.append(entry if layer.label is None else [*entry, layer.label])
    return entries


def leaves_of(layers: list[Layer]) -> Iterator[Layer]:
    """The layers that hold no others, in the order of the list."""
    for layer in layers:
        if not layer.children:
            yield layer
        for children in layer.children.values():
            yield from leaves_of(children)


def make_module(layer: Layer) -> nn.Module | nn.Parameter:
    """The module of a layer whose kind is one module, or the parameter of one whose kind is that.

    Raises:
        InvalidArchitecture: torch does not take the arguments.
    """
    kwargs = {key: tuple(value) if isinstance(value, list) else value for key, value in layer.kwargs.items()}
    try:
        return _WEIGHTED[layer.kind](**kwargs)
    except Exception as error:
        raise InvalidArchitecture(f"{layer.where} ({layer.kind}) does not build: {telling_line(error)}") from error


class _Reader:
    """Reads one whole list; remembers which names are taken."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.prefixes: set[str] = set()
        self.count = 0

    def chain(self, entries: Any, where: str, *, path: str, named: str, depth: int) -> list[Layer]:
        if depth > MAX_DEPTH:
            raise InvalidArchitecture(f"{where} is nested more than {MAX_DEPTH} levels deep.")
        if not isinstance(entries, (list, tuple)):
            raise InvalidArchitecture(f"{where} must be a list of layers, not {_shown(entries)}.")
        return [
            self.layer(entry, f"{where}[{index}]", index, path=path, named=named, depth=depth)
            for index, entry in enumerate(entries)
        ]

    def layer(self, entry: Any, where: str, index: int, *, path: str, named: str, depth: int) -> Layer:
        self.count += 1
        if self.count > MAX_LAYERS:
            raise InvalidArchitecture(f"The list has more than {MAX_LAYERS:,} layers.")
        kind, kwargs, label = _parts(entry, where)
        name = _join(named, label) if label is not None else _join(path, str(index))
        if kind in STRUCTURES:
            own, children = self.structure(kind, kwargs, where, name, named if label is None else name, depth)
            return Layer(kind, own, name, label, where, children)
        if kind in OPERATIONS:
            return Layer(kind, _operation(kind, kwargs, where), name, label, where)
        if kind in PARAMETERS and label is None:
            raise InvalidArchitecture(f"{where} ({kind}) needs a name, which is that of its tensor.")
        if kind in PARAMETERS and not isinstance(kwargs.get("shape"), (list, tuple)):
            raise InvalidArchitecture(f"{where} ({kind}) needs the argument `shape`: a list of integers.")
        self.take(name, where)
        return Layer(kind, _module_arguments(kind, kwargs, where), name, label, where)

    def structure(
        self, kind: str, kwargs: dict[str, Any], where: str, path: str, named: str, depth: int
    ) -> tuple[dict[str, Any], dict[str, list[Layer]]]:
        """The structure's own arguments, and the lists it holds."""
        _known_arguments(kind, kwargs, STRUCTURES[kind], where)

        def read(entries: Any, key: str, under: str) -> list[Layer]:
            return self.chain(entries, f"{where}.{key}", path=_join(path, under), named=named, depth=depth + 1)

        if kind == "Concat":
            branches = kwargs.get("branches")
            if not isinstance(branches, (list, tuple)) or len(branches) < 2:
                raise InvalidArchitecture(f"{where} (Concat) needs `branches`: a list of at least two layer lists.")
            dim = _integer(kwargs.get("dim", 1), f"{where}.dim", -8, 8)
            children = {f"branches[{i}]": read(branch, f"branches[{i}]", str(i)) for i, branch in enumerate(branches)}
            return {"dim": dim}, children
        if not kwargs.get("layers"):
            raise InvalidArchitecture(f"{where} ({kind}) needs `layers`: a list of at least one layer.")
        children = {"layers": read(kwargs["layers"], "layers", "")}
        if kwargs.get("shortcut"):
            children["shortcut"] = read(kwargs["shortcut"], "shortcut", "shortcut")
        if kind == "Repeat":
            return {"times": _integer(kwargs.get("times"), f"{where}.times", 1, 1000)}, children
        return {}, children

    def take(self, name: str, where: str) -> None:
        """Reserve a layer's name, so that no two layers share state-dict keys."""
        parts = name.split(".")
        above = {".".join(parts[:end]) for end in range(1, len(parts))}
        if name in self.names or name in self.prefixes or above & self.names.keys():
            taken = self.names.get(name, "another layer")
            raise InvalidArchitecture(f"{where} is called {name!r}, but so is {taken}, or one lies within the other.")
        self.names[name] = where
        self.prefixes |= above


def _parts(entry: Any, where: str) -> tuple[str, dict[str, Any], str | None]:
    if not isinstance(entry, (list, tuple)) or not 1 <= len(entry) <= 3 or not isinstance(entry[0], str):
        raise InvalidArchitecture(f'{where} must be ["Kind", {{arguments}}] or with a name third, not {_shown(entry)}.')
    kind = entry[0]
    if kind not in _WEIGHTED and kind not in STRUCTURES and kind not in OPERATIONS:
        known = ", ".join(sorted([*_WEIGHTED, *STRUCTURES, *OPERATIONS]))
        raise InvalidArchitecture(f"{where}: there is no layer kind {kind[:64]!r}. Known kinds: {known}. {_OTHERS}")
    kwargs = entry[1] if len(entry) > 1 else {}
    if not isinstance(kwargs, dict):
        raise InvalidArchitecture(f"{where} ({kind}): the second entry must be an object of arguments.")
    label = entry[2] if len(entry) > 2 else None
    if label is None:
        return kind, kwargs, None
    if not isinstance(label, str) or len(label) > 200 or not _NAME.fullmatch(label):
        raise InvalidArchitecture(f"{where} ({kind}): the name must be like `conv1` or `layer1.0`.")
    if any(part in _RESERVED_NAMES or keyword.iskeyword(part) for part in label.split(".")):
        raise InvalidArchitecture(f"{where} ({kind}): the name {label!r} is one that torch keeps for itself.")
    return kind, kwargs, label


def _module_arguments(kind: str, kwargs: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = _parameters(kind)
    known = [name for name in parameters if name not in _HIDDEN_ARGUMENTS]
    _known_arguments(kind, kwargs, known, where)
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and name not in kwargs:
            raise InvalidArchitecture(f"{where} ({kind}) needs the argument `{name}`.")
    if kind == "TransformerEncoderLayer":
        if kwargs.get("batch_first", True) is not True:
            raise InvalidArchitecture(f"{where} ({kind}): only batch_first=true is supported.")
        if kwargs.get("activation", "relu") not in {"relu", "gelu"}:
            raise InvalidArchitecture(f'{where} ({kind}): activation must be "relu" or "gelu".')
    return {name: _plain(value, f"{where} ({kind}), argument `{name}`") for name, value in kwargs.items()}


@cache
def _parameters(kind: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_WEIGHTED[kind]).parameters


def _operation(kind: str, kwargs: dict[str, Any], where: str) -> dict[str, Any]:
    _known_arguments(kind, kwargs, OPERATIONS[kind], where)
    checked: dict[str, Any] = {}
    for name in OPERATIONS[kind]:
        if name not in kwargs:
            raise InvalidArchitecture(f"{where} ({kind}) needs the argument `{name}`.")
        value = kwargs[name]
        at = f"{where} ({kind}), argument `{name}`"
        lowest, highest = (-1, 2**31) if kind == "Reshape" else (-8, 8)
        if name in {"dims", "shape"} or isinstance(value, (list, tuple)):
            if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 8:
                raise InvalidArchitecture(f"{at} must be a list of one to eight integers.")
            checked[name] = [_integer(one, at, lowest, highest) for one in value]
        else:
            checked[name] = _integer(value, at, lowest, highest)
    return checked


def _known_arguments(kind: str, kwargs: dict[str, Any], known: Any, where: str) -> None:
    unknown = [str(name)[:64] for name in kwargs if name not in known]
    if unknown:
        takes = ", ".join(known) or "none"
        raise InvalidArchitecture(f"{where} ({kind}) has no argument {', '.join(unknown)}. It takes: {takes}.")


def _plain(value: Any, where: str) -> Any:
    """A JSON scalar or a short list of numbers, as torch's constructors take them."""
    if isinstance(value, (list, tuple)) and len(value) <= 16:
        return [_plain(one, where) if not isinstance(one, (list, tuple, str)) else _refuse(where) for one in value]
    if value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) <= 32):
        return value
    if isinstance(value, (int, float)) and math.isfinite(value) and abs(value) < 2**40:
        return value
    return _refuse(where)


def _refuse(where: str) -> Any:
    raise InvalidArchitecture(f"{where} must be a number, true, false, null, a short text or a list of numbers.")


def _integer(value: Any, where: str, lowest: int, highest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise InvalidArchitecture(f"{where} must be an integer from {lowest} to {highest}, not {_shown(value)}.")
    return value


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
