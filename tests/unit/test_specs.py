"""Defaults that depend on another field."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pared.job_types import listed_spec
from pared.specs import DistillSpec, Knowledge, OutputMse, PruneSpec, TeachTrain, Train
from pared.specs.running import runs

MODEL = "mdl_" + "0" * 26
PRUNE = {"type": "prune", "model": MODEL, "amount": 0.5}
DISTILL = {"type": "distill", "teacher": MODEL, "student": MODEL, "dataset": "builtin:digits"}


def test_weights_are_ranked_together_and_channels_layer_by_layer() -> None:
    assert PruneSpec.model_validate(PRUNE).scope == "layer"
    assert PruneSpec.model_validate(PRUNE | {"granularity": "channel"}).scope == "layer"
    assert PruneSpec.model_validate(PRUNE | {"granularity": "weight"}).scope == "global"
    assert PruneSpec.model_validate(PRUNE | {"granularity": "weight", "scope": "layer"}).scope == "layer"
    assert PruneSpec.model_validate(PRUNE | {"granularity": "residual_block"}).scope == "global"


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
    ("samples", "given", "epochs"),
    [
        (1000, {}, 200),
        (6400, {}, 60),
        (50000, {}, 10),
        (6400, {"batch_size": 32}, 30),
        (6400, {"epochs": 3}, 3),
        (6400, {"epochs": 0}, 0),
    ],
)
def test_a_student_trains_for_as_many_epochs_as_its_data_ask_for(samples: int, given: dict, epochs: int) -> None:
    training = TeachTrain.model_validate(given)
    assert training.on(samples) == Train.model_validate(training.model_dump() | {"epochs": epochs})


def test_rates_and_schedules_of_students_are_their_own() -> None:
    taught, retrained = TeachTrain(), Train(optimizer="adam")
    assert (taught.optimizer, taught.lr, taught.lr_schedule, taught.warmup) == ("adam", 0.003, "cosine", 0.05)
    assert (retrained.lr, retrained.lr_schedule, retrained.warmup) == (0.001, "constant", 0.0)
    assert TeachTrain(optimizer="sgd").lr == Train().lr == 0.01


def test_a_loss_without_numbers_is_that_of_no_loss() -> None:
    named, left_out = (DistillSpec.model_validate(DISTILL | loss) for loss in ({"loss": {"kind": "knowledge"}}, {}))
    assert named.loss == left_out.loss
    assert (named.loss.alpha, named.loss.temperature, named.loss.label_share) == (0.0, 2.0, 0.5)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"criterion": "activation"}, "training samples: name a `dataset`"),
        ({"criterion": "taylor"}, "training samples: name a `dataset`"),
        ({"criterion": "hessian"}, "training samples: name a `dataset`"),
        ({"criterion": "bn_scale", "granularity": "weight"}, "scores channels"),
        ({"criterion": "geometric_median", "granularity": "weight"}, "scores channels"),
        ({"criterion": "lamp", "granularity": "residual_block"}, "does not compare blocks: use magnitude"),
        ({"criterion": "bn_scale", "granularity": "residual_block"}, "does not compare blocks: use magnitude"),
    ],
)
def test_a_criterion_without_what_it_needs_is_refused(given: dict, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PruneSpec.model_validate(PRUNE | given)
    assert [error["loc"] for error in caught.value.errors()] == [("criterion",)]
    assert says in str(caught.value)


DATA = {"dataset": "builtin:digits"}
WEIGHT = DATA | {"granularity": "weight"}
JITTER = ("brightness", "contrast", "saturation")
TEACH = {"retrain": {"teach": {"kind": "knowledge"}}}


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"granularity": "n:m", "n_m": [4, 4], "amount": 0.5}, "n_m", "removes nothing"),
        ({"granularity": "n:m", "amount": 0.9}, "amount", "is 0.5 where 2 of 4 are kept"),
        ({"granularity": "n:m", "scope": "global"}, "scope", "says nothing to n:m"),
        ({"granularity": "n:m", "amounts": {"a": 0.1}}, "amounts", "says nothing to n:m"),
        (DATA | {"granularity": "n:m", "schedule": "cubic"}, "schedule", "must be one_shot"),
        ({"granularity": "residual_block", "scope": "layer"}, "scope", "ranked together: leave it out"),
        ({"granularity": "residual_block", "amounts": {"a": 0.1}}, "amounts", "ranked together: leave it out"),
        ({"n_m": [1, 4]}, "n_m", "is for the granularity n:m"),
        ({"block": [2, 2]}, "block", "is for the granularity block"),
        ({"granularity": "weight", "schedule": "cubic"}, "schedule", "name a `dataset`"),
        (WEIGHT | {"schedule": "cubic", "retrain": None}, "schedule", "let `retrain` have epochs"),
        (WEIGHT | {"schedule": "cubic", "steps": 3}, "steps", "`ramp` says how long"),
        (WEIGHT | {"ramp": 0.6}, "ramp", "make `schedule` cubic"),
        (DATA | {"schedule": "cubic", "regrow": 0.1}, "regrow", "while training runs"),
        (WEIGHT | {"amounts": {"a": 0.1}, "scope": "global"}, "amounts", "make `scope` layer"),
        ({"stages": [0.3, 0.2]}, "stages", "must rise"),
        ({"stages": [0.3, 0.6]}, "stages", "end below"),
        ({"stages": [0.3], "amounts": {"a": 0.1}}, "stages", "beside `amounts`"),
        ({"stages": [0.3], "schedule": "iterative"}, "stages", "has its `steps`"),
        (DATA | TEACH | {"task": "regression"}, "retrain", "a regression does not have"),
        (DATA | TEACH | {"task": "match"}, "retrain", "learns the uploaded model's answers already"),
        (DATA | {"task": "match", "output": 0}, "output", "compares all outputs"),
        (DATA | {"task": "binary", "ignore_index": 9}, "ignore_index", "pixels or tokens"),
        ({"output": "logits"}, "output", "come with a data set"),
        (DATA | {"task": "match", "retrain": {"label_smoothing": 0.1}}, "retrain", "`label_smoothing` is of classes"),
        (
            DATA | {"task": "regression", "retrain": {"class_weights": [1, 2]}},
            "retrain",
            "`class_weights` is of classes",
        ),
    ],
)
def test_what_can_have_no_effect_or_contradicts_is_pointed_at(given: dict, field: str, says: str) -> None:
    spec = PRUNE | given
    if given.get("granularity") == "n:m" and "amount" not in given:
        del spec["amount"]
    with pytest.raises(ValidationError) as caught:
        PruneSpec.model_validate(spec)
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("retrain", "field", "says"),
    [
        ({"nesterov": True, "optimizer": "adam"}, "nesterov", "SGD's momentum"),
        ({"nesterov": True, "momentum": 0}, "nesterov", "SGD's momentum"),
        ({"teach": {"kind": "knowledge", "features": [["a", "a"]]}}, "teach", "leave `features` out"),
        ({"augment": {}}, "augment.horizontal_flip", "name one, such as {}, or leave out `augment`"),
        ({"augment": {"flip": {}}}, "augment.flip", "not permitted"),
        ({"augment": {"erasing": {"scale": [0.5, 0.1]}}}, "augment.erasing.scale", "begins above its end"),
        ({"augment": {"resized_crop": {"ratio": [2, 1]}}}, "augment.resized_crop.ratio", "the smaller"),
        ({"augment": {"color_jitter": dict.fromkeys(JITTER, 0)}}, "augment.color_jitter.brightness", "changes nothing"),
        ({"augment": {"token_dropout": {"p": 1}}}, "augment.token_dropout.p", "less than 1"),
    ],
)
def test_a_training_that_contradicts_itself_is_pointed_at(retrain: dict, field: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        PruneSpec.model_validate(PRUNE | DATA | {"retrain": retrain})
    assert [error["loc"] for error in caught.value.errors()] == [("retrain", *field.split("."))]


@pytest.mark.parametrize(
    ("given", "pointer", "says"),
    [
        ({}, ("amount",), "is required where there is no `target`"),
        ({"amount": 0.5, "target": {"params": 0.5}}, ("amount",), "give one of the two"),
        ({"target": {"params": 1.5}}, ("target", "params"), "less than 1"),
        ({"target": {"macs": 0}}, ("target", "macs"), "greater than 0"),
        ({"target": {"max_accuracy_drop": 1}}, ("target", "max_accuracy_drop"), "less than 1"),
        ({"target": {}}, ("target",), "names no goal"),
        ({"target": {"params": None}}, ("target",), "names no goal"),
        ({"target": {"size": 0.5}}, ("target", "size"), "not permitted"),
        (
            {"target": {"params": 0.5, "latency_batch_size": 8}},
            ("target", "latency_batch_size"),
            "leave it out, or give `latency`",
        ),
        ({"target": {"max_accuracy_drop": 0.01}}, ("target", "max_accuracy_drop"), "name a `dataset`"),
        ({"target": {"max_quality_drop": 0.01}}, ("target", "max_quality_drop"), "is measured on data"),
        (
            {"target": {"max_quality_drop": 0.01, "max_accuracy_drop": 0.01}},
            ("target", "max_accuracy_drop"),
            "give one of the two",
        ),
        ({"target": {"macs": 0.5}, "granularity": "weight"}, ("target", "macs"), "are no fewer"),
        ({"target": {"latency": 0.5}, "granularity": "block"}, ("target", "latency"), "make `granularity` channel"),
        ({"target": {"params": 0.5}, "granularity": "n:m"}, ("target",), "says the amount itself"),
        ({"target": {"file_bytes": 0.5}, "granularity": "weight"}, ("target", "file_bytes"), "begin with `packed`"),
        (
            {"target": {"file_bytes": 0.5}, "granularity": "weight", "outputs": ["torchscript", "packed"]},
            ("target", "file_bytes"),
            "begin with `packed`",
        ),
        ({"target": {"params": 0.5}, "amounts": {"a": 0.1}}, ("amounts",), "leave them out"),
        ({"target": {"params": 0.5}, "stages": [0.3]}, ("stages",), "leave them out beside a `target`"),
        ({"amount": 0.5, "granularity": "weight", "round_to": 8}, ("round_to",), "counts channels"),
        ({"amount": 0.5, "granularity": "head", "output_width": "project"}, ("output_width",), "is of channels"),
        ({"amount": 0.5, "round_to": 1}, ("round_to",), "greater than or equal to 2"),
    ],
)
def test_a_goal_that_contradicts_is_pointed_at(given: dict, pointer: tuple, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PruneSpec.model_validate({"type": "prune", "model": MODEL} | given)
    assert [error["loc"] for error in caught.value.errors()] == [pointer]
    assert says in str(caught.value)


def test_n_of_m_says_the_amount() -> None:
    spec = {"type": "prune", "model": MODEL, "granularity": "n:m", "n_m": [1, 4]}
    assert PruneSpec.model_validate(spec).amount == 0.75


def test_sgd_learns_classes_from_the_model_as_it_came_unless_told_otherwise() -> None:
    asked, left_out = ({"retrain": {"epochs": 1} | teach} | DATA for teach in ({"teach": True}, {}))
    assert PruneSpec.model_validate(PRUNE | asked) == PruneSpec.model_validate(PRUNE | left_out)
    assert PruneSpec.model_validate(PRUNE | DATA).retrain.teach.kind == "knowledge"
    for alone in ({"teach": None}, {"teach": False}, {"optimizer": "adam"}):
        assert PruneSpec.model_validate(PRUNE | DATA | {"retrain": alone}).retrain.teach is None
    assert PruneSpec.model_validate(PRUNE | DATA | {"retrain": None}).retrain is None
    assert PruneSpec.model_validate(PRUNE | DATA | {"task": "regression"}).retrain.teach is None


def test_a_teacher_is_asked_for_by_true() -> None:
    taught = {"retrain": {"teach": True}} | DATA
    softened = PruneSpec.model_validate(PRUNE | taught).retrain.teach
    assert (softened.alpha, softened.temperature, softened.labels) == (0.0, 4.0, 0.5)
    assert PruneSpec.model_validate(PRUNE | taught | {"task": "regression"}).retrain.teach.kind == "output_mse"
    assert PruneSpec.model_validate(PRUNE | {"retrain": {"teach": False}} | DATA).retrain.teach is None


def test_a_stored_spec_is_accepted_again() -> None:
    for given in (
        {"granularity": "n:m"},
        WEIGHT | {"schedule": "cubic", "amount": 0.9},
        {"amounts": {"a": 0.1}, "amount": 0.5},
        DATA | {"target": {"latency": 0.5, "latency_batch_size": 8, "max_accuracy_drop": 0.01}, "round_to": 8},
    ):
        spec = PruneSpec.model_validate({"type": "prune", "model": MODEL} | given)
        assert PruneSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        ({}, "auto"),
        ({"device": "cpu"}, "cpu"),
        ({"device": "cuda", "latency_device": "cpu"}, "cuda"),
        ({"device": "cpu", "latency_device": "cpu"}, "cpu"),
        ({"latency_device": "cpu"}, "auto"),
        ({"latency_device": "cuda"}, "cuda"),
    ],
)
def test_a_job_needs_what_it_computes_on_and_where_its_latency_is_measured(given: dict, needs: str) -> None:
    assert PruneSpec.model_validate(PRUNE | given).needs_device == needs
    assert DistillSpec.model_validate(DISTILL | given).needs_device == needs


def test_latency_is_not_measured_on_a_gpu_that_the_job_may_not_have() -> None:
    with pytest.raises(ValidationError, match="make `device` cuda or auto") as caught:
        PruneSpec.model_validate(PRUNE | {"device": "cpu", "latency_device": "cuda"})
    assert [error["loc"] for error in caught.value.errors()] == [("latency_device",)]


def test_a_combined_loss_has_what_its_terms_need() -> None:
    terms = [{"kind": "kl"}, {"kind": "labels", "weight": 0.1}, {"kind": "hint"}, {"kind": "relational"}]
    loss = DistillSpec.model_validate(DISTILL | {"loss": {"kind": "combined", "terms": terms}}).loss
    assert [(term.kind, term.weight) for term in loss.terms][:2] == [("kl", 1.0), ("labels", 0.1)]
    assert [(place, term.features) for place, term in loss.with_features] == [(2, "auto")]
    for task, term in (("embedding", {"kind": "cosine"}), ("regression", {"kind": "output_mse"})):
        spec = DISTILL | {"task": task, "loss": {"kind": "combined", "terms": [term, {"kind": "hint"}]}}
        assert DistillSpec.model_validate(spec).loss.terms[0].kind == term["kind"]
    taught = {"retrain": {"teach": {"kind": "combined", "terms": terms[:2]}}} | DATA
    assert PruneSpec.model_validate(PRUNE | taught).retrain.teach.kind == "combined"


def test_a_match_is_distilled_in_its_own_measure() -> None:
    spec = DISTILL | {"task": "match"}
    assert isinstance(DistillSpec.model_validate(spec).loss, OutputMse)
    features = {"kind": "knowledge", "features": [["a", "a"]]}
    for given, field in (
        ({"loss": features}, "loss"),
        ({"compare_with_labels_only": True}, "compare_with_labels_only"),
    ):
        with pytest.raises(ValidationError) as caught:
            DistillSpec.model_validate(spec | given)
        assert [error["loc"] for error in caught.value.errors()] == [(field,)]


OTHER = "mdl_" + "1" * 26
STEPS = [{"prune": {"amount": 0.5}}, {"distill": {"teacher": "previous", "student": OTHER}}]
ZEROS = PRUNE | {"granularity": "weight"}
QUANTIZE = {"type": "quantize", "model": MODEL}
PIPELINE = {"type": "pipeline", "model": MODEL, "dataset": "builtin:digits", "steps": STEPS}


@pytest.mark.parametrize(
    ("spec", "run"),
    [
        (PRUNE, {"/model": "/architecture"}),
        (PRUNE | {"architecture": "lenet5"}, {}),
        (ZEROS, {}),
        (ZEROS | {"dataset": "builtin:digits"}, {"/model": "/architecture"}),
        (QUANTIZE, {}),
        (QUANTIZE | {"outputs": ["onnx"]}, {"/model": "/architecture"}),
        (QUANTIZE | {"method": "dynamic", "architecture": "lenet5"}, {}),
        (
            DISTILL | {"teachers": [{"model": OTHER}, {"model": MODEL, "architecture": "lenet5"}]},
            {
                "/teacher": "/teacher_architecture",
                "/teachers/0/model": "/teachers/0/architecture",
                "/student": "/student_architecture",
            },
        ),
        (
            PIPELINE,
            {"/model": "/architecture", "/steps/1/distill/student": "/steps/1/distill/student_architecture"},
        ),
    ],
)
def test_a_spec_says_which_models_it_runs_and_where_their_architecture_would_stand(spec: dict, run: dict) -> None:
    assert {model: each.architecture for model, each in runs(listed_spec.validate_python(spec)).items()} == run


@pytest.mark.parametrize("task", ["regression", "language_modeling", "embedding"])
def test_a_measure_that_is_no_share_may_lose_more_than_one(task: str) -> None:
    spec = PRUNE | {"task": task, "amount": None, "dataset": "builtin:digits", "target": {"max_quality_drop": 1.5}}
    assert PruneSpec.model_validate(spec).target.quality_drop == 1.5


def test_a_step_of_a_pipeline_is_told_how_one_point_is_written() -> None:
    steps = [{"prune": {"target": {"max_quality_drop": 1}}}]
    with pytest.raises(ValidationError, match=r"write 0\.01 for 1 in a hundred") as caught:
        listed_spec.validate_python(PIPELINE | {"steps": steps})
    assert caught.value.errors()[0]["loc"][-4:] == (0, "prune", "target", "max_quality_drop")
