"""The fields that every compression job has: task, inputs, output formats, time limit and device."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pared.specs.base import Device, JobSpec, Spec
from pared.specs.losses import Combined
from pared.specs.training import Knowledge, Retrain, Training
from pared.specs.uploads import Names, Text
from pared.wording import listed

Output = Literal["torchscript", "state_dict", "exported_program", "onnx", "packed", "checkpoint", "huggingface"]
Outputs = Annotated[list[Output], Field(min_length=1, max_length=len(get_args(Output)))]
SizeName = Annotated[Text, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
"""What a free size is called in a file."""
Dynamic = dict[Text, Annotated[dict[Annotated[int, Field(ge=1, le=7)], SizeName], Field(min_length=1)]]
"""Free sizes beside the batch: an input of the model -> its dimension, from 0 for the batch -> a name."""
WITH_FREE_SIZES: tuple[Output, ...] = ("onnx", "exported_program")
"""The formats that say which sizes are free; the others take whatever the model takes."""
ONNX_OPSETS = range(11, 24)
"""Versions of ONNX's operators that torch's exporters write."""
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
NOT_IN_POINTS: tuple[Task, ...] = ("regression", "language_modeling", "embedding")
"""The tasks whose measure is no share: R², nats a token and a cosine, of which 1 and more can be lost."""
WITHOUT_LABELS: tuple[Task, ...] = ("embedding", "match")
"""The tasks that learn the answers of the model as it was uploaded."""


_MOST_TEXT = 1000
_MOST_NESTED = 2

Plain = bool | int | float | Annotated[str, Names(None), Field(max_length=_MOST_TEXT)]
"""A number, a flag or a text."""


class TensorSpec(Spec):
    """One argument of a model's forward: a tensor to be made, a fixed value, or several of these together."""

    shape: list[Annotated[int, Field(ge=1, le=1 << 20)]] | None = Field(
        None, min_length=1, max_length=8, description="Sizes of a tensor, the batch first or where `batch_dim` says."
    )
    dtype: Literal["float32", "int64"] = Field("float32", description="Type of a tensor's elements.")
    batch_dim: Literal[0, 1] | None = Field(
        None,
        description="Where a tensor has its batch: 1 for the state of a recurrent layer, (layers, batch, features). "
        "Without one it is found by trying.",
    )
    value: Plain | Annotated[list[Plain], Field(max_length=64)] | None = Field(
        None,
        description="What a number, a flag, a text or a list of these is throughout the job, such as 16000; null for "
        "an optional argument that is not given. It stays an argument of a TorchScript result.",
    )
    items: list[TensorSpec] | dict[Annotated[str, Field(max_length=_MOST_TEXT)], TensorSpec] | None = Field(
        None,
        min_length=1,
        max_length=16,
        description="What a list, a tuple or a dict holds, each entry described as an argument is.",
    )

    @model_validator(mode="after")
    def _is_one_thing(self) -> TensorSpec:
        given = [name for name in ("shape", "value", "items") if getattr(self, name) is not None]
        if len(given) > 1 or not (given or "value" in self.model_fields_set):
            raise ValueError(
                'must have one of `shape`, `value` and `items`: {"shape": [1, 512]} for a tensor, {"value": 16000} for '
                'a number, {"items": [{"shape": [2, 1, 64]}, {"shape": [2, 1, 64]}]} for a tuple'
            )
        if self.shape is not None and math.prod(self.shape) > 1 << 28:
            raise ValueError("must have at most 2^28 elements in all")
        if self.shape is None:
            self._must_be_left_out(dict.fromkeys(("dtype", "batch_dim"), "is of tensors, which have a `shape`"))
        for each in self.value if isinstance(self.value, list) else [self.value]:
            if isinstance(each, int) and not -(1 << 63) <= each < 1 << 63:
                raise ValueError("must have a `value` of at most 64 bits")
        if self.depth > _MOST_NESTED:
            raise ValueError(f"must not have more than {_MOST_NESTED} levels of `items`")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, serialized: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def] # noqa: ANN202 - a return type would stand in the API's schema
        """Only what belongs to such an argument, so that it reads as it was written."""
        names = ("shape", "dtype", "batch_dim") if self.shape is not None else ("items",) if self.items else ("value",)
        fields = serialized(self)
        idle = {"batch_dim"} if self.batch_dim is None else set()
        return {name: fields[name] for name in names if name in fields.keys() - idle}

    @property
    def sizes(self) -> list[int]:
        """The sizes of a tensor; none of what is no tensor."""
        return self.shape or []

    @property
    def parts(self) -> list[TensorSpec]:
        """The entries of a list, tuple or dict, in order."""
        return list(self.items.values() if isinstance(self.items, dict) else self.items or [])

    @property
    def depth(self) -> int:
        """How often items are in items."""
        return 0 if self.items is None else 1 + max(part.depth for part in self.parts)

    @property
    def tensors(self) -> list[TensorSpec]:
        """The tensors in it, in order: those of a list, tuple or dict too."""
        return [self] if self.shape is not None else [each for part in self.parts for each in part.tensors]

    @property
    def is_plain(self) -> bool:
        """Whether it is a tensor with its batch first, as far as it says."""
        return self.shape is not None and not self.batch_dim


