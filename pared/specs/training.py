"""How a spec says that a model is trained, and what it learns from."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pared.specs.augmentation import Augment
from pared.specs.base import Spec
from pared.specs.losses import Combined, FeaturePairs

Optimizer = Literal["sgd", "adam"]
LrSchedule = Literal["constant", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]


class Training(Spec):
    """How a module is trained. The epoch with the best validation score is kept, not the last."""

    usual_rates: ClassVar[dict[Optimizer, float]] = {"sgd": 0.01, "adam": 0.001}

    epochs: int | None
    optimizer: Optimizer = Field("sgd", description="`sgd` with momentum, or `adam`.")
    lr: float = Field(0.01, gt=0, le=10, description="Without one: 0.01 for sgd, 0.001 for adam.")
    lr_schedule: LrSchedule = Field(
        "constant", description="`cosine`: the learning rate falls from `lr` to 0 along half a cosine."
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of all steps over which the rate first rises to `lr`.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only.")
    nesterov: bool = Field(False, description="SGD only: Nesterov's momentum.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="How much weights are pulled to zero in each step.")
    batch_size: int = Field(64, ge=1, le=65536, description="Samples in a step of the training.")
    precision: Precision = Field(
        "auto",
        description="`bfloat16`: convolutions and matrix products of the training compute in it, which is faster on "
        "processors that have it; weights, updates, losses and all measurements stay as they are. `auto`: bfloat16 on "
        "GPUs that have it, else float32. On a GPU, float32 products of a training are TF32 where it has that.",
    )
    patience: int | None = Field(
        None, ge=1, le=1000, description="Stop after so many epochs without a better validation score."
    )
    augment: Augment | None = Field(
        None,
        description="Change the training samples at random, anew in each epoch; `{}` stands for the usual numbers of a "
        "change. Validation and test samples stay as they are.",
        examples=[{"horizontal_flip": {}, "crop": {"padding": 4}, "mixup": {"alpha": 0.2}}],
    )

    class_weights: Literal["balanced"] | Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)] | None = (
        Field(
            None,
            description="Of each class, in the loss on labels: as a list, or `balanced`, by which all classes weigh "
            "the same in the training samples together. Of a multilabel, of a label that holds.",
            examples=["balanced", [1.0, 5.0]],
        )
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each label that is spread over all classes, in the loss on labels."
    )

    @property
    def trains(self) -> bool:
        """Whether there is an epoch; how many without a number hangs on the data."""
        return self.epochs != 0

    @property
    def names_classes(self) -> str | None:
        """A field that is of classes, where one is set."""
        if self.class_weights is not None:
            return "class_weights"
        return "label_smoothing" if self.label_smoothing else None

    @model_validator(mode="before")
    @classmethod
    def _default_lr(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("lr") is not None:
            return values
        adam = values.get("optimizer", cls.model_fields["optimizer"].default) == "adam"
        return {**values, "lr": cls.usual_rates["adam" if adam else "sgd"]}

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Training:
        if self.nesterov and (self.optimizer == "adam" or not self.momentum):
            self._refuse({"nesterov": "is a kind of SGD's momentum: leave it out, or give both"})
        return self


class Train(Training):
    """A training run of so many epochs."""

    epochs: int = Field(5, ge=0, le=1000, description="How often the training samples are gone through.")


class TeachTrain(Training):
    """A training run of a student, which takes more steps to learn answers than to learn labels.

    Adam by default, for a distance of logits is too steep for SGD's usual rate.
    """

    usual_rates: ClassVar[dict[Optimizer, float]] = {"sgd": 0.01, "adam": 0.003}
    usual_steps: ClassVar[int] = 6000
    usual_epochs: ClassVar[tuple[int, int]] = (10, 200)
    usual_length: ClassVar[str] = (
        f"as many as make {usual_steps:,} steps, but at least {usual_epochs[0]} and at most {usual_epochs[1]}"
    )

    epochs: int | None = Field(
        None,
        ge=0,
        le=1000,
        description=f"Without one: {usual_length}.",
    )
    optimizer: Optimizer = Field("adam", description="`sgd` with momentum, or `adam`.")
    lr: float = Field(0.003, gt=0, le=10, description="Without one: 0.01 for sgd, 0.003 for adam.")
    lr_schedule: LrSchedule = Field(
        "cosine", description="`cosine`: the learning rate falls from `lr` to 0 along half a cosine."
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of all steps over which the rate first rises to `lr`.")

    def on(self, samples: int) -> Train:
        """The run on so many training samples, with its number of epochs."""
        least, most = self.usual_epochs
        usual = min(max(least, round(self.usual_steps * self.batch_size / max(samples, 1))), most)
        return Train.model_validate(self.model_dump() | {"epochs": usual if self.epochs is None else self.epochs})


class OutputMse(Spec):
    """Output distillation: L = (1/N) Σ ‖f(x_i; θ_t) − f'(x_i; θ_s)‖²."""

    kind: Literal["output_mse"]


class Knowledge(Spec):
    """Knowledge distillation: L = α · output distance + (1−α) · T² · KL(teacher ‖ student)."""

    kind: Literal["knowledge"]
    alpha: float = Field(0.0, ge=0, le=1, description="Weight of the output distance.")
    temperature: float = Field(2.0, gt=0, le=100)
    features: FeaturePairs | None = Field(
        None,
        description="Pairs [teacher layer, student layer]. With pairs, the KL term runs over the softened outputs of "
        "these layers (projected where widths differ); without, over the logits. `auto` pairs layers by relative depth "
        "and shape, and the report says which.",
    )
    labels: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the loss on the hard labels. Without one: 0.5, and 0 of samples without labels.",
    )

    @property
    def label_share(self) -> float:
        """`labels`, of samples that have some."""
        return 0.5 if self.labels is None else self.labels


DistillLoss = Annotated[OutputMse | Knowledge | Combined, Field(discriminator="kind")]


class Retrain(Train):
    """Fine-tuning: training after, or during, pruning."""

    teach: DistillLoss | None = Field(
        None,
        description="Learn from the answers of the uploaded model, beside the labels or instead. "
        "`true` stands for half softened classes and half labels, or for `output_mse` in a regression; `false` for "
        "labels alone. Without one, SGD learns classes as with `true`; Adam, and any regression, from labels alone.",
        examples=[True, {"kind": "knowledge", "alpha": 0.0, "temperature": 4, "labels": 0.1}],
    )

    @model_validator(mode="after")
    def _teaches_outputs(self) -> Retrain:
        if isinstance(self.teach, Knowledge) and self.teach.features is not None:
            self._refuse({"teach": "compares outputs: leave `features` out"})
        if isinstance(self.teach, Combined) and self.teach.with_features:
            place = self.teach.with_features[0][0]
            self._refuse({f"teach/terms/{place}": "compares inner layers, and `teach` outputs: leave it out"})
        return self
