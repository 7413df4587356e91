"""The terms of a combined loss of distillation: what each compares, and its weight in the sum."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pared.specs.base import Spec
from pared.specs.uploads import Text

FeaturePairs = Literal["auto"] | Annotated[list[tuple[Text, Text]], Field(max_length=16)]
"""Pairs [teacher layer, student layer], or `auto`: chosen by relative depth and shape."""

_PAIRS = (
    "Pairs [teacher layer, student layer], named as the inspections do. `auto` pairs layers by relative depth and "
    "shape, and the report says which."
)


class Term(Spec):
    """One summand of a loss."""

    weight: float = Field(1.0, gt=0, le=1e6, description="What the term is multiplied by.")


class OutputMseTerm(Term):
    """The squared distance of the outputs, summed over them; of `embedding` and `match` the task's own distance."""

    kind: Literal["output_mse"]


class KlTerm(Term):
    """T² · KL(teacher ‖ student) of softened classes."""

    kind: Literal["kl"]
    temperature: float = Field(4.0, gt=0, le=100)


class DecoupledTerm(Term):
    """T² · (α · KL of the label's class against the rest + β · KL among all other classes), arXiv:2203.08679."""

    kind: Literal["decoupled"]
    alpha: float = Field(1.0, ge=0, le=1000, description="Weight of the label's class against the rest.")
    beta: float = Field(8.0, ge=0, le=1000, description="Weight of the other classes among each other.")
    temperature: float = Field(4.0, gt=0, le=100)


class DistTerm(Term):
    """T² · (β · correlation within samples + γ · correlation within classes), arXiv:2205.10536."""

    kind: Literal["dist"]
    beta: float = Field(1.0, ge=0, le=1000, description="Weight of the order of classes within each sample.")
    gamma: float = Field(1.0, ge=0, le=1000, description="Weight of the order of samples within each class.")
    temperature: float = Field(1.0, gt=0, le=100)


class LabelsTerm(Term):
    """The task's loss on the labels."""

    kind: Literal["labels"]


class HintTerm(Term):
    """The squared distance of inner layers as a share of the teacher's size, projected where widths differ."""

    kind: Literal["hint"]
    features: FeaturePairs = Field("auto", description=_PAIRS)


class AttentionTerm(Term):
    """The distance of where inner layers are active, whatever their channels are, arXiv:1612.03928."""

    kind: Literal["attention"]
    features: FeaturePairs = Field("auto", description=_PAIRS)


class RelationalTerm(Term):
    """The distances and angles between the samples of a batch, arXiv:1904.05068."""

    kind: Literal["relational"]
    distance: float = Field(1.0, ge=0, le=1000, description="Weight of distances between two samples.")
    angle: float = Field(2.0, ge=0, le=1000, description="Weight of angles between three samples.")
    features: FeaturePairs | None = Field(None, description=f"Without any, the outputs. {_PAIRS}")


class CosineTerm(Term):
    """One minus the cosine of the outputs, such as embeddings, or of inner layers."""

    kind: Literal["cosine"]
    features: FeaturePairs | None = Field(None, description=f"Without any, the outputs. {_PAIRS}")


LossTerm = Annotated[
    OutputMseTerm
    | KlTerm
    | DecoupledTerm
    | DistTerm
    | LabelsTerm
    | HintTerm
    | AttentionTerm
    | RelationalTerm
    | CosineTerm,
    Field(discriminator="kind"),
]
FeatureTerm = HintTerm | AttentionTerm | RelationalTerm | CosineTerm
OF_CLASSES = (KlTerm, DecoupledTerm, DistTerm)
"""The terms that compare odds of classes."""


class Combined(Spec):
    """A sum of terms by weights: L = Σ w_k · L_k."""

    kind: Literal["combined"]
    terms: list[LossTerm] = Field(
        min_length=1,
        max_length=16,
        examples=[[{"kind": "kl", "temperature": 4}, {"kind": "labels", "weight": 0.1}, {"kind": "hint"}]],
    )

    @property
    def with_features(self) -> list[tuple[int, FeatureTerm]]:
        """The terms that compare inner layers, with their places."""
        found = []
        for place, term in enumerate(self.terms):
            if isinstance(term, FeatureTerm) and term.features is not None:
                found.append((place, term))
        return found

    def unfit(self, *, classes: bool, labels: bool, one_output: bool) -> dict[str, str]:
        """The terms that have nothing to compare (path within the loss -> why), for a task with or without these."""
        found: dict[str, str] = {}
        for place, term in enumerate(self.terms):
            if not classes and isinstance(term, OF_CLASSES):
                why = "compares odds of classes, which the task does not have: use `output_mse` or inner layers"
                found[f"terms/{place}"] = why
            if not labels and isinstance(term, LabelsTerm):
                found[f"terms/{place}"] = "is of labels, which the task does not have: leave it out"
            if not one_output and isinstance(term, RelationalTerm | CosineTerm) and term.features is None:
                why = "compares one output, and the task has all: name `features`, or use task=embedding"
                found[f"terms/{place}"] = why
        return found

    @model_validator(mode="after")
    def _compares_something(self) -> Combined:
        if all(isinstance(term, LabelsTerm) for term in self.terms):
            why = 'are labels alone, of which a teacher has no part: add a term such as {"kind": "kl"}'
            self._refuse({"terms": why})
        for place, term in enumerate(self.terms):
            if isinstance(term, FeatureTerm) and term.features == []:
                self._refuse({f"terms/{place}/features": 'has no pair: name some, or give "auto"'})
            if isinstance(term, RelationalTerm) and not term.distance and not term.angle:
                self._refuse({f"terms/{place}/distance": "and `angle` are both 0: give one of them a weight"})
            if isinstance(term, DecoupledTerm) and not term.alpha and not term.beta:
                self._refuse({f"terms/{place}/alpha": "and `beta` are both 0: give one of them a weight"})
            if isinstance(term, DistTerm) and not term.beta and not term.gamma:
                self._refuse({f"terms/{place}/beta": "and `gamma` are both 0: give one of them a weight"})
        return self