class Preprocess(Spec):
    """How stored arrays become model inputs: `(x * scale - mean) / std`, mean and std a channel (dim 1).

    `max_length` is of texts.
    """

    scale: float = Field(1.0, gt=0, description="What stored numbers are multiplied with first, such as 1/255.")
    mean: list[float] | None = Field(None, description="What is then subtracted: a number a channel.")
    std: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="What is divided by in the end: a number a channel."
    )
    max_length: int | None = Field(
        None, ge=1, le=1 << 16, description="Tokens of a text that are kept. Without one: 512, or the longest text."
    )


class CompressionSpec(JobSpec):
    """What every compression job has."""

    seed: int = Field(0, ge=0, lt=1 << 32, description="Of every random choice: the same seed gives the same result.")
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
        description="Formats of the result. Without one: `exported_program` for an upload that is one, `onnx` for "
        "ONNX, `huggingface` for a model folder, else `torchscript`; for weights without an "
        "architecture `checkpoint`, or `state_dict` if they are safetensors. `checkpoint` is the "
        "uploaded checkpoint again, with the smaller weights in the place of the old ones; "
        "`huggingface` is a zip of a model folder, for an upload that is one. `packed` is the smallest "
        "where weights were pruned: sparse and entropy-coded; `pared unpack` makes a dense model of it. "
        "A format that cannot hold the model is left out and named in `failed_outputs` of the report; "
        "the job fails, before it trains, only where none can be written.",
    )
    dynamic: Dynamic | Literal["auto"] | None = Field(
        None,
        description="Sizes that `onnx` and `exported_program` leave free beside the batch: for an input, by its name "
        "in the model's `forward`, dimensions and what their sizes are called. Equal names are for sizes that are "
        "always equal. `auto`: all that the model allows. Each file is checked at two other sizes, and the report "
        "says what is free and what stays fixed. Without it the batch alone is free.",
        examples=[{"x": {"2": "height", "3": "width"}}],
    )
    onnx_opset: int | None = Field(
        None,
        ge=ONNX_OPSETS[0],
        le=ONNX_OPSETS[-1],
        description="Version of ONNX's operators in `onnx`. Without one: torch's own choice, now 20.",
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

    def _refuse_without_classes(self, field: str, training: Training) -> None:
        """Refuse what a training says of classes where the task has none."""
        if self.task in WITHOUT_CLASSES and training.names_classes:
            self._refuse({field: f"`{training.names_classes}` is of classes, which task={self.task} does not have"})

    def _retraining_is_of_the_task(self, retrain: Retrain | None) -> None:
        """Refuse what a retraining learns from, or says of classes, where the task has no such thing."""
        teach = None if retrain is None else retrain.teach
        if self.task in WITHOUT_LABELS and teach is not None:
            why = f"has no effect: task={self.task} learns the uploaded model's answers already; leave it out"
            self._refuse({"retrain": f"`teach` {why}"})
        if self.task in WITHOUT_CLASSES and isinstance(teach, Knowledge) and teach.alpha < 1:
            why = 'softens class probabilities, which a regression does not have: use {"kind": "output_mse"}'
            self._refuse({"retrain": f"`teach` {why}"})
        if isinstance(teach, Combined):
            unfit = teach.unfit(classes=self.task not in WITHOUT_CLASSES, labels=True, one_output=True)
            if unfit:
                self._refuse({f"retrain/teach/{path}": why for path, why in unfit.items()})
        if retrain is not None:
            self._refuse_without_classes("retrain", retrain)

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
    def _formats_have_what_is_said_of_them(self) -> CompressionSpec:
        idle = {}
        if self.outputs is not None and not set(self.outputs) & set(WITH_FREE_SIZES):
            idle["dynamic"] = "is for the formats onnx and exported_program: name one in `outputs`, or leave it out"
        if "onnx" not in (self.outputs or []):
            idle["onnx_opset"] = "is for the format onnx: name it in `outputs`, or leave it out"
        self._must_be_left_out(idle)
        if isinstance(self.dynamic, dict) and any("batch" in sizes.values() for sizes in self.dynamic.values()):
            self._refuse({"dynamic": "calls a size batch, which is the name of dimension 0: choose another one"})
        return self

    @model_validator(mode="after")
    def _output_is_of_labels(self) -> CompressionSpec:
        if self.task == "match" and self.output is not None:
            self._refuse({"output": "has no part in task=match, which compares all outputs: leave it out"})
        return self

    @model_validator(mode="after")
    def _quality_is_lost_in_shares(self) -> CompressionSpec:
        """Refuse a hundred points of accuracy and more, where somebody meant one."""
        most = getattr(getattr(self, "target", None), "max_quality_drop", None)
        if most is not None and most >= 1 and self.task not in NOT_IN_POINTS:
            why = f"is a share, and {most:g} is {100 * most:g} points: write {most / 100:g} for {most:g} in a hundred"
            why += ", or leave it out for no limit"
            if self.task is None:
                why += f". Where the measure is no share, name the `task`: {listed(NOT_IN_POINTS, 'or')}"
            self._refuse({"target/max_quality_drop": why})
        return self

    @model_validator(mode="after")
    def _latency_device_is_there(self) -> CompressionSpec:
        if self.device == "cpu" and self.latency_device == "cuda":
            why = "cuda is not there for a job whose `device` is cpu: make `device` cuda or auto, or leave this out"
            self._refuse({"latency_device": why})
        return self
