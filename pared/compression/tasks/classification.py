"""Classification: one class a sample, from logits (N, classes), or of two classes from one logit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from pared.compression.tasks import labels as checked
from pared.compression.tasks.base import Labels, StoredLabels, TaskRules, hold_labelled
from pared.compression.tasks.statistics import mcnemar, paired_difference, wilson
from pared.errors import InvalidData
from pared.reports import Comparison, Interval
from pared.specs import Task


class Classification(TaskRules):
    """Cross-entropy and accuracy. A sample without an answer is wrong.

    NaN is no answer; an infinite logit is one, as the −inf of a masked class. A model that ends in log-softmax fits
    too: cross-entropy normalises, and its logarithms already are. One that ends in a sigmoid was trained to tell each
    class from all others, and still is.
    """

    name: ClassVar[Task] = "classification"
    metric = "accuracy"
    wanted = "logits (N, classes)"

    def labels(self, stored: StoredLabels) -> Labels:
        """One class a sample: whole numbers from 0, words, or one-hot rows."""
        hold_labelled(stored, self.name)
        notes: list[str] = []
        targets, names = checked.classes(stored.arrays, stored.class_names, notes)
        count = 1 + max(int(target.max()) for target in targets.values())
        return Labels(targets, count, names, by_class=True, notes=notes)

    def fitted(self, labels: Mapping[Any, Tensor], output: Tensor) -> dict[Any, Tensor]:
        """As they are; the model must have an output for each class."""
        classes = 1 + max(int(target.max()) for target in labels.values())
        if output.shape[1] == 1:
            fits = "For amounts use task=regression, for classes a model with more outputs."
            if classes <= 2:
                fits = "One logit that tells two classes apart is task=binary."
            raise InvalidData(
                f"The labels are classes 0 to {classes - 1}, but the model has 1 output, and classification needs one "
                f"for each class. {fits}"
            )
        if output.shape[1] < classes:
            raise InvalidData(
                f"The labels go up to {classes - 1}, but the model has {output.shape[1]} outputs (classes 0 to "
                f"{output.shape[1] - 1}). Number the classes from 0, or use a model with more outputs."
            )
        return dict(labels)

    def takes(self, output: Tensor) -> bool:
        """(N, classes)."""
        return output.dim() == 2

    def advice(self, output: Tensor) -> str:
        """The task that fits."""
        if output.dim() == 1:
            return " One logit a sample, for two classes, is task=binary."
        if output.dim() >= 3:
            return (
                " An output for each pixel (N, classes, H, W) is task=segmentation, one for each token (N, T, classes) "
                "task=token_classification or task=language_modeling; their labels are (N, H, W) or (N, T)."
            )
        return super().advice(output)

    @property
    def independent(self) -> bool:
        """Of a model that ends in a sigmoid."""
        return self.head == "sigmoid"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, Σ_i w(y_i) · −log p(y_i) / Σ_i w(y_i); behind a sigmoid each class against the rest."""
        if self.independent:
            return self._one_against_rest(output, target, self.weights_on(output.device), self.smoothing)
        weights = self.weights_on(output.device)
        if weights is None:
            return functional.cross_entropy(output, target, label_smoothing=self.smoothing)
        losses = functional.cross_entropy(
            output, target, weight=weights, label_smoothing=self.smoothing, reduction="sum"
        )
        return losses / weights[target].sum().clamp_min(1e-12)  # a batch may hold only classes that weigh nothing

    def weight(self, target: Tensor) -> Tensor | int:
        """Of the samples' classes."""
        weights = self.weights_on(target.device)
        return len(target) if weights is None else weights[target].sum()

    @staticmethod
    def _one_against_rest(output: Tensor, target: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
        """Σ_i w(y_i) Σ_c BCE(z_ic, [y_i = c]) / Σ_i w(y_i)."""
        wanted = torch.zeros_like(output).scatter_(1, target[:, None], 1.0)
        wanted = wanted * (1 - smoothing) + smoothing / output.shape[1]
        losses = functional.binary_cross_entropy_with_logits(output, wanted, reduction="none").sum(1)
        if weights is None:
            return losses.mean()
        of_sample = weights[target]
        return (losses * of_sample).sum() / of_sample.sum().clamp_min(1e-12)

    def mean_loss(self, condensed: Tensor, targets: Tensor) -> float:
        """As `loss`."""
        if self.independent:
            return float(self._one_against_rest(condensed, targets, None, 0.0))
        return float(functional.cross_entropy(condensed, targets))

    def answered(self, condensed: Tensor) -> Tensor:
        """Those without NaN."""
        return ~condensed.isnan().any(1)

    def score(self, condensed: Tensor, targets: Tensor) -> float:
        """Accuracy."""
        return float((self.classes(condensed) == targets).double().mean())

    def interval(self, condensed: Tensor, targets: Tensor) -> Interval:
        """Of Wilson."""
        return wilson(int((self.classes(condensed) == targets).sum()), len(targets))

    def compare(self, before: Tensor, after: Tensor, targets: Tensor) -> Comparison:
        """McNemar's test, and what became of each class."""
        class_before, class_after = self.classes(before), self.classes(after)
        right_before, right_after = class_before == targets, class_after == targets
        lost = int((right_before & ~right_after).sum())
        won = int((right_after & ~right_before).sum())
        per_class = []
        for label in torch.unique(targets).tolist():
            of_class = targets == label
            shares = [float(right[of_class].double().mean()) for right in (right_before, right_after)]
            per_class.append(
                {
                    "class": label,
                    "samples": int(of_class.sum()),
                    "before": shares[0],
                    "after": shares[1],
                    "change": shares[1] - shares[0],
                }
            )
        return Comparison(
            quality_difference=paired_difference(lost, won, len(targets)),
            p_value=mcnemar(lost, won),
            test="mcnemar",
            equal_predictions=float(((class_before == class_after) & (class_before >= 0)).double().mean()),
            per_class=per_class,
        )

    def classes(self, outputs: Tensor) -> Tensor:
        """The class of each sample, (N,); −1, which is no class, where a logit is NaN."""
        return outputs.argmax(1).masked_fill(~self.answered(outputs), -1)


class Binary(Classification):
    """Classification of two classes by one logit: that of class 0 is 0, so that cross-entropy is that of the logit."""

    name = "binary"
    wanted = "one logit a sample, (N,) or (N, 1)"

    @property
    def independent(self) -> bool:
        """The two classes are one question."""
        return False

    def labels(self, stored: StoredLabels) -> Labels:
        """As of a classification, of two classes."""
        found = super().labels(stored)
        if (found.classes or 0) > 2:
            raise InvalidData(
                f"The labels go up to {(found.classes or 0) - 1}, but one logit tells only the classes 0 and 1 apart. "
                "For more classes use a model with an output for each, and task=classification; for amounts, "
                "task=regression."
            )
        return found

    def takes(self, output: Tensor) -> bool:
        """(N,) or (N, 1)."""
        return output.dim() == 1 or (output.dim() == 2 and output.shape[1] == 1)

    def advice(self, output: Tensor) -> str:
        """The task that fits."""
        if output.dim() == 2:
            return " An output for each class is task=classification."
        return super().advice(output)

    def shaped(self, output: Tensor) -> Tensor:
        """Logits (N, 2), of which the first is 0 and the second the model's."""
        logit = output.reshape(-1, 1)
        return torch.cat([torch.zeros_like(logit), logit], 1)
