"""Which layers a loss compares: those that the spec names, or pairs by depth and shape; refused before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

from torch import nn

from pared.compression.data.samples import Inputs
from pared.compression.distillation.adapting import MAX_PROJECTION, in_words
from pared.compression.distillation.features import Layer, Probe, layers_of
from pared.compression.distillation.pairs import Pair, auto_pairs
from pared.compression.distillation.terms import projects_in
from pared.errors import ValidationError
from pared.reports import FeaturePair
from pared.specs import AttentionTerm, FeaturePairs, FeatureTerm
from pared.wording import shortened

Misfit = Callable[[Layer, Layer], str | None]
"""`(teacher's layer, student's layer)` -> why they cannot be compared, and what to do; None: they can."""


class BothLayers:
    """The layers of a teacher and a student, looked at when they are asked for.

    Args:
        inputs: of both, two samples or more.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, inputs: Inputs) -> None:
        self._modules, self._inputs = (teacher, student), inputs

    @cached_property
    def teacher(self) -> dict[str, Layer]:
        """By name."""
        return layers_of(self._modules[0], self._inputs)

    @cached_property
    def student(self) -> dict[str, Layer]:
        """By name."""
        return layers_of(self._modules[1], self._inputs)

    def pairs(self, features: FeaturePairs, misfit: Misfit, pointer: str) -> list[Pair]:
        """The pairs that a spec names, or those that `auto` chooses.

        Args:
            pointer: to the field in the spec.

        Raises:
            ValidationError: a layer does not exist or gives no feature, a pair cannot be compared, or there is none.
        """
        if features == "auto":
            pairs = auto_pairs(self.teacher, self.student, lambda one, other: misfit(one, other) is None)
            if not pairs:
                reasons = {misfit(one, other) for one in self.teacher.values() for other in self.student.values()}
                why = " ".join(sorted(filter(None, reasons))[:1]) or "One of the two has no inner layer to compare."
                text = (
                    f"No layer of the teacher ({_listed(self.teacher)}) can be paired with one of the student "
                    f"({_listed(self.student)}). {why}"
                )
                raise ValidationError(text, errors=[{"pointer": pointer, "detail": text}])
            return pairs
        pointers = [f"{pointer}/{index}" for index in range(len(features))]
        for side, (module, role) in enumerate(zip(self._modules, ("teacher", "student"), strict=True)):
            Probe(module, [pair[side] for pair in features], role, pointers).look(self._inputs)
        pairs = []
        for (of_teacher, of_student), place in zip(features, pointers, strict=True):
            refusal: str | None = None
            for role, name, known in (("teacher", of_teacher, self.teacher), ("student", of_student, self.student)):
                if name not in known:
                    refusal = (
                        f"The {role}'s layer {name} gives no tensor with a slice for each sample. Name another layer."
                    )
            if refusal is None:
                pairs.append(Pair(self.teacher[of_teacher], self.student[of_student]))
                refusal = misfit(pairs[-1].teacher, pairs[-1].student)
            if refusal is not None:
                raise ValidationError(refusal, errors=[{"pointer": place, "detail": refusal}])
        return pairs


def misfit_of(term: FeatureTerm) -> Misfit:
    """Why layers cannot be compared by a term of a combined loss."""

    def misfit(teacher: Layer, student: Layer) -> str | None:
        if isinstance(term, AttentionTerm):
            for layer, role in ((teacher, "teacher"), (student, "student")):
                if math.prod(layer.places) < 2:
                    return (
                        f"The {role}'s {layer.name} gives {_shape(layer)} a sample, which has no positions; "
                        "`attention` compares where layers are active: use `hint`, or name layers of images or texts."
                    )
        too_wide = teacher.channels * student.channels > MAX_PROJECTION and teacher.channels != student.channels
        return (
            _too_wide(teacher, student, teacher.channels, student.channels) if projects_in(term) and too_wide else None
        )

    return misfit


def misfit_of_softened(teacher: Layer, student: Layer) -> str | None:
    """Why layers cannot be compared by the KL term of `knowledge`, which flattens them."""
    wide, narrow = math.prod(teacher.shape), math.prod(student.shape)
    if wide < 2:
        return (
            f"The teacher's {teacher.name} gives one number a sample; the softmax of one number says nothing: name a "
            'wider layer, or use {"kind": "output_mse"}.'
        )
    return _too_wide(teacher, student, wide, narrow) if wide != narrow and wide * narrow > MAX_PROJECTION else None


def _too_wide(teacher: Layer, student: Layer, wide: int, narrow: int) -> str:
    return (
        f"The student's {student.name} gives {narrow:,} numbers a sample, the teacher's {teacher.name} {wide:,}: too "
        "many to project. Name later layers, after pooling."
    )


def described(kind: str, pairs: Sequence[Pair], *, chosen: bool, how: Callable[[Pair], str]) -> list[FeaturePair]:
    """The pairs as the report has them.

    Args:
        kind: of the loss, or of its term.
        chosen: whether `auto` chose them.
        how: what is done to make a pair comparable.
    """
    return [
        FeaturePair(
            term=kind,
            teacher=pair.teacher.name,
            student=pair.student.name,
            teacher_shape=list(pair.teacher.shape),
            student_shape=list(pair.student.shape),
            chosen="auto" if chosen else "named",
            compared=how(pair),
        )
        for pair in pairs
    ]


def how_compared(term: FeatureTerm) -> Callable[[Pair], str]:
    """What a term does to make a pair comparable, in words."""
    if isinstance(term, AttentionTerm) or projects_in(term):
        return lambda pair: in_words(pair.teacher, pair.student, projects=projects_in(term))
    return lambda pair: "distances and angles between samples"


def _listed(layers: dict[str, Layer]) -> str:
    return shortened([f"{layer.name} {_shape(layer)}" for layer in layers.values()], 20) or "none"


def _shape(layer: Layer) -> str:
    return f"({', '.join(map(str, layer.shape))}{',' if len(layer.shape) == 1 else ''})"
