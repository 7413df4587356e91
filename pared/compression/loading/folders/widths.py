"""Finds out which numbers of a config say which dimensions of a model's weights, by building it with other numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pared.compression.loading.folders import building
from pared.compression.loading.folders.folder import ModelFolder
from pared.errors import ParedError

Axis = tuple[str, int]
Shapes = Mapping[str, tuple[int, ...]]

# Numbers that are no widths, or widths within a head, of which none is removed.
_NO_WIDTH = re.compile(
    r"_id$|_ids$|vocab|position|label|image_size|patch|kernel|stride|bucket|length|beam|top_k|group|token|dropout"
    r"|_layers?$|layers_|head_dim|head_size|d_kv|mask_|max_|num_conv|channels$|window|version"
)
_HEADS = re.compile(r"heads?$")
_LAYERS = re.compile(r"(^|_)(n_)?layers?$")
_OF_LAYERS = re.compile(r"layer|block")
_USUAL = ("n_inner",)
"""Widths that a config may leave out, which then follow from others."""


@dataclass(frozen=True)
class Widths:
    """What the numbers of a config say of the shapes of a model's parameters.

    `fields`: setting -> the dimensions that change with it. `heads`: settings that count heads and by themselves change
    no shape. `depths`: setting -> the names of the layers that it counts, in order.
    """

    settings: Mapping[str, Any]
    shapes: Shapes
    fields: Mapping[str, frozenset[Axis]]
    heads: tuple[str, ...]
    depths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def narrowed(self, shapes: Shapes) -> Iterator[dict[str, Any]]:
        """What changes of the settings, as it may be; nothing where layers have different widths.

        Where heads are as wide as ever, fewer of them show in no shape: with them in proportion first.

        Args:
            shapes: of the layers that the settings count, numbered anew.
        """
        changed: dict[str, int] = {}
        for name, axes in self.fields.items():
            found = {
                (self.settings[name] * shapes[tensor][dim], self.shapes[tensor][dim])
                for tensor, dim in axes
                if tensor in shapes
            }
            news = {top // bottom if top % bottom == 0 else -1 for top, bottom in found}
            if len(news) != 1 or min(news) < 1:
                return
            if (new := news.pop()) != self.settings[name]:
                changed[name] = new
        for name, new in changed.items():
            scaled = {each: self.settings[each] * new // self.settings[name] for each in self.heads}
            if scaled and all(self.settings[each] * new % self.settings[name] == 0 for each in self.heads):
                yield changed | scaled
        yield dict(changed)


def widths_of(folder: ModelFolder) -> Widths:
    """The widths of a folder's model. Worked out once in a process, for it builds the model's outline several times."""
    return _widths(_Hashable(folder))


class _Hashable:
    """A folder as a key: the same for copies of one."""

    def __init__(self, folder: ModelFolder) -> None:
        self.folder = folder
        self._key = (str(folder.path), folder.class_name)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and self.folder.config == other.folder.config and self._key == other._key


@lru_cache(maxsize=4)
def _widths(key: _Hashable) -> Widths:
    folder = key.folder
    shapes = outlined(folder, folder.config)
    if shapes is None:
        return Widths(folder.config, {}, {}, ())
    settings = dict(folder.config)
    inner = sorted({shape[dim] for shape in shapes.values() for dim in range(len(shape))})
    for name in _USUAL:
        if name in settings and settings[name] is None:
            settings[name] = next((size for size in inner if outlined(folder, settings | {name: size}) == shapes), None)
    fields: dict[str, frozenset[Axis]] = {}
    heads: list[str] = []
    depths: dict[str, tuple[str, ...]] = {}
    for name, value in settings.items():
        if type(value) is not int or value < 1:
            continue
        if _LAYERS.search(name) and value > 1:
            fewer = outlined(folder, without_layers(settings, name, [value - 1]))
            if fewer is not None and fewer.keys() < shapes.keys():
                depths[name] = tuple(_counted(shapes, fewer, value))
            continue
        if _NO_WIDTH.search(name) or value < 2:
            continue
        wider = outlined(folder, settings | {name: 2 * value})
        changed = frozenset() if wider is None or wider.keys() != shapes.keys() else _changed(shapes, wider)
        if changed:
            fields[name] = changed
        elif _HEADS.search(name):
            heads.append(name)
    return Widths(settings, shapes, fields, tuple(heads), {name: layers for name, layers in depths.items() if layers})


def renumbered(widths: Widths, dropped: Collection[str], names: Iterable[str]) -> dict[str, str]:
    """Name of each tensor that is left, as in the upload -> its name once the layers are numbered anew."""
    anew: dict[str, str] = {}
    for layers in widths.depths.values():
        kept = [layer for layer in layers if layer not in dropped]
        anew |= zip(kept, layers, strict=False)

    def renamed(name: str) -> str:
        for old, new in anew.items():
            if name.startswith(f"{old}."):
                return f"{new}.{name.removeprefix(f'{old}.')}"
        return name

    return {name: renamed(name) for name in names}


def without_layers(settings: Mapping[str, Any], name: str, dropped: Sequence[int]) -> dict[str, Any]:
    """The settings without these layers of those that one of them counts, also in lists with an entry for each."""
    count = settings[name]
    shorter = {
        each: [entry for index, entry in enumerate(value) if index not in dropped]
        for each, value in settings.items()
        if isinstance(value, list) and len(value) == count and _OF_LAYERS.search(each)
    }
    return {**settings, **shorter, name: count - len(dropped)}


def outlined(folder: ModelFolder, settings: Mapping[str, Any]) -> Shapes | None:
    """The shapes of a model with these settings; None where there is no such model."""
    try:
        config = building.config_of(settings)
        return building.shapes_of(
            building.outline(config, building.class_named(folder.class_name, config), folder.options)
        )
    except ParedError:
        return None


def _changed(shapes: Shapes, wider: Shapes) -> frozenset[Axis]:
    return frozenset(
        (name, dim)
        for name, shape in shapes.items()
        if len(wider[name]) == len(shape)
        for dim in range(len(shape))
        if wider[name][dim] != shape[dim]
    )


def _counted(shapes: Shapes, fewer: Shapes, count: int) -> Sequence[str]:
    """The layers that a number counts: those before the last one, whose tensors go where the number is less by one."""
    gone = [name for name in shapes if name not in fewer]
    marks = {re.split(rf"(?<=\.){count - 1}(?=\.)", name, maxsplit=1)[0] for name in gone}
    stems = [mark for mark in marks if all(name.startswith(f"{mark}{count - 1}.") for name in gone)]
    if len(stems) != 1:
        return ()
    layers = [f"{stems[0]}{index}" for index in range(count)]
    of_each = [
        sorted((name.removeprefix(layer), shapes[name]) for name in shapes if name.startswith(f"{layer}."))
        for layer in layers
    ]
    return layers if all(of_each) else ()
