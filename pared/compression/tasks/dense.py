"""Tasks with one class for each position of a sample: pixels of images, tokens of texts."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from pared.compression.tasks.base import Labels, StoredLabels, hold_labelled
from pared.compression.tasks.labels import IGNORED, dense_classes
from pared.compression.tasks.sums import SummedScore, broken, ratio
from pared.errors import InvalidData, ShapeMismatch
from pared.reports import Comparison, Metric
from pared.specs import Task

_LOSS, _LABELLED, _RIGHT, _CLASSES = 2, 3, 4, 5  # columns of what is kept of a sample, behind the two of `broken`


class DenseClassification(SummedScore):
    """Cross-entropy over all positions that have a label. Positions without an answer are wrong.

    What is kept of a sample are sums over its positions: the loss, how many have a label, and how many are right.
    Samples, not positions, are drawn by the bootstrap: those of one sample are alike.
    """

    class_dim: ClassVar[int]
    position: ClassVar[str]
    """What a position is, in the plural."""
    answers: ClassVar[str] = "classes"
    advice_on_classes: ClassVar[str] = "Number the classes from 0"

    def labels(self, stored: StoredLabels) -> Labels:
        """A class for each position (samples, …), `IGNORED` where there is none."""
        hold_labelled(stored, self.name)
        notes: list[str] = []
        arrays = {}
        for split, array in stored.arrays.items():
            if array.ndim < 2:
                raise InvalidData(
                    f"y has the shape {array.shape} ({split} split), one label a sample, but {self.name} needs one for "
                    f"each of the {self.position}. For one class a sample use task=classification."
                )
            arrays[split] = array
        targets, classes = dense_classes(arrays, ignored=self.ignored, what=self.position, notes=notes)
        return Labels(targets, classes, notes=notes)

    def fitted(self, labels: Mapping[Any, Tensor], output: Tensor) -> dict[Any, Tensor]:
        """Without dimensions of 1 that the model's positions lack; the model must have an output for each class."""
        found = {}
        classes = 1 + max(int(target.max()) for target in labels.values())
        if (there := output.shape[self.class_dim]) < classes:
            raise InvalidData(
                f"The labels go up to {classes - 1}, but the model has {there} {self.answers} (0 to {there - 1}). "
                f"{self.advice_on_classes}, or name the mark of {self.position} without a label with `ignore_index`."
            )
        places = output.movedim(self.class_dim, -1).shape[1:-1]
        for split, label in labels.items():
            target = label
            if target.dim() == len(places) + 2 and 1 in target.shape[1:]:  # as masks with a channel have it
                target = target.squeeze(1 if target.shape[1] == 1 else -1)
            if not self.same_places(target, places):
                raise ShapeMismatch(
                    f"The model answers {tuple(places)} {self.position} a sample, and the labels ({split} split) have "
                    f"{tuple(target.shape[1:])}. {self.advice_on_places}"
                )
            found[split] = target
        return found

    @property
    @abstractmethod
    def advice_on_places(self) -> str:
        """What to do where labels are not of the model's positions."""

    def same_places(self, target: Tensor, places: torch.Size) -> bool:
        """Whether labels are of these positions."""
        return target.shape[1:] == places

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Σ_p w(y_p) · −log p(y_p) / Σ_p w(y_p) over the positions p of all samples; 0 where none has a label."""
        weights = self.weights_on(output.device)
        losses = functional.cross_entropy(
            self._classes_second(output),
            target,
            weight=weights,
            label_smoothing=self.smoothing,
            ignore_index=IGNORED,
            reduction="sum",
        )
        return losses / torch.as_tensor(self.weight(target), device=output.device).clamp_min(1e-12)

    def weight(self, target: Tensor) -> Tensor | int:
        """Of all positions that have a label, by their classes."""
        labelled = target != IGNORED
        weights = self.weights_on(target.device)
        return labelled.sum() if weights is None else (weights[target.clamp_min(0)] * labelled).sum()

    def rows(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """The odds of each position, and whether it has a label."""
        odds = output.movedim(self.class_dim, -1)
        return odds.reshape(-1, odds.shape[-1]), (target != IGNORED).reshape(-1)

    def condensed(self, output: Tensor, target: Tensor) -> Tensor:
        """(N, 5 + …): broken or not, the loss, how many have a label, how many are right."""
        odds = self._classes_second(output).float()
        labelled = target != IGNORED
        losses = functional.cross_entropy(odds, target, ignore_index=IGNORED, reduction="none")
        answer = odds.argmax(1).masked_fill(odds.isnan().any(1), -1)
        sums = [losses.masked_fill(~labelled, 0.0), labelled, labelled & (answer == target)]
        columns = [each.reshape(len(output), -1).sum(1, keepdim=True).float() for each in sums]
        return torch.cat([broken(output), *columns, *self.further(answer, target, odds.shape[1])], 1)

    def further(self, answer: Tensor, target: Tensor, classes: int) -> list[Tensor]:
        """Further columns (N, …) of what is kept; answers of −1 are none."""
        return []

    def kept_targets(self, target: Tensor) -> Tensor:
        """None: samples of any length have their sums."""
        return target.new_zeros(len(target), 0)

    def mean_loss(self, condensed: Tensor, targets: Tensor) -> float:
        """Over positions."""
        return float(condensed[:, _LOSS].double().sum() / condensed[:, _LABELLED].double().sum().clamp_min(1))

    def answered(self, condensed: Tensor) -> Tensor:
        """Those without NaN."""
        return ~condensed[:, 0].isnan()

    def counted(self, condensed: Tensor) -> Tensor:
        """As of any task.

        Raises:
            InvalidData: no position has a label.
        """
        counted = super().counted(condensed)
        if not bool(condensed[counted, _LABELLED].any()):
            raise InvalidData(
                f"None of the {self.position} of the validation or test samples has a label, so that nothing can be "
                f"scored. Leave out samples whose {self.position} are all ignored, or give splits of your own."
            )
        return counted

    def statistics(self, condensed: Tensor, targets: Tensor) -> Tensor:
        """All but the first two columns."""
        return condensed[:, _LOSS:].double().cpu()

    def _classes_second(self, output: Tensor) -> Tensor:
        return output.movedim(self.class_dim, 1)


@dataclass(frozen=True, kw_only=True)
class Segmentation(DenseClassification):
    """Mean intersection over union of the classes that occur in the labels.

    A class that no label has says nothing of a model; what is answered so in vain is missing from other classes. Of one
    logit for each pixel, that of class 0 is 0, as in a binary classification.

    Attributes:
        flat: whether outputs (N, H, W) are one logit for each pixel.
    """

    name = "segmentation"
    metric = "mean_iou"
    wanted = "logits (N, classes, H, W), or one logit for each pixel, (N, 1, H, W) or (N, H, W)"
    flat: bool = False
    class_dim = 1
    position = "pixels"
    advice_on_places = (
        "Upsample the model's output to the size of the masks in its forward, or resize the masks to the output's size."
    )

    def takes(self, output: Tensor) -> bool:
        """(N, classes, …)."""
        return output.dim() >= 3

    def advice(self, output: Tensor) -> str:
        """The task that fits."""
        return " One class a sample is task=classification." if output.dim() <= 2 else super().advice(output)

    def shaped(self, output: Tensor) -> Tensor:
        """Two classes of one logit."""
        if self.flat and output.dim() == 3:
            output = output[:, None]
        return torch.cat([torch.zeros_like(output), output], 1) if output.shape[1] == 1 else output

    def further(self, answer: Tensor, target: Tensor, classes: int) -> list[Tensor]:
        """Of each class: pixels that are right, that are answered so, and that have the label."""
        samples = len(target)
        answer, target = answer.reshape(samples, -1), target.reshape(samples, -1)
        labelled = target != IGNORED
        offset = torch.arange(samples, device=target.device)[:, None] * classes

        def by_class(of: Tensor, where: Tensor) -> Tensor:
            return torch.bincount((of + offset)[where], minlength=samples * classes).reshape(samples, classes).float()

        return [
            by_class(target, labelled & (answer == target)),
            by_class(answer, labelled & (answer >= 0)),
            by_class(target, labelled),
        ]

    def value(self, sums: Tensor) -> Tensor:
        """The mean of occurring classes' |A ∩ B| / |A ∪ B|."""
        of_class, occurs = _iou(sums)
        return ratio((of_class * occurs).sum(1), occurs.double().sum(1))

    def beside(self, condensed: Tensor, targets: Tensor) -> dict[str, float]:
        """Pixel accuracy."""
        sums = condensed.double().sum(0)
        return {"pixel_accuracy": float(sums[_RIGHT] / sums[_LABELLED].clamp_min(1))}

    def compare(self, before: Tensor, after: Tensor, targets: Tensor) -> Comparison:
        """With the intersection over union of each class."""
        (first, occurs), (second, _) = (
            _iou(self.statistics(each, targets).sum(0, keepdim=True)) for each in (before, after)
        )
        pixels = self.statistics(before, targets).sum(0)[-first.shape[1] :]
        per_class = [
            {
                "class": label,
                "samples": int(pixels[label]),
                "before": float(first[0, label]),
                "after": float(second[0, label]),
                "change": float(second[0, label] - first[0, label]),
            }
            for label in occurs[0].nonzero().flatten().tolist()
        ]
        return super().compare(before, after, targets).model_copy(update={"per_class": per_class})


