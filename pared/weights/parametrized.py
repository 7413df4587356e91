"""Knows the names of the tensors that torch computes a layer's weight from: weight norm, masks and others."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PARAMETRIZED = re.compile(r"(?:(?P<layer>.*)\.)?parametrizations\.(?P<leaf>\w+)\.(?P<part>.+)")
_SUFFIXED = re.compile(r"(?P<plain>.+)_(?P<part>g|v|orig|u|mask)")


def computed_from(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The weights that a state dict lacks because it holds the tensors that they are computed from.

    Returns:
        Name of the weight -> part -> name of the tensor, as `{"conv.weight": {"g": "conv.weight_g", "v":
        "conv.weight_v"}}` of `torch.nn.utils.weight_norm`; parts of `torch.nn.utils.parametrize` are what stands behind
        `parametrizations.weight.`, such as `original0` or `0._u`.
    """
    names = [*names]
    by_weight: dict[str, dict[str, str]] = {}
    suffixed: dict[str, dict[str, str]] = {}
    for name in names:
        if (match := _PARAMETRIZED.fullmatch(name)) is not None:
            plain = ".".join(filter(None, (match["layer"], match["leaf"])))
            by_weight.setdefault(plain, {})[match["part"]] = name
        elif (match := _SUFFIXED.fullmatch(name)) is not None:
            suffixed.setdefault(match["plain"], {})[match["part"]] = name
    present = set(names)
    kinds = ({"g", "v"}, {"orig", "mask"}, {"orig", "u"})
    for plain, parts in suffixed.items():
        if plain not in present and any(kind <= parts.keys() for kind in kinds):
            by_weight.setdefault(plain, {}).update(parts)
    return by_weight
