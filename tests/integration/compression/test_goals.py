"""A target is met by the least pruning, or is called infeasible and the nearest delivered."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression.architectures import build
from pared.compression.data import load_dataset
from pared.compression.jobs.goal_search import QualitySearch, SizeSearch
from pared.compression.jobs.prune import prepared
from pared.compression.jobs.stages import Stages
from pared.compression.measuring.quality import assess
from pared.compression.tasks.classification import Classification
from pared.compression.training.calibration import learn_labels
from pared.compression.training.loop import fit
from pared.compression.work import DatasetFile, ModelFile, SilentObserver, Work
from pared.errors import NothingToPrune, ValidationError
from pared.job_types import BY_SPEC
from pared.reports import Goal, Point, Report
from pared.specs import PruneSpec, Train
from tests.integration.compression.test_methods import Kept
from tests.support.campaign import in_every_run
from tests.support.plans import assert_kept, plan_of

MODEL = "mdl_" + "0" * 26
LAYERS = [
    ["Linear", {"in_features": 8, "out_features": 24}, "fc1"],
    ["ReLU", {}, "act1"],
    ["Linear", {"in_features": 24, "out_features": 16}, "fc2"],
    ["ReLU", {}, "act2"],
    ["Linear", {"in_features": 16, "out_features": 3}, "fc3"],
]
EXAMPLE = {"example_inputs": [{"shape": [2, 8]}]}
DATA = {"dataset": "dst_" + "0" * 26, "retrain": {"epochs": 2, "lr": 0.1}}


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    """Three classes that a small network tells apart."""
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 600)
    x = (random.normal(0, 1, (3, 8))[y] * 2 + random.normal(0, 1, (600, 8))).astype(np.float32)
    path = tmp_path_factory.mktemp("blobs") / "blobs.npz"
    np.savez(path, x=x, y=y)
    return DatasetFile(path, path.name)


@pytest.fixture(scope="module")
def dense(blobs, tmp_path_factory):
    torch.manual_seed(0)
    module = build({"layers": LAYERS})
    data = load_dataset(blobs, task="classification", preprocess=None, seed=0)
    learn = learn_labels(Classification())
    fit(module, data, Train(epochs=3, lr=0.1), learn, task=Classification(), seed=0, phase="dense")
    path = tmp_path_factory.mktemp("dense") / "mlp.pt"
    torch.jit.save(torch.jit.script(module), path)
    return ModelFile(path, path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def job(model, directory, target, *, dataset=None, observer=None, **fields):
    """The spec of a job and its work."""
    directory.mkdir(exist_ok=True)
    base = EXAMPLE if dataset is None else DATA
    spec = PruneSpec.model_validate({"type": "prune", "model": MODEL, "target": target, **base, **fields})
    return spec, Work(
        {"model": model}, dataset, directory, observer or SilentObserver(), timed="latency" in (target or {})
    )


def run(*args, **fields) -> Report:
    spec, work = job(*args, **fields)
    return BY_SPEC[PruneSpec].load_method()(spec, work)


def start(spec, work):
    """What a search is given."""
    return prepared(spec, work, Stages(work.observer))[0]


def rows(directory):
    with (directory / "frontier.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("target", "fields"),
    in_every_run(
        [
            ({"params": 0.4}, {}),
            ({"params": 0.4}, {"scope": "global"}),
            ({"macs": 0.5, "params": 0.45}, {}),
            ({"file_bytes": 0.9}, {"outputs": ["torchscript", "state_dict", "onnx"]}),
            ({"params": 0.4}, {"round_to": 4}),
            ({"params": 0.4}, {"schedule": "iterative", "steps": 2}),
            ({"params": 0.25}, {"granularity": "weight"}),
            ({"params": 0.25}, {"granularity": "block", "block": [2, 2]}),
            ({"file_bytes": 0.2}, {"granularity": "weight", "outputs": ["packed", "torchscript"]}),
            ({"file_bytes": 0.135}, {"granularity": "weight", "outputs": ["packed"], "quantize": {"bits": 3}}),
        ],
        [
            ({"macs": 0.5, "params": 0.45}, {}),
            ({"file_bytes": 0.9}, {"outputs": ["torchscript", "state_dict", "onnx"]}),
            ({"params": 0.4}, {"schedule": "iterative", "steps": 2}),
            ({"params": 0.25}, {"granularity": "weight"}),
            ({"file_bytes": 0.2}, {"granularity": "weight", "outputs": ["packed", "torchscript"]}),
        ],
    ),
)
def test_the_least_pruning_that_meets_the_sizes_is_found_and_planned(dense, tmp_path, target, fields):
    plan = plan_of(*job(dense, tmp_path, target, **fields))
    report = run(dense, tmp_path, target, **fields)
    goal = report.goal
    assert goal.status == "met"
    assert goal.target == target
    assert all(goal.reached[name] <= share for name, share in target.items())
    assert report.verdict.startswith(goal.sentence)
    # A millionth less would be one channel, weight or block too few.
    spec, work = job(dense, tmp_path / "less", target, **fields)
    less = spec.model_copy(update={"target": None, "amount": goal.amount - 1e-6})
    fewer = BY_SPEC[PruneSpec].load_method()(less, work)
    sizes = {
        "params": fewer.after.nonzero_parameters / fewer.before.parameters,
        "macs": fewer.after.macs / fewer.before.macs,
        "file_bytes": next(
            (work.directory / name).stat().st_size / fewer.before.file_bytes for name in fewer.reproduce.outputs
        ),
    }
    assert any(sizes[name] > share for name, share in target.items())
    assert plan.exact
    assert plan.after.nonzero_parameters == report.after.nonzero_parameters
    assert_kept(plan, report, {name: (tmp_path / name).stat().st_size for name in report.reproduce.outputs})


def test_a_goal_out_of_reach_is_infeasible_and_the_nearest_is_delivered(dense, tmp_path):
    report = run(dense, tmp_path, {"params": 0.001})
    assert report.goal.status == "infeasible"
    assert report.goal.sentence.startswith("Goal infeasible:")
    # One channel is left in each of two layers: 8 + 1, 1 + 1 and 3 + 3.
    assert report.after.parameters == 17
    assert report.goal.reached == {"params": 17 / report.before.parameters}
    assert plan_of(*job(dense, tmp_path, {"params": 0.001})).goal == report.goal
    assert len(report.frontier) == 5
    assert not any(point.met for point in report.frontier)


def test_the_frontier_holds_every_point_tried_as_a_file_too(dense, blobs, tmp_path):
    report = run(dense, tmp_path, {"params": 0.4, "max_accuracy_drop": 0.9}, dataset=blobs)
    table = rows(tmp_path)
    assert list(table[0]) == list(Point.model_fields)
    assert [float(row["amount"]) for row in table] == [point.amount for point in report.frontier]
    assert [float(row["amount"]) for row in table] == sorted(float(row["amount"]) for row in table)
    (result,) = (row for row in table if row["test"])
    assert float(result["amount"]) == report.goal.amount
    assert int(result["parameters"]) == report.after.parameters
    assert int(result["file_bytes"]) == (tmp_path / "model.pt").stat().st_size
    assert float(result["test"]) == report.after.quality.test.value
    assert result["met"] == "True"
    assert {row["met"] for row in table} == {"True", "False", ""}  # what fits was not retrained, but for the result


def test_sizes_that_cost_more_accuracy_than_allowed_are_infeasible(dense, blobs, tmp_path):
    report = run(dense, tmp_path, {"params": 0.03, "max_accuracy_drop": 0.0}, dataset=blobs)
    assert report.goal.status == "infeasible"
    assert report.goal.reached["params"] <= 0.03
    drop = report.before.quality.test.value - report.after.quality.test.value
    assert report.goal.reached["max_accuracy_drop"] == drop > 0
    assert "of the parameters (asked: at most 3 %); " in report.goal.sentence
    assert "of test accuracy lost" in report.goal.sentence
    assert "of validation, where at most 0 points was asked" in report.goal.sentence


def test_the_smallest_model_that_holds_the_accuracy_is_found(dense, blobs, tmp_path):
    report = run(dense, tmp_path, {"max_accuracy_drop": 0.05}, dataset=blobs)
    least = report.before.quality.validation - 0.05
    trained = {point.amount: point for point in report.frontier}
    found = trained[report.goal.amount]
    assert found.validation == report.after.quality.validation >= least
    assert all(point.validation < least for amount, point in trained.items() if amount > report.goal.amount)
    assert (report.goal.status == "met") == (report.before.quality.test.value - report.after.quality.test.value <= 0.05)
    assert found.parameters == report.after.parameters < report.before.parameters


def test_of_what_holds_no_accuracy_the_most_accurate_is_the_nearest(dense, blobs, tmp_path):
    given = start(*job(dense, tmp_path, {"max_accuracy_drop": 0.5}, dataset=blobs))
    baseline = assess(given.original.module, given.data, Classification())
    beyond = replace(baseline, quality=baseline.quality.model_copy(update={"validation": 2.0}))
    search = QualitySearch(given, beyond)
    search.run(None, lambda _: None)
    assert len(search.points) > 2
    assert not any(point.met for point in search.points.values())
    assert search.points[search.chosen].validation == max(point.validation for point in search.points.values())


def test_latency_is_met_by_the_reports_own_measurement(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "wide.pt"
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256))), path)
    wide = ModelFile(path, path.name, "")
    target = {"latency": 0.7, "latency_batch_size": 32}
    report = run(wide, tmp_path / "out", target, example_inputs=[{"shape": [2, 64]}])
    before, after = (
        next(latency for latency in each.latency if latency.batch_size == 32) for each in (report.before, report.after)
    )
    assert report.goal.reached == {"latency": after.p50_ms / before.p50_ms}
    assert report.goal.status == ("met" if report.goal.reached["latency"] <= 0.7 else "infeasible")


def test_a_batch_that_the_model_refuses_is_pointed_at(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return self.second(torch.relu(self.first(x))).view(4, 8)

    path = tmp_path / "fixed.pt"
    torch.jit.save(torch.jit.script(Fixed()), path)
    fixed = ModelFile(path, path.name, "")
    for target in ({"latency": 0.9}, {"latency": 0.9, "params": 1e-6}):
        with pytest.raises(ValidationError) as caught:
            run(fixed, tmp_path / "out", target, example_inputs=[{"shape": [4, 8]}])
        assert caught.value.errors[0]["pointer"] == "/target/latency_batch_size"


def test_a_result_that_misses_by_a_little_is_followed_by_a_smaller_one(dense, tmp_path):
    search = SizeSearch(start(*job(dense, tmp_path, {"params": 0.5})))
    search.look()
    first = search.chosen
    goal = Goal(status="met", target={"params": 0.5}, reached={"params": 0.5}, amount=first.amount, sentence="")
    assert not search.goes_on(goal)
    assert search.goes_on(goal.model_copy(update={"reached": {"params": 0.501}}))
    search.look()
    assert first.amount < search.chosen.amount < first.amount + 0.05


def test_round_to_keeps_multiples_of_channels(dense, tmp_path):
    spec, work = job(dense, tmp_path, None, amount=0.5, round_to=8)
    report = BY_SPEC[PruneSpec].load_method()(spec, work)
    kept = {layer.name: layer.shape_after[0] for layer in report.layers}
    assert kept == {"fc1": 16, "fc2": 8, "fc3": 3}
    with pytest.raises(NothingToPrune, match="keeps a multiple of 64"):
        run(dense, tmp_path, {"params": 0.5}, round_to=64)


@pytest.mark.parametrize("target", [{"params": 0.3}, {"max_accuracy_drop": 0.05}])
def test_a_killed_search_goes_on_and_comes_to_the_same_bytes(dense, blobs, tmp_path, target):
    observer = Kept()
    whole = run(dense, tmp_path / "whole", target, dataset=blobs, observer=observer)
    for die_at in (1, 2) if "params" in target else (1, 7):
        killed = Kept(die_at=die_at)
        with pytest.raises(Kept.Killed):
            run(dense, tmp_path / "killed", target, dataset=blobs, observer=killed)
        resumed = Kept(resume=killed.checkpoints[-1])
        report = run(dense, tmp_path / f"resumed{die_at}", target, dataset=blobs, observer=resumed)
        assert report.reproduce.outputs == whole.reproduce.outputs
        assert report.goal == whole.goal
        assert [point.amount for point in report.frontier] == [point.amount for point in whole.frontier]
        assert resumed.fractions == sorted(resumed.fractions)
        assert len(resumed.checkpoints) == len(observer.checkpoints) - die_at  # nothing is trained twice
