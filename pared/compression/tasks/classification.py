"""Classification: one class a sample, from logits (N, classes)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pared.compression.tasks.base import TaskRules
from pared.compression.tasks.statistics import mcnemar, paired_difference, wilson
from pared.reports import Comparison, Interval


class Classification(TaskRules):
    """Cross-entropy and accuracy. A sample without an answer is wrong.

    NaN is no answer; an infinite logit is one, as the −inf of a masked class. A model that ends in log-softmax fits
    too: cross-entropy normalises, and its logarithms already are.
    """

    metric = "accuracy"
    score_name = "accuracy"
    output = "logits (N, classes)"
    output_dims = (2,)
    unanswered = "counted as wrong"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(output, target)

    def answered(self, outputs: Tensor) -> Tensor:
        """Those without NaN."""
        return ~outputs.isnan().any(1)

    def scored(self, outputs: Tensor) -> Tensor:
        """All."""
        return torch.ones(len(outputs), dtype=torch.bool, device=outputs.device)

    def counted(self, outputs: Tensor) -> Tensor:
        """All."""
        return self.scored(outputs)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Accuracy."""
        return float((self.classes(outputs) == targets).double().mean())

    def interval(self, outputs: Tensor, targets: Tensor) -> Interval:
        """Of Wilson."""
        return wilson(int((self.classes(outputs) == targets).sum()), len(targets))

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
