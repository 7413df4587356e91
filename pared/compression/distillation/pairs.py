"""Pairs the layers of a teacher with those of a student by relative depth and shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pared.compression.distillation.features import Layer

_ANCHORS = (1 / 3, 2 / 3, 1.0)
_OTHER_FORM = 0.25  # what it costs, in shares of the depth, that one has positions which the other has not
_OTHER_SIZE = 0.05  # for each doubling of the number of positions
_AS_THEY_CAME = ("dropout", "identity", "flatten", "unflatten")  # kinds that only pass on what came before
_NEARLY = 1e-9


@dataclass(frozen=True)
class Pair:
    """A layer of the teacher, and the one of the student that learns from it."""

    teacher: Layer
    student: Layer


def auto_pairs(
    teacher: Mapping[str, Layer], student: Mapping[str, Layer], fits: Callable[[Layer, Layer], bool]
) -> list[Pair]:
    """At a third, two thirds and all of the way, the pair that is nearest in depth, positions and their number.

    Depth is counted in layers with weights, the last of them not counted whose output has the shape of the model's
    answer. A layer of the student is in one pair at most, and later pairs are of later layers. Of pairs that are alike
    the one that ends last is taken, which is a block rather than the last layer inside of it.

    Args:
        fits: whether a layer of the teacher and one of the student can be compared.
    """
    of_teacher, of_student = _candidates(teacher.values()), _candidates(student.values())
    pairs: list[Pair] = []
    for anchor in _ANCHORS:
        best: tuple[float, Pair] | None = None
        for layer, depth in of_student:
            if pairs and depth <= _depth_in(of_student, pairs[-1].student):
                continue
            for other, other_depth in of_teacher:
                if pairs and other_depth < _depth_in(of_teacher, pairs[-1].teacher):
                    continue
                if not fits(other, layer):
                    continue
                cost = abs(depth - anchor) + abs(other_depth - anchor) + abs(depth - other_depth)
                cost += _difference(other, layer)
                if best is None or cost <= best[0] + _NEARLY:
                    best = cost, Pair(other, layer)
        if best is not None:
            pairs.append(best[1])
    return pairs


def _candidates(layers: Iterable[Layer]) -> list[tuple[Layer, float]]:
    """Layers with their relative depths, in order; of those that give the same, the one of the shortest name."""
    chosen: dict[Any, Layer] = {}
    for layer in layers:
        if layer.answers or layer.kind.lower().startswith(_AS_THEY_CAME):
            continue
        same = (layer.given.data_ptr(), layer.shape, layer.given.stride())
        if same not in chosen or layer.name.count(".") < chosen[same].name.count("."):
            chosen[same] = layer
    last = max((layer.depth for layer in chosen.values()), default=1)
    return [(layer, layer.depth / max(last, 1)) for layer in chosen.values()]


def _depth_in(layers: Iterable[tuple[Layer, float]], wanted: Layer) -> float:
    return next(depth for layer, depth in layers if layer is wanted)


def _difference(teacher: Layer, student: Layer) -> float:
    if len(teacher.places) != len(student.places):
        return _OTHER_FORM
    ratio = math.prod(teacher.places) / max(math.prod(student.places), 1)
    return min(_OTHER_SIZE * abs(math.log2(max(ratio, 1e-9))), _OTHER_FORM)
