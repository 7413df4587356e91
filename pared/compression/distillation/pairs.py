"""Pairs the layers of a teacher with those of a student by relative depth and shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pared.compression.distillation.features import Layer

_ANCHORS = (1 / 3, 2 / 3, 1.0)
# What makes a pair worse, in shares of the depth:
_APART = 2.0  # for each share that the two lie apart
_OFF = 0.5  # for each share that the student's layer lies off the place that is looked at
_INSIDE = 0.15  # a layer inside of a block, for each of the two
_OTHER_FORM = 0.25  # positions that one has and the other has not
_OTHER_SIZE = 0.05  # each doubling of the number of positions
_AS_THEY_CAME = ("dropout", "identity", "flatten", "unflatten")  # kinds that only pass on what came before
_CHAINS = ("sequential", "modulelist")  # kinds whose members are blocks rather than parts of one


@dataclass(frozen=True)
class Pair:
    """A layer of the teacher, and the one of the student that learns from it."""

    teacher: Layer
    student: Layer


def auto_pairs(
    teacher: Mapping[str, Layer], student: Mapping[str, Layer], fits: Callable[[Layer, Layer], bool]
) -> list[Pair]:
    """At a third, two thirds and all of the way, the pair that is nearest in depth, positions and their number.

    Depth is counted in layers with weights, up to the last one whose output is not of the shape of the model's answer.
    Of layers, those inside of a block come after the block itself. A layer is in one pair at most, and later pairs are
    of later layers. Of pairs that are alike the one that ends last is taken.

    Args:
        fits: whether a layer of the teacher and one of the student can be compared.
    """
    of_teacher, of_student = _candidates(teacher.values()), _candidates(student.values())
    pairs: list[Pair] = []
    reached = (0.0, 0.0)
    for anchor in _ANCHORS:
        best: tuple[float, Pair, tuple[float, float]] | None = None
        for one in of_teacher:
            for other in of_student:
                if one.depth <= reached[0] or other.depth <= reached[1] or not fits(one.layer, other.layer):
                    continue
                cost = _APART * abs(one.depth - other.depth) + _OFF * abs(other.depth - anchor)
                cost += _INSIDE * (one.inside + other.inside) + _difference(one.layer, other.layer)
                if best is None or cost <= best[0] + 1e-9:
                    best = cost, Pair(one.layer, other.layer), (one.depth, other.depth)
        if best is not None:
            pairs.append(best[1])
            reached = best[2]
    return pairs


@dataclass(frozen=True)
class _Candidate:
    """A layer, its relative depth, and whether it is a part of a block that can be taken instead."""

    layer: Layer
    depth: float
    inside: bool


def _candidates(layers: Iterable[Layer]) -> list[_Candidate]:
    """In order; of layers that give the same, the one of the shortest name."""
    layers = [layer for layer in layers if not layer.kind.lower().startswith(_AS_THEY_CAME)]
    chosen: dict[Any, Layer] = {}
    for layer in layers:
        same = (layer.given.data_ptr(), layer.shape, layer.given.stride())
        if not layer.answers and (same not in chosen or layer.name.count(".") < chosen[same].name.count(".")):
            chosen[same] = layer
    blocks = {layer.name for layer in layers if not layer.kind.lower().startswith(_CHAINS)}
    last_in = {layer.name.rpartition(".")[0]: layer.name for layer in layers}
    deepest = max((layer.depth for layer in chosen.values()), default=1)
    return [
        _Candidate(layer, layer.depth / max(deepest, 1), _is_inside(layer.name, blocks, last_in))
        for layer in chosen.values()
    ]


def _is_inside(name: str, blocks: set[str], last_in: Mapping[str, str]) -> bool:
    """Whether a layer is a part of a block, as `layer.0.norm` of `layer.0`; a numbered one only of a numbered block.

    Where calls are inlined no block has an output of its own, and the last layer in it stands for it.
    """
    parts = name.split(".")
    around = [parts[:end] for end in range(1, len(parts)) if ".".join(parts[:end]) in blocks]
    if parts[-1].isdecimal():
        return any(outer[-1].isdecimal() for outer in around)
    return bool(around) or (len(parts) > 1 and last_in[".".join(parts[:-1])] != name)


def _difference(teacher: Layer, student: Layer) -> float:
    if len(teacher.places) != len(student.places):
        return _OTHER_FORM
    ratio = math.prod(teacher.places) / max(math.prod(student.places), 1)
    return min(_OTHER_SIZE * abs(math.log2(max(ratio, 1e-9))), _OTHER_FORM)
