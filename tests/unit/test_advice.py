"""What is said of wrong fields: by the same words, whoever checks them."""

from __future__ import annotations

import numpy as np
import pydantic
import pytest
import torch

import pared
from pared.client.base import path_of
from pared.client.operations import APIError
from pared.compression import pipeline, prune
from pared.errors import ValidationError
from pared.report_words import speed
from pared.reports import Latency
from pared.specs import PruneSpec
from pared.specs.advice import advised

MODEL, DATA = "mdl_01K9Q5V7M3W8Z2X4Y6A0B1C2D3", "dst_01K9Q5V7M3W8Z2X4Y6A0B1C2D3"


def said(**fields: object) -> dict[str, str]:
    """Pointer -> advice of a prune job with these fields."""
    document = {"type": "prune", "model": MODEL, "dataset": DATA, **fields}
    with pytest.raises(pydantic.ValidationError) as caught:
        PruneSpec.model_validate(document)
    return {each["pointer"]: each["detail"] for each in advised(caught.value.errors(), document, PruneSpec)}


@pytest.mark.parametrize(
    ("fields", "pointer", "advice"),
    [
        ({"amount": 50}, "/amount", "must be above 0 and below 1; 50 % is 0.5"),
        ({"amount": "50%"}, "/amount", "must be a number; 50 % is 0.5"),
        ({"amount": "half"}, "/amount", "must be a number"),
        ({"amount": 1}, "/amount", "must be above 0 and below 1"),
        ({"amount": 0}, "/amount", "must be above 0 and below 1"),
        ({"amount": 5000}, "/amount", "must be above 0 and below 1"),
        (
            {"target": {"max_accuracy_drop": 1}},
            "/target/max_accuracy_drop",
            "must be at least 0 and below 1; 1 point is 0.01",
        ),
        ({"target": {"max_quality_drop": "1%"}}, "/target/max_quality_drop", "must be a number; 1 % is 0.01"),
        (
            {"target": {"max_quality_drop": 2}, "task": "segmentation"},
            "/target/max_quality_drop",
            "is a share, and 2 is 200 points: write 0.02 for 2 in a hundred, or leave it out for no limit",
        ),
        (
            {"target": {"max_quality_drop": 1}},
            "/target/max_quality_drop",
            (
                "is a share, and 1 is 100 points: write 0.01 for 1 in a hundred, or leave it out for no limit. Where "
                "the measure is no share, name the `task`: regression, language_modeling or embedding"
            ),
        ),
        ({"target": {"params": "12.5 %"}}, "/target/params", "must be a number; 12.5 % is 0.125"),
        ({"target": {"size": 0.5}}, "/target/size", "is not a known field; did you mean file_bytes?"),
        ({"ratio": 0.5, "amount": 0.5}, "/ratio", "is not a known field; did you mean amount?"),
        ({"ammount": 0.5, "amount": 0.5}, "/ammount", "is not a known field; did you mean amount?"),
        (
            {"amount": 0.5, "max_quality_drop": 0.1},
            "/max_quality_drop",
            'is not a known field here, but of target: {"target": {"max_quality_drop": …}}',
        ),
        (
            {"amount": 0.5, "epochs": 3},
            "/epochs",
            'is not a known field here, but of quantize or retrain: {"retrain": {"epochs": …}}',
        ),
        (
            {"amount": 0.5, "learning_rate": 0.1},
            "/learning_rate",
            'is called lr, and is a field of quantize or retrain: {"retrain": {"lr": …}}',
        ),
        (
            {"amount": 0.5, "retrain": {"optimizer": "Adam"}},
            "/retrain/optimizer",
            "must be 'sgd' or 'adam'; did you mean 'adam'?",
        ),
        ({"amount": 0.5, "retrain": 3}, "/retrain", "must be an object"),
        ({"amount": 0.5, "retrain": {"lr": 20}}, "/retrain/lr", "must be above 0 and at most 10"),
    ],
)
def test_a_wrong_field_is_told_what_to_write(fields, pointer, advice):
    assert said(**fields)[pointer] == advice


def test_a_field_that_nothing_is_like_is_told_the_own_fields_of_the_job_first():
    assert said(foo=1, amount=0.5)["/foo"].startswith("is not a known field; there are type, model, ")


def test_the_library_says_it_in_the_same_words():
    x, y = np.zeros((20, 3), np.float32), np.arange(20) % 2
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ValidationError, match="/epochs is not a known field here, but of quantize or retrain"):
        prune(model, (x, y), amount=0.5, epochs=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="/steps/0 must be an object"):
        pipeline(model, (x, y), steps=["prune"])  # type: ignore[list-item]


def test_what_is_no_model_is_told_what_is_one():
    with pytest.raises(ValidationError, match=r"The model is a OrderedDict, where a torch\.nn\.Module or the path"):
        prune(torch.nn.Linear(3, 2).state_dict(), amount=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="The client sends files, and this is a Linear"):
        path_of(torch.nn.Linear(3, 2))


def test_a_model_and_its_data_that_changed_places_are_told_apart():
    with pared.Client("http://127.0.0.1:9") as client:
        with pytest.raises(ValueError, match=f"{DATA} is a data set, where a model is wanted"):
            client.prune(DATA, MODEL, amount=0.5)
        with pytest.raises(ValueError, match=f"{MODEL} is a model, where a data set is wanted"):
            client.plan(MODEL, MODEL, amount=0.5)


def test_inputs_by_name_may_be_called_x():
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(3, 8), torch.nn.Linear(5, 8)
            self.last = torch.nn.Linear(8, 2)

        def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.last(torch.relu(self.first(z) + self.second(x)))
            return answer

    arrays = {"x": np.ones((40, 5), np.float32), "z": np.ones((40, 3), np.float32)}
    result = prune(Both(), (arrays, np.arange(40) % 2), amount=0.5, retrain=None)
    assert repr(result) == f"<Result: {result.report.verdict}>"
    assert "multiply-adds a sample" in str(result)
    assert "multiply-adds a sample" in str(result.report)
    assert str(pared.Report.model_validate(result.report.model_dump())) == str(result.report)


def test_one_wrong_field_is_told_once():
    error = {"pointer": "/amount", "detail": "is required"}
    problem = {"title": "The request is not valid", "detail": "/amount is required", "errors": [error]}
    assert str(APIError(422, problem)).count("is required") == 1
    assert str(APIError(422, problem | {"errors": [error, error]})).count("is required") == 3


def test_no_speed_is_claimed_of_times_that_spread_wider_than_they_are_long():
    slow = Latency(batch_size=1, p50_ms=61.5, p95_ms=113.0, noise=0.85, runs=20, device="cpu")
    assert speed(slow, slow.model_copy(update={"p50_ms": 2.57, "noise": 19.9})) == "same"
    assert speed(slow, slow.model_copy(update={"p50_ms": 2.57, "noise": 0.9})) == "faster"
