"""What training, scoring, distillation and reports ask of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pared.compression.tasks.outputs import chosen, described
from pared.errors import InvalidData, ModelFailed
from pared.reports import Comparison, Interval, Metric
from pared.specs import Task

Array = np.ndarray[Any, Any]
Head = Literal["logits", "softmax", "sigmoid"]
"""What a model's last operator makes of its numbers; `logits`: nothing, or what softmax does not change."""

PROBE = 0.1
_LEAST = 1e-30  # of a probability whose logarithm is taken
_LEAST_ODDS = 1e-7  # of a probability that may be 1, which float32 tells from it


class OtherTask(InvalidData):
    """Labels from which their task learns nothing, in data that serve another task."""


class NoLabels(InvalidData):
    """There are no labels, and the task that a spec names learns from them."""


@dataclass(frozen=True)
class StoredLabels:
    """Labels as a file holds them, by split, not yet checked; without labels no split is there.

    `class_names`: where they are indices of classes that have names. `inputs`: of the model, the first one, by split.
    """

    arrays: Mapping[Any, Array]
    class_names: list[str] | None
    inputs: Mapping[Any, Tensor]

    def without(self) -> dict[Any, Tensor]:
        """Targets that say nothing, (samples, 0)."""
        return {split: torch.zeros(len(each), 0) for split, each in self.inputs.items()}


