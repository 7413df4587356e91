"""Removes whole residual blocks from a layer list."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from pared.compression.architectures.building import layer_list
from pared.compression.architectures.layers import Layer, leaves_of, read_layers, write_layers


def without_residuals(architecture: Any, removed: Collection[str]) -> dict[str, Any]:
    """The layer list in which only the shortcut is left of each innermost `Residual` with these weights.

    All other layers keep the names that their weights have.

    Args:
        architecture: in any form that `build` takes.
        removed: names of the removed weights, all of a block or none.
    """
    layers, _ = _chain(read_layers(layer_list(architecture)), "", removed)
    return {"layers": write_layers(layers)}


def _chain(layers: list[Layer], named: str, removed: Collection[str]) -> tuple[list[Layer], bool]:
    """The layers, and whether a block of them was removed. `named`: the names of the structures around them, joined."""
    kept = [_layer(layer, named, removed) for layer in layers]
    return [layer for layer, _ in kept], any(changed for _, changed in kept)


def _layer(layer: Layer, named: str, removed: Collection[str]) -> tuple[Layer, bool]:
    named = named if layer.label is None else layer.name
    children = {key: _chain(layers, named, removed) for key, layers in layer.children.items()}
    if any(changed for _, changed in children.values()):
        return replace(layer, children={key: layers for key, (layers, _) in children.items()}), True
    if layer.kind != "Residual" or not any(_has(leaf, removed) for leaf in leaves_of(layer.children["layers"])):
        return layer, False
    if "shortcut" not in layer.children:
        return replace(layer, kind="Identity", kwargs={}, children={}), True
    shortcut = [_labelled(each, named) for each in layer.children["shortcut"]]
    return replace(layer, kind="Sequential", children={"layers": shortcut}), True


def _labelled(layer: Layer, named: str) -> Layer:
    """A layer that goes by its name wherever it stands in the list."""
    if layer.children:
        inner = named if layer.label is None else layer.name
        children = {key: [_labelled(each, inner) for each in layers] for key, layers in layer.children.items()}
        return replace(layer, children=children)
    return replace(layer, label=layer.name.removeprefix(f"{named}.") if named else layer.name)


def _has(leaf: Layer, tensors: Collection[str]) -> bool:
    return any(f"{name}.".startswith(f"{leaf.name}.") for name in tensors)
