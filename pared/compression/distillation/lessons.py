"""What a loss of a spec comes to: its parts for a batch, the layers it compares, and projections learned along."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pared.compression.distillation.choosing import (
    BothLayers,
    described,
    how_compared,
    misfit_of,
    misfit_of_softened,
)
from pared.compression.distillation.losses import knowledge, output_mse, with_labels
from pared.compression.distillation.pairs import Pair
from pared.compression.distillation.terms import Answered, OfFeatures, of_outputs
from pared.compression.tasks import TaskRules
from pared.compression.training.augmentation import label_loss
from pared.compression.training.seeds import seed_of
from pared.reports import FeaturePair
from pared.specs import Combined, DistillLoss, Knowledge

Part = tuple[str, Tensor]
"""A summand of the loss, with its weight: where in the spec's loss it is named, and its value."""


class Lesson:
    """A loss of outputs alone.

    `pairs`: of inner layers, which the loss is handed in this order. `companion`: what is learned along with the
    student. `features`: the pairs as the report has them.
    """

    def __init__(self, kind: DistillLoss) -> None:
        self.kind = kind
        self.pairs: list[Pair] = []
        self.companion: nn.Module | None = None
        self.features: list[FeaturePair] = []

    def parts(self, task: TaskRules, batch: Answered, narrow: Sequence[Tensor], wide: Sequence[Tensor]) -> list[Part]:
        """The summands of the loss. Args: narrow, wide: what the pairs' layers gave, of the student and the teacher."""
        (own, counted), (expected, _) = (task.rows(each, batch.targets) for each in (batch.student, batch.teacher))
        if not isinstance(self.kind, Knowledge):
            return [("", output_mse(own, expected, counted))]
        lesson = knowledge(
            own,
            expected,
            self._softened(own, expected, narrow, wide),
            alpha=self.kind.alpha,
            temperature=self.kind.temperature,
            counted=counted,
            independent=task.independent,
        )
        return [
            ("", with_labels(lesson, label_loss(task, batch.student, batch.targets, batch.mix), self.kind.label_share))
        ]

    def _softened(
        self, own: Tensor, expected: Tensor, narrow: Sequence[Tensor], wide: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """The pairs whose softened difference is learned: the logits."""
        return [(own, expected)]


class SoftenedFeatures(Lesson):
    """`knowledge` whose KL term runs over inner layers, flattened and projected where widths differ."""

    def __init__(self, kind: Knowledge, layers: BothLayers, pointer: str) -> None:
        super().__init__(kind)
        assert kind.features is not None  # noqa: S101 - the caller has seen to it
        self.pairs = layers.pairs(kind.features, misfit_of_softened, f"{pointer}/features")
        self._projections = nn.ModuleList()
        for pair in self.pairs:
            narrow, wide = (layer.given[0].numel() for layer in (pair.student, pair.teacher))
            self._projections.append(nn.Identity() if narrow == wide else nn.Linear(narrow, wide))
        self.companion = self._projections
        self.features = described("knowledge", self.pairs, chosen=kind.features == "auto", how=_flattened)

    def _softened(
        self, own: Tensor, expected: Tensor, narrow: Sequence[Tensor], wide: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        return [
            (project(z_s.flatten(1)), z_t.flatten(1))
            for project, z_s, z_t in zip(self._projections, narrow, wide, strict=True)
        ]


class Sum(Lesson):
    """`combined`: the sum of terms by their weights."""

    def __init__(self, kind: Combined, layers: BothLayers, pointer: str) -> None:
        super().__init__(kind)
        self._terms = kind.terms
        comparisons: dict[str, OfFeatures] = {}
        self._places: dict[int, slice] = {}
        for place, term in kind.with_features:
            assert term.features is not None  # noqa: S101 - `with_features` has seen to it
            pairs = layers.pairs(term.features, misfit_of(term), f"{pointer}/terms/{place}/features")
            self._places[place] = slice(len(self.pairs), len(self.pairs) + len(pairs))
            self.pairs += pairs
            comparisons[str(place)] = OfFeatures(term, pairs)
            self.features += described(term.kind, pairs, chosen=term.features == "auto", how=how_compared(term))
        self._comparisons = nn.ModuleDict(comparisons)
        self.companion = self._comparisons if comparisons else None

    def parts(self, task: TaskRules, batch: Answered, narrow: Sequence[Tensor], wide: Sequence[Tensor]) -> list[Part]:
        """A summand for each term."""
        found = []
        for place, term in enumerate(self._terms):
            if place in self._places:
                of_term = self._places[place]
                value = self._comparisons[str(place)](narrow[of_term], wide[of_term], batch)
            else:
                value = of_outputs(term, task, batch)
            found.append((f"/terms/{place}", term.weight * value))
        return found


def lesson_of(kind: DistillLoss, layers: BothLayers, seed: int, pointer: str) -> Lesson:
    """What a loss comes to.

    Args:
        seed: of the job; projections begin with numbers drawn by it.
        pointer: to the loss in the spec.

    Raises:
        ValidationError: layers cannot be compared.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "projections"))
        if isinstance(kind, Combined):
            return Sum(kind, layers, pointer)
        if isinstance(kind, Knowledge) and kind.features:
            return SoftenedFeatures(kind, layers, pointer)
        return Lesson(kind)


def _flattened(pair: Pair) -> str:
    narrow, wide = (layer.given[0].numel() for layer in (pair.student, pair.teacher))
    return "flattened" if narrow == wide else f"flattened, {narrow:,} numbers projected to {wide:,}"
