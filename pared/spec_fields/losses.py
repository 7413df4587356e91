"""Typed keywords of the losses of distillation."""

from typing import Literal, Required, TypedDict

FeaturePairs = Literal["auto"] | list[tuple[str, str]]
"""Pairs of a teacher's and a student's layer, or `auto`: chosen by relative depth and shape."""


class OutputMseFields(TypedDict, total=False):
    """The squared distance of the student's outputs from the teacher's."""

    kind: Required[Literal["output_mse"]]
    """Names this loss."""


class KnowledgeFields(TypedDict, total=False):
    """Knowledge distillation: α · output distance + (1 − α) · T² · KL(teacher ‖ student)."""

    kind: Required[Literal["knowledge"]]
    """Names this loss."""
    alpha: float
    """Weight α of the output distance, 0 to 1; 0 by default."""
    temperature: float
    """Temperature T that softens the outputs, above 0; 2 by default."""
    features: FeaturePairs | None
    """Pairs of a teacher's and a student's layer, or `auto`: the KL term compares their softened outputs."""
    labels: float | None
    """Share of the loss on the labels, 0 to below 1; by default 0.5, and 0 of samples without labels."""


class OutputMseTermFields(TypedDict, total=False):
    """A term of `combined`: the squared distance of the outputs."""

    kind: Required[Literal["output_mse"]]
    """Names this term."""
    weight: float
    """What the term is multiplied by; 1 by default."""


class KlTermFields(TypedDict, total=False):
    """A term of `combined`: T² · KL(teacher ‖ student) of softened classes."""

    kind: Required[Literal["kl"]]
    """Names this term."""
    weight: float
    """What the term is multiplied by; 1 by default."""
    temperature: float
    """Temperature T that softens the outputs, above 0; 4 by default."""


class DecoupledTermFields(TypedDict, total=False):
    """A term of `combined`: decoupled distillation, the label's class and the other classes each by a weight."""

    kind: Required[Literal["decoupled"]]
    """Names this term."""
    weight: float
    """What the term is multiplied by; 1 by default."""
    alpha: float
    """Weight of the label's class against the rest; 1 by default."""
    beta: float
    """Weight of the other classes among each other; 8 by default."""
    temperature: float
    """Temperature T that softens the outputs, above 0; 4 by default."""


class DistTermFields(TypedDict, total=False):
    """A term of `combined`: DIST, the correlations within samples and within classes."""

    kind: Required[Literal["dist"]]
    """Names this term."""
    weight: float
    """What the term is multiplied by; 1 by default."""
    beta: float
    """Weight of the order of classes within each sample; 1 by default."""
    gamma: float
    """Weight of the order of samples within each class; 1 by default."""
    temperature: float
    """Temperature T that softens the outputs, above 0; 1 by default."""


class LabelsTermFields(TypedDict, total=False):
    """A term of `combined`: the task's loss on the labels."""

    kind: Required[Literal["labels"]]
    """Names this term."""
    weight: float
    """What the term is multiplied by; 1 by default."""


class HintTermFields(TypedDict, total=False):
    """A term of `combined`: the squared distance of inner layers as a share of the teacher's size."""

    kind: Required[Literal["hint"]]
    """Names this term."""
    weight: float
    """What the term is multiplied by; 1 by default."""
    features: FeaturePairs
    """Pairs of a teacher's and a student's layer, or `auto`, the default."""


class AttentionTermFields(TypedDict, total=False):
    """A term of `combined`: where inner layers are active, whatever their channels are."""

    kind: Required[Literal["attention"]]
    """Names this term."""
    weight: float
    """What the term is multiplied by; 1 by default."""
    features: FeaturePairs
    """Pairs of a teacher's and a student's layer, or `auto`, the default."""


class RelationalTermFields(TypedDict, total=False):
    """A term of `combined`: the distances and angles between the samples of a batch."""

    kind: Required[Literal["relational"]]
    """Names this term."""
    weight: float
    """What the term is multiplied by; 1 by default."""
    distance: float
    """Weight of distances between two samples; 1 by default."""
    angle: float
    """Weight of angles between three samples; 2 by default."""
    features: FeaturePairs | None
    """Pairs of a teacher's and a student's layer, or `auto`; without any, the outputs."""


class CosineTermFields(TypedDict, total=False):
    """A term of `combined`: one minus the cosine of the outputs, such as embeddings, or of inner layers."""

    kind: Required[Literal["cosine"]]
    """Names this term."""
    weight: float
    """What the term is multiplied by; 1 by default."""
    features: FeaturePairs | None
    """Pairs of a teacher's and a student's layer, or `auto`; without any, the outputs."""


LossTermFields = (
    OutputMseTermFields
    | KlTermFields
    | DecoupledTermFields
    | DistTermFields
    | LabelsTermFields
    | HintTermFields
    | AttentionTermFields
    | RelationalTermFields
    | CosineTermFields
)
"""One term of a combined loss."""


class CombinedFields(TypedDict, total=False):
    """A sum of terms by their weights."""

    kind: Required[Literal["combined"]]
    """Names this loss."""
    terms: Required[list[LossTermFields]]
    """What is summed, 1 to 16 terms."""


DistillLossFields = OutputMseFields | KnowledgeFields | CombinedFields
"""One loss of distillation."""
