"""The spec of a quantize job: which int8 arithmetic, calibrated on what, and how much quality it may cost."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pared.specs.architectures import Architecture
from pared.specs.base import Spec
from pared.specs.common import CompressionSpec, Output, TensorSpec
from pared.specs.pruning import with_usual_teacher
from pared.specs.targets import Target
from pared.specs.training import Retrain
from pared.specs.uploads import DatasetReference, ModelId, Text

Method = Literal["weight_only", "dynamic", "static"]
HOLD_INT8: tuple[Output, ...] = ("torchscript", "state_dict", "exported_program", "onnx", "packed")
"""The formats that hold int8 weights."""
_LEAST_OPSET = 13


class Calibration(Spec):
    """How the ranges of what flows between layers are found, which static int8 fixes."""

    samples: int = Field(256, ge=1, le=65536, description="Training samples that the model is run on, drawn evenly.")
    method: Literal["min_max", "percentile", "entropy"] = Field(
        "min_max",
        description="`min_max`: the smallest and the largest number that was met. `percentile`: without the outermost "
        "0.001 %. `entropy`: the range whose int8 distribution is nearest (Kullback–Leibler).",
    )


class QuantizeSpec(CompressionSpec):
    """Make weights, and what is multiplied with them, int8."""

    type: Literal["quantize"]
    model: ModelId
    architecture: Architecture | None = Field(None, description="For a state dict that was uploaded without one.")
    dataset: DatasetReference | None = Field(
        None, description="None: nothing is scored, which `weight_only` and `dynamic` do without."
    )
    example_inputs: list[TensorSpec] | None = Field(
        None,
        max_length=8,
        description="The arguments of the model's forward, where there is no data set to take them from; beside one, "
        "where some are values.",
        examples=[[{"shape": [1, 512]}]],
    )
    method: Method = Field(
        "weight_only",
        description="`weight_only`: weights are kept as int8, a scale for each output channel, and computed with in "
        "float32: a quarter of the bytes, and nearly the same answers. `dynamic`: linear and LSTM layers multiply in "
        "int8, by scales that are found anew for each input. `static`: convolutions and linear layers do, by scales "
        "that were fixed on training samples, and what lies between them stays int8. What a method does not know, such "
        "as embeddings, becomes weight-only. `dynamic` and `static` are for ONNX Runtime: `onnx`.",
    )
    calibration: Calibration = Field(default_factory=Calibration)
    include: list[Text] = Field(default_factory=lambda: ["*"], min_length=1, description="Layer name patterns.")
    exclude: list[Text] = Field(
        default_factory=list, description="Layer name patterns, stronger than include: these layers stay float32."
    )
    retrain: Retrain | None = Field(
        None,
        description="Train the model first, while it computes with rounded weights, and with rounded inputs where "
        "these become int8 too; gradients go straight through the rounding. None: no training.",
        examples=[{"epochs": 3, "lr": 0.001}],
    )
    target: Target | None = Field(
        None,
        description="How much quality may be lost, as `max_quality_drop` (or `max_accuracy_drop`). Where int8 "
        "throughout costs more on the validation split, layers are left out of it, those first that change the answers "
        "most: first they keep int8 weights alone, then they stay float32.",
        examples=[{"max_accuracy_drop": 0.002}],
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("outputs") is None and values.get("method") in ("dynamic", "static"):
            values = {**values, "outputs": ["onnx"]}
        if values.get("retrain") is not None:
            values = {**values, "retrain": with_usual_teacher(values["retrain"], values.get("task"))}
        return values

    @model_validator(mode="after")
    def _every_field_has_an_effect(self) -> QuantizeSpec:
        idle = {}
        if self.method != "static":
            idle["calibration"] = "is of the method static: leave it out, or set `method`"
        if self.dataset is None:
            idle["retrain"] = idle["preprocess"] = "has no effect without data: leave it out, or name a `dataset`"
            idle["output"] = idle["ignore_index"] = "is of labels, which come with a data set: leave it out"
        elif all(each.is_plain for each in self.example_inputs or []):
            idle["example_inputs"] = "has no effect beside a data set, which shows the inputs: leave it out"
        self._must_be_left_out(idle)
        self._refuse_formats()
        self._retraining_is_of_the_task(self.retrain)
        if self.method == "static" and self.dataset is None:
            self._refuse({"dataset": "is what static int8 is calibrated on: name one, or make `method` weight_only"})
        if self.target is not None:
            self._refuse_other_goals(self.target)
        if self.latency_device == "cuda":
            self._refuse({"latency_device": "must be cpu: int8 files run on the processor"})
        return self

    @property
    def trains(self) -> bool:
        """Whether the model is trained first."""
        return self.dataset is not None and self.retrain is not None and self.retrain.trains

    def _refuse_formats(self) -> None:
        for output in self.outputs or []:
            if output not in HOLD_INT8:
                self._refuse({"outputs": f"`{output}` holds no int8: name some of {', '.join(HOLD_INT8)}"})
            if output != "onnx" and self.method != "weight_only":
                why = f"`{output}` holds int8 weights alone: make it onnx, or make `method` weight_only"
                self._refuse({"outputs": why})
        if self.onnx_opset is not None and self.onnx_opset < _LEAST_OPSET:
            self._refuse({"onnx_opset": f"must be at least {_LEAST_OPSET}, which has a scale for each channel"})

    def _refuse_other_goals(self, target: Target) -> None:
        if target.sizes:
            named = next(iter(target.sizes))
            why = "is not chosen here, where int8 says it: give a quality that may be lost"
            self._refuse({f"target/{named}": why})
        if self.dataset is None:
            field, why = target.needs_data
            self._refuse({f"target/{field}": why})
