"""The spec of a pipeline: what it refuses, where it points, and which steps are chosen for a target."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pared.errors import ValidationError as Problem
from pared.job_types import BY_NAME, STEPS, listed_spec
from pared.specs import PipelineSpec, Target
from pared.specs.choosing import chosen_steps
from pared.specs.planning import unknown_beforehand
from service.job_specs import SPECS
from service.problems import invalid

MODEL, OTHER = "mdl_" + "0" * 26, "mdl_" + "1" * 26
PRUNE = {"prune": {"amount": 0.5}}
DISTILL: dict[str, Any] = {"distill": {}}
FROM_TEACHER = {"from_teacher": {"width": 0.5}}


def document(*steps: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "pipeline", "model": MODEL, "dataset": "builtin:digits", "steps": list(steps)} | fields


def pipeline(*steps: Any, **fields: Any) -> PipelineSpec:
    spec = listed_spec.validate_python(document(*steps, **fields))
    assert isinstance(spec, PipelineSpec)
    return spec


def problem(body: dict[str, Any]) -> Problem:
    with pytest.raises(ValidationError) as caught:
        listed_spec.validate_python(body)
    found: Problem = invalid(caught.value.errors(), body, SPECS)
    return found


@pytest.mark.parametrize(
    ("steps", "fields", "pointer", "says"),
    [
        ([], {}, "/steps", "at least 1 item"),
        ([PRUNE] * 9, {}, "/steps", "at most 8 items"),
        ([{}], {}, "/steps/0", "must name one type of step, "),
        ([PRUNE | DISTILL], {}, "/steps/0", "must name one type of step, "),
        (["prune"], {}, "/steps/0", "must be an object"),
        ([PRUNE, {"distil": {}}], {}, "/steps/1/distil", "is no type of step: use prune"),
        ([PRUNE, {"pipeline": {"steps": []}}], {}, "/steps/1/pipeline", "cannot be a step of one"),
        ([{"inspect": {}}], {}, "/steps/0/inspect", "is no type of step"),
        ([{"prune": {"amount": 0.5, "dataset": "builtin:digits"}}], {}, "/steps/0/prune/dataset", "said once"),
        ([PRUNE, {"distill": {"teacher_architecture": "lenet5"}}], {}, "/steps/1/distill/teacher_architecture", "that"),
        ([{"prune": {"amount": 0.5, "outputs": ["onnx"]}}], {}, "/steps/0/prune/outputs", "beside `steps`"),
        ([{"prune": {"type": "prune"}}], {}, "/steps/0/prune/type", "the name of the step itself"),
        ([{"prune": {"amonut": 0.5}}], {}, "/steps/0/prune/amonut", "did you mean amount?"),
        ([{"prune": {"amount": 2}}], {}, "/steps/0/prune/amount", "must be above 0 and below 1"),
        ([{"prune": {}}], {}, "/steps/0/prune/amount", "is required where there is no `target`"),
        ([{"prune": {"amount": 0.5, "steps": 3}}], {}, "/steps/0/prune/steps", "no effect with the schedule one_shot"),
        ([{"prune": {"amount": 0.5, "retrain": {"lr": 99}}}], {}, "/steps/0/prune/retrain/lr", "at most 10"),
        ([DISTILL], {}, "/steps/0/distill/student", "is required in the first step"),
        ([PRUNE, DISTILL, DISTILL], {}, "/steps/2/distill", "only goes on with /steps/1"),
        (
            [PRUNE, {"distill": {"student": FROM_TEACHER}}],
            {},
            "/steps/1/distill/student",
            "nothing of the steps before",
        ),
        ([PRUNE, {"distill": {"teacher": "previous"}}], {}, "/steps/1/distill/student", "learn from itself"),
        ([PRUNE], {"example_inputs": [{"shape": [1, 64]}]}, "/example_inputs", "no effect beside a data set"),
        ([{"prune": {}}, PRUNE, {"prune": {}}], {"target": {"params": 0.1}}, "/steps/2/prune/amount", "in one step"),
        (
            [{"prune": {"granularity": "weight"}}, DISTILL],
            {"target": {"macs": 0.1}},
            "/target/macs",
            "are no fewer",
        ),
        ([{"prune": {"granularity": "residual_block"}}], {"target": {"macs": 0.1}}, "/target", "give an `amount`"),
        (
            [PRUNE],
            {"dataset": None, "target": {"max_quality_drop": 0.1}},
            "/target/max_quality_drop",
            "name a `dataset`",
        ),
        ([PRUNE], {"target": {}}, "/target", "names no goal"),
    ],
)
def test_a_pipeline_that_makes_no_sense_is_refused_where_it_is_wrong(
    steps: list[Any], fields: dict[str, Any], pointer: str, says: str
) -> None:
    found = problem(document(*steps, **fields))
    assert found.errors[0]["pointer"] == pointer
    assert says in found.errors[0]["detail"]


def test_a_stored_pipeline_names_all_that_its_steps_have_and_reads_the_same_again() -> None:
    spec = pipeline({"prune": {"granularity": "weight"}}, {"distill": {"train": {"epochs": 2}}}, target={"params": 0.1})
    stored = spec.model_dump(mode="json")
    assert stored["steps"][0]["prune"]["scope"] == "global"  # what the spec of a prune job fills in
    assert stored["steps"][0]["prune"]["retrain"]["teach"]["kind"] == "knowledge"
    assert stored["steps"][1]["distill"]["train"] == stored["steps"][1]["distill"]["train"] | {
        "epochs": 2,
        "optimizer": "adam",
        "lr": 0.003,
    }
    assert listed_spec.validate_python(stored).model_dump(mode="json") == stored
    assert spec.searched == 0


def test_a_step_is_the_job_that_it_would_be_alone_on_the_result_before_it() -> None:
    spec = pipeline(PRUNE, DISTILL, seed=3, task="classification", outputs=["onnx"], onnx_opset=18, device="cpu")
    first, second = spec.job(0), spec.job(1)
    assert (first.type, first.model, first.outputs, first.onnx_opset) == ("prune", MODEL, ["torchscript"], None)
    assert (second.type, second.teacher, second.outputs, second.onnx_opset) == ("distill", MODEL, ["onnx"], 18)
    assert second.student != MODEL
    for job in (first, second):
        assert (job.seed, job.task, job.dataset, job.device) == (3, "classification", "builtin:digits", "cpu")


def test_an_assistant_teaches_the_student_of_the_step_after_it() -> None:
    assistant = {"distill": {"student": FROM_TEACHER}}
    spec = pipeline(assistant, {"distill": {"teacher": "previous", "student": FROM_TEACHER}})
    assert spec.job(0).teacher == MODEL != spec.job(1).teacher


def test_uploads_that_steps_name_have_roles_of_their_own() -> None:
    spec = pipeline({"distill": {"student": OTHER}}, {"prune": {"amount": 0.5}})
    found = BY_NAME["pipeline"].references(spec.model_dump(mode="json"))
    assert [(each.pointer, each.role, each.id) for each in found] == [
        ("/model", "model", MODEL),
        ("/dataset", "dataset", "builtin:digits"),
        ("/steps/0/distill/student", "steps.0.distill.student", OTHER),
    ]


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        (pipeline(PRUNE, DISTILL, target={"latency": 0.5, "max_quality_drop": 0.1}), None),  # only judged
        (pipeline({"prune": {}}, DISTILL, target={"file_bytes": 0.5, "max_quality_drop": 0.1}), None),
        (pipeline({"prune": {}}, DISTILL, target={"max_quality_drop": 0.1}), "/target"),
        (pipeline({"prune": {}}, DISTILL, target={"file_bytes": 0.5, "latency": 0.5}), "/target"),
        (pipeline({"prune": {"target": {"max_quality_drop": 0.1}}}, DISTILL), "/steps/0/prune/target"),
    ],
)
def test_a_plan_is_refused_where_only_training_or_time_would_tell(spec: PipelineSpec, pointer: str | None) -> None:
    unknown = unknown_beforehand(spec)
    assert (unknown and unknown[0]) == pointer


@pytest.mark.parametrize(
    ("target", "with_data", "types", "outputs", "chosen"),
    [
        ({"file_bytes": 0.1}, True, ["prune", "distill"], [], ["prune", "distill"]),
        ({"file_bytes": 0.1}, True, ["prune", "distill", "quantize"], [], ["prune", "distill", "quantize"]),
        ({"file_bytes": 0.5}, True, ["prune", "distill", "quantize"], [], ["quantize"]),
        (
            {"file_bytes": 0.5, "macs": 0.5},
            True,
            ["prune", "distill", "quantize"],
            [],
            ["prune", "distill", "quantize"],
        ),
        ({"file_bytes": 0.1}, False, ["prune", "distill", "quantize"], [], ["prune", "quantize"]),
        ({"params": 0.1}, True, ["prune", "distill", "quantize"], [], ["prune", "distill"]),
        ({"max_quality_drop": 0.01}, True, ["prune", "distill", "quantize"], [], ["prune", "distill"]),
        ({"file_bytes": 0.1}, True, ["prune", "distill", "quantize"], ["packed"], ["prune", "distill"]),
    ],
)
def test_steps_are_chosen_for_a_target(target, with_data, types, outputs, chosen) -> None:
    choice = chosen_steps(Target(**target), types=types, with_data=with_data, outputs=outputs, epochs=3)
    assert choice.names == chosen
    assert [line.partition(":")[0] for line in choice.why] == chosen
    if set(chosen) <= STEPS.keys():
        dataset = "builtin:digits" if with_data else None
        pipeline(*choice.steps, target=target, outputs=outputs or None, dataset=dataset)
