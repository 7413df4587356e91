"""Defaults that depend on another field."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from pared.cli import Criterion as CommandLineCriterion
from pared.specs import Criterion, DistillSpec, Knowledge, OutputMse, PruneSpec

MODEL = "mdl_" + "0" * 26
PRUNE = {"type": "prune", "model": MODEL, "amount": 0.5}
DISTILL = {"type": "distill", "teacher": MODEL, "student": MODEL, "dataset": "builtin:digits"}


def test_weights_are_ranked_together_and_channels_layer_by_layer() -> None:
    assert PruneSpec.model_validate(PRUNE).scope == "layer"
    assert PruneSpec.model_validate(PRUNE | {"granularity": "channel"}).scope == "layer"
    assert PruneSpec.model_validate(PRUNE | {"granularity": "weight"}).scope == "global"
    assert PruneSpec.model_validate(PRUNE | {"granularity": "weight", "scope": "layer"}).scope == "layer"


def test_a_wrong_granularity_is_the_only_complaint() -> None:
    with pytest.raises(ValidationError) as caught:
        PruneSpec.model_validate(PRUNE | {"granularity": "row"})
    assert [error["loc"] for error in caught.value.errors()] == [("granularity",)]


def test_a_regression_is_taught_by_the_distance_of_the_outputs() -> None:
    assert isinstance(DistillSpec.model_validate(DISTILL).loss, Knowledge)
    assert isinstance(DistillSpec.model_validate(DISTILL | {"task": "regression"}).loss, OutputMse)
    features = {"kind": "knowledge", "features": [["a", "b"]]}
    assert isinstance(DistillSpec.model_validate(DISTILL | {"task": "regression", "loss": features}).loss, Knowledge)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"criterion": "activation"}, "training samples: name a `dataset`"),
        ({"criterion": "taylor"}, "training samples: name a `dataset`"),
        ({"criterion": "hessian"}, "training samples: name a `dataset`"),
        ({"criterion": "bn_scale", "granularity": "weight"}, "scores channels"),
        ({"criterion": "geometric_median", "granularity": "weight"}, "scores channels"),
    ],
)
def test_a_criterion_without_what_it_needs_is_refused(given: dict, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PruneSpec.model_validate(PRUNE | given)
    assert [error["loc"] for error in caught.value.errors()] == [("criterion",)]
    assert says in str(caught.value)


def test_the_command_line_knows_every_criterion() -> None:
    assert tuple(member.value for member in CommandLineCriterion) == get_args(Criterion)
