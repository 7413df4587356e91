"""The spec of a distill job: the teacher, the student and the loss between them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pared.specs.architectures import Architecture
from pared.specs.common import WITHOUT_CLASSES, WITHOUT_LABELS, CompressionSpec, TensorSpec
from pared.specs.losses import Combined
from pared.specs.students import FromTeacher, Student, Teacher
from pared.specs.training import DistillLoss, Knowledge, TeachTrain
from pared.specs.uploads import EXAMPLE_MODEL_ID, DatasetReference, ModelId


class DistillSpec(CompressionSpec):
    """Train a smaller student to answer as the teacher does."""

    type: Literal["distill"]
    teacher: ModelId
    teacher_architecture: Architecture | None = None
    teacher_weight: float = Field(1.0, gt=0, le=1000, description="Of the teacher, among `teachers`.")
    teachers: list[Teacher] = Field(
        default_factory=list,
        max_length=7,
        description="Further models that teach, with outputs of the same shape. The `teacher` stays the one that the "
        "student is compared with, and cut from.",
        examples=[[{"model": EXAMPLE_MODEL_ID, "weight": 0.5}]],
    )
    combine: Literal["mean", "best"] = Field(
        "mean",
        description="What several teachers answer together: the weighted `mean` of their answers, of classes that of "
        "their probabilities, softened by the loss's temperature; or for each sample the answer of the `best` teacher, "
        "whose loss on the label is the smallest.",
    )
    student: Student
    student_architecture: Architecture | None = Field(None, description="For an uploaded student state dict.")
    student_weights: Literal["own", "teacher"] = Field(
        "own",
        description="Where an upload or an architecture begins: with its `own` weights (of an architecture, random "
        "ones), or with those of the `teacher` where a tensor has the same name and shape; the report says how many.",
    )
    dataset: DatasetReference | None = Field(
        None,
        description="Without one, inputs are made up: by the statistics of the teacher's batch norms, or else of "
        "noise. Nothing is then measured.",
    )
    example_inputs: list[TensorSpec] | None = Field(
        None,
        max_length=8,
        description="The arguments of the teacher's forward, and of an uploaded student's that takes as many, where "
        "some are values: the inputs of the data set are the tensors among them. Also the shapes of the inputs, where "
        "there is no data set and they cannot be guessed.",
        examples=[[{"shape": [1, 512]}, {"value": 16000}]],
    )
    made_samples: int = Field(1024, ge=32, le=1 << 20, description="How many inputs are made up without a data set.")
    loss: DistillLoss = Field(
        default_factory=lambda: Knowledge(kind="knowledge"),
        description="Without one: `knowledge` for classes, `output_mse` for numbers, as of a regression.",
    )
    train: TeachTrain = Field(default_factory=TeachTrain)
    compare_with_labels_only: bool = Field(
        False, description="Also train the same student from the same start on labels alone, and report it."
    )

    @property
    def trains(self) -> bool:
        """Whether the student is trained."""
        return self.train.trains

    @model_validator(mode="before")
    @classmethod
    def _default_loss(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("task") in WITHOUT_CLASSES:
            return {"loss": {"kind": "output_mse"}, **values}
        return values

    @model_validator(mode="after")
    def _an_architecture_is_for_an_upload(self) -> DistillSpec:
        if not isinstance(self.student, str):
            why = "is for a student given by the id of an upload; this one says itself what it is: leave it out"
            self._must_be_left_out({"student_architecture": why})
        return self

    @model_validator(mode="after")
    def _a_student_of_its_own_has_weights_of_its_own(self) -> DistillSpec:
        if isinstance(self.student, FromTeacher):
            why = "has no effect on a student that is cut from the teacher, with its weights: leave it out"
            self._must_be_left_out({"student_weights": why})
        return self

    @model_validator(mode="after")
    def _several_teachers_answer_alike(self) -> DistillSpec:
        if not self.teachers:
            why = "is of several teachers: leave it out, or name further ones in `teachers`"
            self._must_be_left_out({"teacher_weight": why, "combine": why})
            return self
        if self.task in WITHOUT_LABELS:
            why = f"have no part in task={self.task}, which learns the answers of one model: leave them out"
            if self.task == "match":
                why += ", or name the `task`, such as classification"
            self._refuse({"teachers": why})
        if getattr(self.loss, "features", None) is not None or (
            isinstance(self.loss, Combined) and self.loss.with_features
        ):
            why = "teach by their outputs, and `features` are of one teacher: leave one of the two out"
            self._refuse({"teachers": why})
        if self.combine == "best":
            if any(weight != 1 for weight in (self.teacher_weight, *(each.weight for each in self.teachers))):
                self._refuse({"combine": "takes the answer of one teacher, where weights say nothing: leave these out"})
            if self.dataset is None:
                self._refuse({"combine": "tells the best teacher by labels: name a `dataset`, or make it mean"})
            augment = self.train.augment
            if augment is not None and (augment.mixup is not None or augment.cutmix is not None):
                self._refuse({"combine": "tells the best teacher by labels, which mixed samples lack: make it mean"})
        return self

    @model_validator(mode="after")
    def _without_data_nothing_is_said_of_them(self) -> DistillSpec:
        if self.dataset is not None:
            self._must_be_left_out({"made_samples": "is of jobs without data: leave it out beside a `dataset`"})
            if all(each.is_plain for each in self.example_inputs or []):
                why = "has no effect where all are plain tensors, which the data set shows: leave it out"
                self._must_be_left_out({"example_inputs": why})
            return self
        why = "has no effect without data: leave it out, or name a `dataset`"
        self._must_be_left_out({"preprocess": why, "ignore_index": why})
        if self.compare_with_labels_only:
            self._refuse({"compare_with_labels_only": "needs labels, which come with a data set: leave it out"})
        if isinstance(self.loss, Combined):
            unfit = self.loss.unfit(classes=True, labels=False, one_output=True)
            if unfit:
                self._refuse({f"loss/{path}": why for path, why in unfit.items()})
        elif getattr(self.loss, "labels", 0):
            self._refuse({"loss": "`labels` is a share of labels, which come with a data set: leave it out"})
        return self

    @model_validator(mode="after")
    def _softens_only_classes(self) -> DistillSpec:
        loss = self.loss
        if self.task in WITHOUT_CLASSES and isinstance(loss, Knowledge) and loss.features is None and loss.alpha < 1:
            why = (
                'must be {"kind": "output_mse"} or name `features`: the KL term of `knowledge` compares class '
                "probabilities, which a regression does not have"
            )
            self._refuse({"loss": why})
        if isinstance(loss, Combined) and self.task is not None:
            classes, labels = self.task not in WITHOUT_CLASSES, self.task not in WITHOUT_LABELS
            unfit = loss.unfit(classes=classes, labels=labels, one_output=self.task != "match")
            if unfit:
                self._refuse({f"loss/{path}": why for path, why in unfit.items()})
        if self.task in WITHOUT_LABELS and isinstance(loss, Knowledge):
            why = f"has no part where task={self.task} learns the teacher's answers in its own measure: leave it out"
            if self.task == "match":
                why += ", or name the `task`, such as classification, which needs no labels for this"
            self._refuse({"loss": why})
        if self.task in WITHOUT_LABELS and self.compare_with_labels_only:
            why = f"has no labels to learn from: task={self.task} learns the teacher's answers; leave it out"
            self._refuse({"compare_with_labels_only": why})
        self._refuse_without_classes("train", self.train)
        return self
