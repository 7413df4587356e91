"""The terms of a combined loss: what each is of a batch that teacher and student have answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pared.compression.data.samples import Inputs
from pared.compression.distillation import losses
from pared.compression.distillation.adapting import Adapter, active_places, pooled
from pared.compression.distillation.pairs import Pair
from pared.compression.tasks import TaskRules
from pared.compression.tasks.labels import IGNORED
from pared.compression.training.augmentation import Mix, label_loss
from pared.specs import (
    AttentionTerm,
    CosineTerm,
    DecoupledTerm,
    DistTerm,
    FeatureTerm,
    HintTerm,
    KlTerm,
    LabelsTerm,
    LossTerm,
    OutputMseTerm,
    RelationalTerm,
)


@dataclass(frozen=True)
class Answered:
    """A batch with what the student and the teacher answered, and what was mixed into it.

    `padding`: of texts, the id that they are padded by.
    """

    inputs: Inputs
    targets: Tensor
    student: Tensor
    teacher: Tensor
    mix: Mix | None
    padding: int | None = None


def of_outputs(term: LossTerm, task: TaskRules, batch: Answered) -> Tensor:
    """The value of a term that compares outputs, without its weight: a scalar."""
    if isinstance(term, LabelsTerm):
        return label_loss(task, batch.student, batch.targets, batch.mix)
    if isinstance(term, OutputMseTerm) and task.has_references:
        return task.loss(batch.student, batch.teacher)
    (own, counted), (expected, _) = (task.rows(each, batch.targets) for each in (batch.student, batch.teacher))
    match term:
        case OutputMseTerm():
            return losses.output_mse(own, expected, counted)
        case KlTerm(temperature=temperature):
            return losses.softened_kl(own, expected, temperature, counted, independent=task.independent)
        case DecoupledTerm():
            return _decoupled(term, own, expected, counted, batch)
        case DistTerm():
            return losses.dist(
                own,
                expected,
                beta=term.beta,
                gamma=term.gamma,
                temperature=term.temperature,
                counted=counted,
                independent=task.independent,
            )
        case CosineTerm():
            return losses.cosine(own, expected, counted)
        case RelationalTerm():
            samples = (_of_samples(each, counted, len(batch.targets)) for each in (own, expected))
            return losses.relational(*samples, distance=term.distance, angle=term.angle)
    raise TypeError(term)


def _decoupled(term: DecoupledTerm, own: Tensor, expected: Tensor, counted: Tensor | None, batch: Answered) -> Tensor:
    """Of mixed samples λ · loss(labels) + (1 − λ) · loss(other labels)."""

    def by(targets: Tensor) -> Tensor:
        return losses.decoupled(
            own,
            expected,
            targets.reshape(-1).clamp_min(0),
            alpha=term.alpha,
            beta=term.beta,
            temperature=term.temperature,
            counted=counted,
        )

    if batch.mix is None:
        return by(batch.targets)
    share = batch.mix.share[0]
    return share * by(batch.targets) + (1 - share) * by(batch.mix.other)


def _of_samples(rows: Tensor, counted: Tensor | None, samples: int) -> Tensor:
    """(N, C): of several rows a sample the mean of those that count; what a teacher masks is 0."""
    rows = rows.masked_fill(rows == -torch.inf, 0.0)
    if len(rows) == samples:
        return rows
    rows = rows.reshape(samples, -1, rows.shape[1])
    if counted is None:
        return rows.mean(1)
    counts = counted.reshape(samples, -1, 1)
    return torch.where(counts, rows, 0.0).sum(1) / counts.sum(1).clamp_min(1)


class OfFeatures(nn.Module):
    """A term that compares inner layers: the mean over its pairs. What brings them together is learned along.

    Args:
        term: with `features`.
        pairs: chosen or named.
    """

    def __init__(self, term: FeatureTerm, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self._term, self._pairs = term, list(pairs)
        self.adapters = nn.ModuleList(
            Adapter(pair.teacher, pair.student) if projects_in(term) else nn.Identity() for pair in pairs
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Answered) -> Tensor:
        """The value, without its weight: a scalar. Args: what the layers of the pairs gave, (N, …) each."""
        values = [
            self._of_pair(index, narrow, wide, batch)
            for index, (narrow, wide) in enumerate(zip(student, teacher, strict=True))
        ]
        return torch.stack(values).mean()

    def _of_pair(self, index: int, student: Tensor, teacher: Tensor, batch: Answered) -> Tensor:
        term, pair = self._term, self._pairs[index]
        if isinstance(term, RelationalTerm):
            narrow, wide = (
                pooled(each, layer.channel_dim) for each, layer in ((student, pair.student), (teacher, pair.teacher))
            )
            return losses.relational(narrow, wide, distance=term.distance, angle=term.angle)
        if isinstance(term, AttentionTerm):  # averaged over areas is how active they are, not what cancels there
            own, expected = active_places(student, teacher, (pair.student, pair.teacher))
            return losses.attention(own, expected, counted_places(batch, own.shape[1]))
        own, expected = self.adapters[index](student, teacher)
        counted = counted_places(batch, own.shape[1])
        rows = own.flatten(0, 1), expected.flatten(0, 1), None if counted is None else counted.flatten()
        return losses.hint(*rows) if isinstance(term, HintTerm) else losses.cosine(*rows)


def projects_in(term: FeatureTerm) -> bool:
    """Whether a term compares channel by channel, so that other widths are projected."""
    return isinstance(term, HintTerm | CosineTerm)


def counted_places(batch: Answered, places: int) -> Tensor | None:
    """Which positions of features count, (N, P): those that have a label, or are no padding; None: all.

    Only where the positions of the features are those of labels or tokens.
    """
    targets, samples = batch.targets, len(batch.targets)
    if targets.dim() > 1 and not targets.is_floating_point() and targets[0].numel() == places:
        return (targets != IGNORED).reshape(samples, places)
    tokens = batch.inputs[0]
    if batch.padding is not None and tokens.dim() == 2 and tokens.shape[1] == places:
        return tokens != batch.padding
    return None
