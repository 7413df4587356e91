"""The spec of a distill job: the teacher, the student and the loss between them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pared.specs.architectures import Architecture, Layered, Named, tag_of
from pared.specs.base import Spec
from pared.specs.common import WITHOUT_CLASSES, WITHOUT_LABELS, CompressionSpec, TensorSpec
from pared.specs.losses import Combined
from pared.specs.training import DistillLoss, Knowledge, TeachTrain
from pared.specs.uploads import DatasetReference, ModelId


class FromTeacher(Spec):
    """A student made from the teacher by keeping this share of its channels (and their weights)."""

    class Width(Spec):
        """`width`: the share of channels kept in every layer."""

        width: float = Field(gt=0, lt=1)

    from_teacher: Width


Student = Annotated[
    Annotated[ModelId, Tag("str")] | Annotated[FromTeacher, Tag("FromTeacher")] | Named | Layered,
    Discriminator(
        tag_of,
        custom_error_type="alternatives",
        custom_error_message='must be the id of an uploaded model, {"from_teacher": {"width": 0.5}}, '
        '{"name": …, "kwargs": {…}} or {"layers": [["Linear", {…}], …]}',
    ),
]


class DistillSpec(CompressionSpec):
    """Train a smaller student to answer as the teacher does."""

    type: Literal["distill"]
    teacher: ModelId
    teacher_architecture: Architecture | None = None
    student: Student
    student_architecture: Architecture | None = Field(None, description="For an uploaded student state dict.")
    dataset: DatasetReference
    example_inputs: list[TensorSpec] | None = Field(
        None,
        max_length=8,
        description="The arguments of the teacher's forward, and of an uploaded student's that takes as many, where "
        "some are values: the inputs of the data set are the tensors among them.",
        examples=[[{"shape": [1, 512]}, {"value": 16000}]],
    )
    loss: DistillLoss = Field(
        default_factory=lambda: Knowledge(kind="knowledge"),
        description="Without one: `knowledge` for classes, `output_mse` for numbers, as of a regression.",
    )
    train: TeachTrain = Field(default_factory=TeachTrain)
    compare_with_labels_only: bool = Field(
        False, description="Also train the same student from the same start on labels alone, and report it."
    )

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
    def _the_data_show_plain_inputs(self) -> DistillSpec:
        if all(each.is_plain for each in self.example_inputs or []):
            why = "has no effect where all are plain tensors, which the data set shows: leave it out"
            self._must_be_left_out({"example_inputs": why})
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
            self._refuse({"loss": why})
        if self.task in WITHOUT_LABELS and self.compare_with_labels_only:
            why = f"has no labels to learn from: task={self.task} learns the teacher's answers; leave it out"
            self._refuse({"compare_with_labels_only": why})
        self._refuse_without_classes("train", self.train)
        return self
