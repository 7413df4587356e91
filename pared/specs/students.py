"""How a distill spec says what the student is, and which models teach beside the teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pared.specs.architectures import Architecture, Layered, Named, tag_of
from pared.specs.base import Spec
from pared.specs.uploads import ModelId


class StudentTarget(Spec):
    """What a student that is cut from its teacher may have at most, as shares of the teacher's; the largest is made."""

    params: float | None = Field(None, gt=0, lt=1, description="Share of the teacher's parameters.")
    macs: float | None = Field(None, gt=0, lt=1, description="Share of the multiply-adds of one sample.")
    latency: float | None = Field(
        None, gt=0, lt=1, description="Share of the time of a forward pass, measured in turns with the teacher."
    )
    latency_batch_size: int = Field(1, ge=1, le=4096, description="Samples in the batch whose time is measured.")

    @property
    def sizes(self) -> dict[str, float]:
        """The shares, of what is named."""
        named = {"params": self.params, "macs": self.macs, "latency": self.latency}
        return {name: share for name, share in named.items() if share is not None}

    @model_validator(mode="after")
    def _asks_for_something(self) -> StudentTarget:
        if not self.sizes:
            raise ValueError("names no size: give params, macs or latency")
        if self.latency is None:
            why = "is the batch whose latency is measured: leave it out, or give `latency`"
            self._must_be_left_out({"latency_batch_size": why})
        return self


class TeacherCut(Spec):
    """What a student keeps of its teacher, with the weights."""

    width: float | None = Field(None, gt=0, le=1, description="The share of channels kept in every layer.")
    depth: float | None = Field(
        None,
        gt=0,
        le=1,
        description="The share of residual blocks kept; of a transformer, of its layers. At least one stays.",
    )
    drop: Literal["evenly", "least_important"] = Field(
        "evenly",
        description="Which blocks go: evenly spaced ones, or those that add the least to what passes by them, measured "
        "on training samples (without data, those of the smallest weights).",
    )
    target: StudentTarget | None = Field(
        None,
        description="Sizes to come to. `width` or `depth`, where named, is kept to, and the other one is found; "
        "without both, the same share is taken of each. 1 keeps all of it.",
    )

    @model_validator(mode="after")
    def _cuts_something(self) -> TeacherCut:
        if self.target is None and self.width is None and self.depth is None:
            self._refuse({"width": "is required where there is neither `depth` nor `target`"})
        if self.target is None and (self.width or 1) == (self.depth or 1) == 1:
            self._refuse({"width" if self.depth is None else "depth": "of 1 leaves the teacher as it is: give less"})
        if self.target is not None and self.width is not None and self.depth is not None:
            self._refuse({"target": "has nothing to find beside `width` and `depth`: leave one of the three out"})
        if self.depth == 1 or (self.depth is None and self.target is None):
            self._must_be_left_out({"drop": "says which blocks go, and all stay: leave it out, or give `depth`"})
        return self


class FromTeacher(Spec):
    """A student made from the teacher, by width, by depth, or both, with the weights of what is kept."""

    from_teacher: TeacherCut


Student = Annotated[
    Annotated[ModelId, Tag("str")] | Annotated[FromTeacher, Tag("FromTeacher")] | Named | Layered,
    Discriminator(
        tag_of,
        custom_error_type="alternatives",
        custom_error_message='must be the id of an uploaded model, {"from_teacher": {"width": 0.5}}, '
        '{"name": …, "kwargs": {…}} or {"layers": [["Linear", {…}], …]}',
    ),
]


class Teacher(Spec):
    """A model that teaches beside the teacher."""

    model: ModelId
    architecture: Architecture | None = Field(None, description="For a state dict that was uploaded without one.")
    weight: float = Field(1.0, gt=0, le=1000, description="How much its answers weigh in the mean.")