def _iou(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Of each class, and which of them occur in labels: sums (R, S) -> (R, classes) each."""
    right, answers, labels = sums[:, _CLASSES - _LOSS :].chunk(3, 1)
    return ratio(right, answers + labels - right), labels > 0


class TokenClassification(DenseClassification):
    """The share of right tokens."""

    name: ClassVar[Task] = "token_classification"
    metric: ClassVar[Metric] = "accuracy"
    wanted = "logits (N, T, classes)"
    class_dim = -1
    position = "tokens"
    advice_on_places = "Give one label for each token, −100 where there is none, as for padding."

    def takes(self, output: Tensor) -> bool:
        """(N, T, classes)."""
        return output.dim() == 3

    def advice(self, output: Tensor) -> str:
        """The task that fits."""
        if output.dim() == 2:
            return " One class for a whole text is task=classification."
        return " An output for each pixel is task=segmentation." if output.dim() > 3 else super().advice(output)

    def value(self, sums: Tensor) -> Tensor:
        """Right tokens of those that have a label."""
        return ratio(sums[:, _RIGHT - _LOSS], sums[:, _LABELLED - _LOSS])


class LanguageModeling(TokenClassification):
    """The mean log-likelihood of a token, in nats: −log of the perplexity. Sequences with NaN are left out.

    Labels are the tokens that come next. Without any, they are the model's own inputs, moved by one.
    """

    name = "language_modeling"
    metric = "log_likelihood"
    wanted = "logits (N, T, vocabulary)"
    answers = "tokens in its answers"
    advice_on_classes = "Encode the text with the vocabulary the model was trained with"
    unanswered = "left out of all scores"

    def labels(self, stored: StoredLabels) -> Labels:
        """The next tokens (samples, T)."""
        if stored.arrays:
            return super().labels(stored)
        if any(each.dtype != torch.int64 or each.dim() != 2 for each in stored.inputs.values()):
            raise InvalidData(
                "A language model learns the next tokens (y), or without y those of its own inputs; these are no token "
                "ids (int64, (samples, T)). Give token ids, or use task=match."
            )
        targets = {split: _next_tokens(each) for split, each in stored.inputs.items()}
        if any(bool((each == IGNORED).all()) for each in targets.values()):
            raise InvalidData(
                "The inputs have one token a sample, so that there is no next one to learn. Give longer ones, or y."
            )
        note = "There is no y: the labels are the inputs' own next tokens."
        return Labels(targets, 1 + max(int(each.max()) for each in targets.values()), notes=[note])

    def scored(self, condensed: Tensor) -> Tensor:
        """Those whose log-likelihood is a number."""
        return self.answered(condensed) & condensed[:, _LOSS].isfinite()

    def value(self, sums: Tensor) -> Tensor:
        """−Σ loss / Σ labelled tokens."""
        return -ratio(sums[:, 0], sums[:, _LABELLED - _LOSS])

    def beside(self, condensed: Tensor, targets: Tensor) -> dict[str, float]:
        """Perplexity, and the share of right tokens."""
        sums = condensed.double().sum(0)
        labelled = float(sums[_LABELLED].clamp_min(1))
        nats = float(sums[_LOSS]) / labelled
        found = {"accuracy": float(sums[_RIGHT]) / labelled}
        return {"perplexity": math.exp(nats), **found} if nats < 700 else found


def _next_tokens(tokens: Tensor) -> Tensor:
    """Of each place the token behind it; none behind the last."""
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], IGNORED)], 1)
