"""What a quantize spec refuses, each with the field and what to do."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from pared.specs import PlanSpec, QuantizeSpec

BASE = {"type": "quantize", "model": "mdl_" + "0" * 26}
DATA = BASE | {"dataset": "builtin:digits"}


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (BASE | {"method": "static"}, "dataset", "calibrated"),
        (DATA | {"method": "static", "outputs": ["onnx", "torchscript"]}, "outputs", "int8 weights alone"),
        (BASE | {"method": "dynamic", "outputs": ["packed"]}, "outputs", "make it onnx"),
        (BASE | {"outputs": ["checkpoint"]}, "outputs", "holds no int8"),
        (BASE | {"outputs": ["huggingface"]}, "outputs", "holds no int8"),
        (BASE | {"outputs": ["onnx"], "onnx_opset": 11}, "onnx_opset", "at least 13"),
        (BASE | {"target": {"max_accuracy_drop": 0.01}}, "target.max_accuracy_drop", "name a `dataset`"),
        (DATA | {"target": {"params": 0.5}}, "target.params", "quality"),
        (DATA | {"calibration": {"samples": 8}}, "calibration", "static"),
        (DATA | {"latency_device": "cuda"}, "latency_device", "processor"),
        (BASE | {"preprocess": {"scale": 2}}, "preprocess", "dataset"),
        (DATA | {"example_inputs": [{"shape": [1, 4]}]}, "example_inputs", "leave it out"),
    ],
)
def test_what_could_have_no_effect_or_no_outcome_is_refused(spec: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(pydantic.ValidationError) as refused:
        QuantizeSpec.model_validate(spec)
    (error,) = refused.value.errors()
    assert ".".join(map(str, error["loc"])) == field
    assert words in error["msg"]


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_integer_arithmetic_is_written_as_onnx(method: str) -> None:
    spec = QuantizeSpec.model_validate(DATA | {"method": method, "outputs": None})
    assert spec.outputs == ["onnx"]
    assert QuantizeSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize("field", ["max_quality_drop", "max_accuracy_drop"])
@pytest.mark.parametrize(
    ("job", "by"), [(DATA, "measuring"), ({**DATA, "type": "prune"}, "retraining")], ids=["quantize", "prune"]
)
def test_a_plan_refuses_a_goal_of_quality_by_either_name(field: str, job: dict[str, Any], by: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=f"is met by {by}, which a plan does without"):
        PlanSpec.model_validate({"type": "plan", "job": job | {"target": {field: 0.01}}})
