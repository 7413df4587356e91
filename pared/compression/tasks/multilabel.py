"""Multi-label classification: several labels may hold of a sample, each by a logit of its own, (N, labels)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pared.compression.tasks import labels as checked
from pared.compression.tasks.base import Labels, OtherTask, StoredLabels, hold_labelled
from pared.compression.tasks.sums import SummedScore, ratio
from pared.errors import InvalidData, ShapeMismatch
from pared.reports import Comparison


class Multilabel(SummedScore):
    """Binary cross-entropy, and F1 over all labels together (micro-averaged).

    The accuracy of labels, of which most never hold, is high for a model that gives none; F1 counts only what holds
    or is said to. Over all labels together few samples tell it well; `beside` has the mean of each label's own, in
    which rare labels weigh as much. NaN gives no label.
    """

    name = "multilabel"
    metric = "f1"
    wanted = "logits (N, labels)"

    @property
    def independent(self) -> bool:
        """Each label is a question of its own."""
        return True

    def labels(self, stored: StoredLabels) -> Labels:
        """0 and 1, (samples, labels)."""
        hold_labelled(stored, self.name)
        targets = {}
        for split, array in stored.arrays.items():
            if array.ndim != 2 or not checked.is_zero_one(array):
                raise InvalidData(
                    f"y is {array.dtype} of shape {array.shape} ({split} split), but multilabel needs a 0 "
                    "or a 1 for each sample and label: (samples, labels). For one class a sample use "
                    "task=classification, for numbers task=regression."
                )
            targets[split] = torch.from_numpy(array.astype("float32"))
        notes = []
        together = torch.cat(list(targets.values()))
        if not bool((together != together[0]).any()):
            raise OtherTask(
                "All samples have the same labels: there is nothing to tell apart. Give labels that hold of some "
                "samples alone, or use task=match, which needs no labels."
            )
        never = int((together.sum(0) == 0).sum())
        if never:
            notes.append(f"{never} of the {targets['train'].shape[1]} labels never hold.")
        return Labels(targets, targets["train"].shape[1], stored.class_names, notes=notes)

    def fitted(self, labels: Mapping[Any, Tensor], output: Tensor) -> dict[Any, Tensor]:
        """As they are; the model must have an output for each label."""
        for target in labels.values():
            if target.shape[1] != output.shape[1]:
                raise ShapeMismatch(
                    f"The data set has {target.shape[1]} labels a sample, the model {output.shape[1]} outputs."
                )
        return dict(labels)

    def takes(self, output: Tensor) -> bool:
        """(N, labels)."""
        return output.dim() == 2

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over samples and labels; a class weight is of a label that holds."""
        if self.smoothing:
            target = target * (1 - self.smoothing) + self.smoothing / 2
        return functional.binary_cross_entropy_with_logits(
            output, target.to(output.dtype), pos_weight=self.weights_on(output.device)
        )

    def mean_loss(self, condensed: Tensor, targets: Tensor) -> float:
        """Without weights and smoothing."""
        return float(functional.binary_cross_entropy_with_logits(condensed, targets))

    def answered(self, condensed: Tensor) -> Tensor:
        """Those without NaN."""
        return ~condensed.isnan().any(1)

    def statistics(self, condensed: Tensor, targets: Tensor) -> Tensor:
        """Labels of each sample that are found, missed, and said in vain: (N, 3)."""
        return torch.stack([each.sum(1) for each in _counts(condensed, targets)], 1).double().cpu()

    def value(self, sums: Tensor) -> Tensor:
        """F1 = 2 · found / (2 · found + missed + in vain); without any labels, 1 where none is said."""
        found, missed, in_vain = sums.unbind(1)
        return torch.where(
            found + missed + in_vain > 0, ratio(2 * found, 2 * found + missed + in_vain), torch.ones_like(found)
        )

    def beside(self, condensed: Tensor, targets: Tensor) -> dict[str, float]:
        """The mean of each occurring label's F1, and the share of right labels."""
        of_label, occurs = _f1_of_labels(condensed, targets)
        right = ((condensed > 0) == (targets > 0)) & ~condensed.isnan()
        return {
            "macro_f1": float(of_label[occurs].mean()) if bool(occurs.any()) else 0.0,
            "label_accuracy": float(right.double().mean()),
        }

    def compare(self, before: Tensor, after: Tensor, targets: Tensor) -> Comparison:
        """With the F1 of each label."""
        (first, occurs), (second, _) = (_f1_of_labels(each, targets) for each in (before, after))
        same = ((before > 0) == (after > 0)).double().mean()
        per_class = [
            {
                "class": label,
                "samples": int(targets[:, label].sum()),
                "before": float(first[label]),
                "after": float(second[label]),
                "change": float(second[label] - first[label]),
            }
            for label in occurs.nonzero().flatten().tolist()
        ]
        return (
            super()
            .compare(before, after, targets)
            .model_copy(update={"per_class": per_class, "equal_predictions": float(same)})
        )


def _counts(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which labels are found, missed, and said in vain: each (N, labels) bool."""
    said, holds = outputs > 0, targets > 0
    return said & holds, ~said & holds, said & ~holds


def _f1_of_labels(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """F1 of each label, and which labels occur."""
    found, missed, in_vain = (each.double().sum(0) for each in _counts(outputs, targets))
    return ratio(2 * found, 2 * found + missed + in_vain), found + missed > 0
