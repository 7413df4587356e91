"""What training, scoring and reports ask of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from pared.reports import Comparison, Interval


class TaskRules(ABC):
    """How answers of one kind are learned, scored and compared. N samples; higher scores are better.

    Attributes:
        metric: the score's name in reports and metrics.
        score_name: the same in sentences.
        output: what a model has to return, in words.
        output_dims: how many dimensions that may have.
        unanswered: what becomes of samples that the upload itself does not answer, in words.
    """

    metric: ClassVar[Literal["accuracy", "r2"]]
    score_name: ClassVar[str]
    output: ClassVar[str]
    output_dims: ClassVar[tuple[int, ...]]
    unanswered: ClassVar[str]

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over a batch, a scalar."""

    @abstractmethod
    def answered(self, outputs: Tensor) -> Tensor:
        """Which samples have an answer that can be scored, (N,) bool."""

    @abstractmethod
    def scored(self, outputs: Tensor) -> Tensor:
        """Which samples a score is over, (N,) bool."""

    @abstractmethod
    def counted(self, outputs: Tensor) -> Tensor:
        """Which samples all scores of a job are over, by the upload's outputs: (N,) bool.

        Raises:
            ModelFailed: none.
        """

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """How good the answers are."""

    @abstractmethod
    def interval(self, outputs: Tensor, targets: Tensor) -> Interval:
        """The score with its 95 % interval."""

    @abstractmethod
    def compare(self, before: Tensor, after: Tensor, targets: Tensor) -> Comparison:
        """The outputs of two models for the same samples, with a paired test."""