@dataclass(frozen=True)
class Labels:
    """Checked labels, by split.

    `classes`: how many there are; None for numbers. `by_class`: one class for each sample, (samples,), where splits
    are to hold classes in equal proportions.
    """

    targets: dict[Any, Tensor]
    classes: int | None = None
    class_names: list[str] | None = None
    by_class: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TaskRules(ABC):
    """How the answers of one job's model are learned, scored and compared. N samples; higher scores are better.

    Attributes:
        name: as a spec names the task.
        metric: the score's name in reports and metrics.
        wanted: what a model has to return, in words.
        unanswered: what becomes of samples that the upload itself does not answer, in words.
        softens: whether answers are odds of classes, which distillation softens.
        has_references: whether targets are the answers of the original, rather than labels.
        output: which of several outputs, by its path.
        head: how the model's answers became what they are.
        class_weights: (classes,), of the loss in training.
        smoothing: of the labels in training, 0 to 1.
        ignored: a further value of labels that says nothing.
        held: the rules of further outputs, which are held to the original's answers.
    """

    name: ClassVar[Task]
    metric: ClassVar[Metric]
    wanted: ClassVar[str]
    unanswered: ClassVar[str] = "counted as wrong"
    softens: ClassVar[bool] = True
    has_references: ClassVar[bool] = False

    output: str | None = None
    head: Head = "logits"
    class_weights: Tensor | None = None
    smoothing: float = 0.0
    ignored: int | None = None
    held: TaskRules | None = None
    _there: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def independent(self) -> bool:
        """Whether each of the odds stands for itself, rather than all of them adding up to 1."""
        return False

    # -- labels ---------------------------------------------------------------------------------

    @abstractmethod
    def labels(self, stored: StoredLabels) -> Labels:
        """Checked targets of every split.

        Raises:
            InvalidData: they are no labels of this task; says what they are, and the task that fits.
        """

    def fitted(self, labels: Mapping[Any, Tensor], output: Tensor) -> dict[Any, Tensor]:
        """Targets in the shape in which they are compared with the output of some samples.

        Raises:
            ShapeMismatch, InvalidData: the model's outputs are not of these labels.
        """
        return dict(labels)

    # -- answers --------------------------------------------------------------------------------

    def taken(self, answer: Any, samples: int) -> Tensor:
        """The output that is trained and scored, in float32 or float64; of probabilities, the logits that give them.

        Raises:
            ModelFailed: the model returns something else than the task can learn.
        """
        output = chosen(answer, self.output, self.wanted)
        if not output.is_floating_point() or not output.dim() or len(output) != samples or not self.takes(output):
            raise ModelFailed(
                f"For {samples} samples the model returns {described(output)}; {self.name} needs one float tensor of "
                f"{self.wanted}.{self.advice(output)}"
            )
        output = output if output.dtype == torch.float64 else output.float()  # half precision is too coarse for a loss
        return self.shaped(self._as_logits(output))

    @abstractmethod
    def takes(self, output: Tensor) -> bool:
        """Whether an output of some samples has a shape of this task."""

    def advice(self, output: Tensor) -> str:
        """What to do about an output of another shape, as a sentence that follows, or nothing."""
        return " Wrap the model so that it returns that alone."

    def shaped(self, output: Tensor) -> Tensor:
        """The output in the one shape that the task's own methods know."""
        return output

    def _as_logits(self, output: Tensor) -> Tensor:
        if self.head == "softmax":
            return output.clamp_min(_LEAST).log()
        if self.head == "sigmoid":
            odds = output.clamp(_LEAST_ODDS, 1 - _LEAST_ODDS)
            return odds.log() - (-odds).log1p()
        return output

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """What training lowers: the mean over a batch, a scalar."""

    def weight(self, target: Tensor) -> Tensor | int:
        """What `loss` is a mean over, for a batch that is run in parts: samples, positions, or their class weights."""
        return len(target)

    def rows(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output as rows of odds or numbers (P, C), and which of them count: (P,) of 0 and 1; None: all."""
        return output.reshape(len(output), -1), None

    def probed(self, target: Tensor, generator: torch.Generator) -> Tensor:
        """What a criterion takes the gradients of the loss on; the targets, where the model has not met them already.

        The original's own answers are met by the original, so that all gradients are 0. With noise beside them, each
        number by `PROBE` of its usual size, the squares of gradients are those of the outputs (of Gauss and Newton).
        """
        return target

    def weights_on(self, device: torch.device) -> Tensor | None:
        """The class weights, where they are needed; sent once, for sending waits."""
        if self.class_weights is not None and device not in self._there:
            self._there[device] = self.class_weights.to(device)
        return self._there.get(device)

    # -- scores ---------------------------------------------------------------------------------

    def condensed(self, output: Tensor, target: Tensor) -> Tensor:
        """What is kept of a batch's outputs for scoring, (N, …): the outputs themselves, or statistics of each sample.

        It has NaN or infinity in the rows of samples whose outputs have.
        """
        return output

    def kept_targets(self, target: Tensor) -> Tensor:
        """What is kept of a batch's targets beside `condensed`; (N, 0) where that has all."""
        return target

    @abstractmethod
    def mean_loss(self, condensed: Tensor, targets: Tensor) -> float:
        """The mean loss of answered samples, without class weights and smoothing."""

    @abstractmethod
    def answered(self, condensed: Tensor) -> Tensor:
        """Which samples have an answer that can be scored, (N,) bool."""

    def scored(self, condensed: Tensor) -> Tensor:
        """Which samples a score is over, (N,) bool."""
        return torch.ones(len(condensed), dtype=torch.bool, device=condensed.device)

    def counted(self, condensed: Tensor) -> Tensor:
        """Which samples all scores of a job are over, by the upload's answers: (N,) bool.

        Raises:
            ModelFailed: none.
        """
        counted = self.scored(condensed)
        if not bool(counted.any()):
            raise ModelFailed(
                "The model answers no sample with finite numbers alone, so that there is nothing to score. Look for "
                "NaN among its weights, and whether the data must be scaled (`preprocess`)."
            )
        return counted

    @abstractmethod
    def score(self, condensed: Tensor, targets: Tensor) -> float:
        """How good the answers are."""

    @abstractmethod
    def interval(self, condensed: Tensor, targets: Tensor) -> Interval:
        """The score with its 95 % interval."""

    @abstractmethod
    def compare(self, before: Tensor, after: Tensor, targets: Tensor) -> Comparison:
        """Two models' condensed answers to the same samples, with a paired test."""

    def beside(self, condensed: Tensor, targets: Tensor) -> dict[str, float]:
        """Further measures, by name."""
        return {}


def hold_labelled(stored: StoredLabels, task: Task) -> None:
    """Raises NoLabels where there are none."""
    if not stored.arrays:
        raise NoLabels(
            f"The data set has no labels (y), which task={task} learns from. Without labels use task=match, which "
            "learns the answers of the model as it was uploaded, or leave `task` out."
        )
