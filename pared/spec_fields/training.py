"""Typed keywords of trainings, targets and shared values."""

from typing import Literal, Required, TypedDict

from pared.spec_fields.augmentation import AugmentFields
from pared.spec_fields.losses import DistillLossFields
from pared.specs import LrSchedule, Optimizer, Precision


class TrainingFields(TypedDict, total=False):
    """How a module is trained; the epoch with the best validation score is kept."""

    optimizer: Optimizer
    """`sgd` or `adam`."""
    lr: float
    """Learning rate; what it is without one hangs on the optimizer."""
    lr_schedule: LrSchedule
    """`constant`, or `cosine`: it falls to 0 along half a cosine."""
    warmup: float
    """Share of all steps over which the learning rate first rises."""
    momentum: float
    """Of SGD."""
    nesterov: bool
    """Nesterov's momentum, of SGD."""
    weight_decay: float
    """L2 penalty on the weights."""
    batch_size: int
    """Samples in a training step."""
    precision: Precision
    """What convolutions and matrix products of the training compute in: `auto`, `float32` or `bfloat16`."""
    patience: int | None
    """Stop after so many epochs without a better validation score."""
    augment: AugmentFields | None
    """Change the training samples at random, anew in each epoch."""
    class_weights: Literal["balanced"] | list[float] | None
    """Of each class, in the loss on labels; `balanced`: all classes weigh the same."""
    label_smoothing: float
    """Share of each label that is spread over all classes."""


class TrainFields(TrainingFields, total=False):
    """A training run of so many epochs, 5 by default; by default by SGD at 0.01 (Adam at 0.001)."""

    epochs: int
    """Epochs of training."""


class TeachTrainFields(TrainingFields, total=False):
    """The training of a student; by default by Adam at 0.003, along a cosine after a warm-up."""

    epochs: int | None
    """Epochs of training; without a number as many as make 6,000 steps, but at least 10 and at most 200."""


class RetrainFields(TrainFields, total=False):
    """The training after, or while, weights are removed."""

    teach: bool | DistillLossFields | None
    """Learn from the outputs of the model as it was, beside the labels or instead: a loss, or whether to."""


class TargetFields(TypedDict, total=False):
    """What the result must reach, each size as the share left of the upload's; at least one."""

    params: float | None
    """Parameters left; for single weights and blocks, parameters that are not zero."""
    macs: float | None
    """Multiply-adds of one sample left."""
    file_bytes: float | None
    """Bytes left of the file in the first format of `outputs`."""
    latency: float | None
    """Time of a forward pass left."""
    latency_batch_size: int
    """Samples in the batch whose time is measured; 1 by default."""
    max_quality_drop: float | None
    """How much of the task's own measure may be lost, such as accuracy (0.01: one point) or R²."""
    max_accuracy_drop: float | None
    """The older name of `max_quality_drop`."""


class CalibrationFields(TypedDict, total=False):
    """How static int8 finds the ranges of what flows between layers."""

    samples: int
    """Training samples that the model is run on; 256 by default."""
    method: Literal["min_max", "percentile", "entropy"]
    """Which range is taken of the numbers that were met."""


class QuantizeFields(TypedDict, total=False):
    """Few values shared by many weights, for packed files."""

    bits: Required[int]
    """Each tensor has at most 2^bits values beside zero."""
    epochs: int
    """Epochs of training the shared values."""
    lr: float | None
    """Learning rate of that training; by default a tenth of that of `retrain`."""
