"""The fields that every compression job has: task, inputs, output formats, time limit and device."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from pared.specs.base import Device, JobSpec, Spec
from pared.specs.training import Train
from pared.specs.uploads import Text

Output = Literal["torchscript", "state_dict", "exported_program", "onnx", "packed", "huggingface"]
Outputs = Annotated[list[Output], Field(min_length=1, max_length=len(get_args(Output)))]
Task = Literal[
    "classification",
    "binary",
    "multilabel",
    "regression",
    "segmentation",
    "token_classification",
    "language_modeling",
    "embedding",
    "match",
]
WITHOUT_CLASSES: tuple[Task, ...] = ("regression", "embedding", "match")
"""The tasks whose answers are numbers, which distillation compares and does not soften."""
OF_POSITIONS: tuple[Task, ...] = ("segmentation", "token_classification", "language_modeling")
"""The tasks with a label for each pixel or token."""
WITHOUT_LABELS: tuple[Task, ...] = ("embedding", "match")
"""The tasks that learn the answers of the model as it was uploaded."""


class TensorSpec(Spec):
    """Shape (batch first) and type of one model input, for jobs that bring no data."""

    shape: list[Annotated[int, Field(ge=1, le=1 << 20)]] = Field(min_length=1, max_length=8)
    dtype: Literal["float32", "int64"] = "float32"

    @model_validator(mode="after")
    def _bounded(self) -> TensorSpec:
        if math.prod(self.shape) > 1 << 28:
            raise ValueError("must have at most 2^28 elements in all")
        return self


class Preprocess(Spec):
    """How stored arrays become model inputs: `(x * scale - mean) / std`, mean and std a channel (dim 1).

    `max_length` is of texts.
    """

    scale: float = Field(1.0, gt=0)
    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0)]] | None = None
    max_length: int | None = Field(
        None, ge=1, le=1 << 16, description="Tokens of a text that are kept. Without one: 512, or the longest text."
    )


class CompressionSpec(JobSpec):
    """What every compression job has."""

    seed: int = Field(0, ge=0, lt=1 << 32)
    task: Task | None = Field(
        None,
        description="What the model is for, which says how labels are learned and scored; docs/tasks.md has all. "
        "Without one it is guessed from the labels and the model's outputs, and the report says it. `match` needs no "
        "labels: it learns the uploaded model's own answers.",
        examples=["segmentation"],
    )
    output: Text | Annotated[int, Field(ge=0, le=1000)] | None = Field(
        None,
        description="Of a model with several outputs the one that the labels belong to: its name, as of a dict, or its "
        "number, from 0. The others are held to the uploaded model's answers. Without one it is the only one "
        "that fits.",
        examples=["logits"],
    )
    ignore_index: int | None = Field(
        None,
        ge=-(1 << 31),
        lt=1 << 31,
        description="A label that says nothing, of pixels or tokens. −100, −1, and 255 are known without.",
    )
    preprocess: Preprocess | None = None
    outputs: Outputs | None = Field(
        None,
        description="Formats of the result. Without one: `exported_program` for an upload that is one, `huggingface` "
        "for a model folder, else `torchscript`. `packed` is the smallest where weights were pruned: sparse and "
        "entropy-coded; `pared unpack` makes a dense model of it. `huggingface` is a zip of a model folder, for an "
        "upload that is one. A format that cannot hold the model is left out and named in `failed_outputs` of the "
        "report; the job fails, before it trains, only where none can be written.",
    )
    time_limit_s: int | None = Field(None, ge=1, le=7 * 86400, description="Ends the job as failed after so long.")
    device: Device = Field(
        "auto",
        description="What the job computes on. `cuda`: an NVIDIA GPU; only a worker that has one takes the job. `cpu`: "
        "the processor, on whichever worker. `auto`: the worker that is free first takes it, and uses its GPU if it "
        "has one.",
    )
    latency_device: Literal["cpu", "cuda"] | None = Field(
        None,
        description="Where latency is measured, for the report and for a goal of latency: where the model will run. "
        "Without one, where the job computes. `cuda` asks for a worker with a GPU, as `device` does.",
    )

    @property
    def output_path(self) -> str | None:
        """`output` as text."""
        return None if self.output is None else str(self.output)

    @property
    def needs_device(self) -> Device:
        """What a worker must have to take the job."""
        return "cuda" if self.latency_device == "cuda" else self.device

    @property
    def device_field(self) -> str:
        """The field that asks for this device."""
        return "device" if self.device == "cuda" else "latency_device"

    def _refuse_without_classes(self, field: str, training: Train) -> None:
        """Refuse what a training says of classes where the task has none."""
        if self.task in WITHOUT_CLASSES and training.names_classes:
            self._refuse({field: f"`{training.names_classes}` is of classes, which task={self.task} does not have"})

    @model_validator(mode="after")
    def _labels_are_of_the_task(self) -> CompressionSpec:
        idle = {}
        if self.task is not None and self.task not in OF_POSITIONS:
            idle["ignore_index"] = f"is a label of pixels or tokens, which task={self.task} does not have: leave it out"
        if self.task == "match":
            idle["output"] = "has no effect where task=match compares all outputs: leave it out"
        self._must_be_left_out(idle)
        return self

    @model_validator(mode="after")
    def _outputs_once(self) -> CompressionSpec:
        if self.outputs is not None and len(set(self.outputs)) != len(self.outputs):
            raise ValueError("outputs names a format twice")
        return self

    @model_validator(mode="after")
    def _output_is_of_labels(self) -> CompressionSpec:
        if self.task == "match" and self.output is not None:
            self._refuse({"output": "has no part in task=match, which compares all outputs: leave it out"})
        return self

    @model_validator(mode="after")
    def _latency_device_is_there(self) -> CompressionSpec:
        if self.device == "cpu" and self.latency_device == "cuda":
            why = "cuda is not there for a job whose `device` is cpu: make `device` cuda or auto, or leave this out"
            self._refuse({"latency_device": why})
        return self
