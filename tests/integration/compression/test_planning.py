"""A plan says what the job then does: the same shapes, counts and bytes, and where it can't know, that it can't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pared.compression.work import DatasetFile, ModelFile, Work
from pared.errors import NothingToPrune, ValidationError
from pared.job_types import BY_SPEC
from pared.reports import Plan, Report
from pared.specs import PruneSpec
from tests.support.campaign import in_every_run
from tests.support.models import zoo
from tests.support.plans import assert_kept, plan_of

MODEL, DATA = "mdl_" + "0" * 26, "dst_" + "0" * 26
RETRAIN = {"epochs": 1, "lr": 0.05}


def planned_and_done(
    folder: Path, family: str, form: zoo.Form, *, data: bool = True, **fields: Any
) -> tuple[Plan, Report, dict[str, int]]:
    """The plan of a job, its report, and the bytes of each file that it wrote."""
    (folder / "model").write_bytes(zoo.upload(family, form))
    (folder / "data.npz").write_bytes(zoo.dataset(family))
    given = {"type": "prune", "model": MODEL, "task": zoo.FAMILIES[family].task}
    given |= {} if "target" in fields else {"amount": 0.5}
    given |= {"dataset": DATA, "retrain": RETRAIN} if data else {}
    job = PruneSpec.model_validate(given | fields)
    architecture = zoo.architecture(family) if form == "state_dict" else None
    files = {"model": ModelFile(folder / "model", "model", "", architecture)}
    out = folder / "out"
    out.mkdir()
    work = Work(files, DatasetFile(folder / "data.npz", "data.npz") if data else None, out, timed=False)
    plan = plan_of(job, work)
    assert list(out.iterdir()) == []
    report = BY_SPEC[PruneSpec].load_method()(job, work)
    assert isinstance(report, Report)
    beside = {"report.json", "frontier.csv"}
    written = {path.name: path.stat().st_size for path in out.iterdir() if path.name not in beside}
    return plan, report, written


ALL = ["torchscript", "state_dict", "onnx"]


CASES: dict[str, tuple[str, zoo.Form, dict[str, Any]]] = {
    "channels": ("plain_cnn", "scripted", {"outputs": ALL}),
    "taylor": ("resnet", "traced", {"scope": "global", "criterion": "taylor", "amount": 0.3}),
    "state-dict": ("mlp", "state_dict", {"outputs": [*ALL, "exported_program"], "criterion": "random", "seed": 3}),
    "program": ("signal_cnn", "program", {"outputs": ["exported_program", "torchscript"]}),
    "steps": ("plain_cnn", "scripted", {"schedule": "iterative", "steps": 3, "amounts": {"*1*": 0.25}}),
    "weights": ("mlp", "scripted", {"granularity": "weight", "amount": 0.9, "outputs": ["torchscript", "onnx"]}),
    "ramp": ("mlp", "scripted", {"granularity": "weight", "scope": "layer", "schedule": "cubic", "regrow": 0.2}),
    "n-m": ("mlp", "scripted", {"granularity": "n:m", "criterion": "activation"}),
    "blocks": ("plain_cnn", "scripted", {"granularity": "block", "block": (2, 3)}),
    "heads": ("text_transformer", "scripted", {"granularity": "head"}),
    "residual-blocks": ("resnet", "scripted", {"granularity": "residual_block"}),
    "target": ("plain_cnn", "traced", {"target": {"macs": 0.4, "params": 0.5}, "scope": "global", "round_to": 2}),
    "target-bytes": ("mlp", "program", {"target": {"file_bytes": 0.7}, "outputs": ["torchscript", "exported_program"]}),
    "target-infeasible": ("mlp", "state_dict", {"target": {"params": 0.0001}, "retrain": RETRAIN | {"teach": True}}),
    "target-weights": ("mlp", "scripted", {"target": {"params": 0.1}, "granularity": "weight"}),
}
IN_EVERY_RUN = {
    *("channels", "state-dict", "steps", "weights", "ramp", "blocks", "residual-blocks"),
    *("target", "target-infeasible", "target-weights"),
}


@pytest.mark.parametrize("case", in_every_run(CASES, IN_EVERY_RUN))
def test_the_job_does_what_was_planned(tmp_path: Path, case: str) -> None:
    family, form, fields = CASES[case]
    plan, report, written = planned_and_done(tmp_path, family, form, **fields)
    assert plan.exact
    assert plan.notes == []
    assert all(file.exact for file in plan.files.values())
    assert_kept(plan, report, written)
    assert any(layer.shape_after != layer.shape_before or layer.zeroed_weights for layer in plan.layers)
    assert plan.warnings == [warning for warning in report.warnings if warning in plan.warnings]


def test_channels_of_all_layers_that_are_chosen_after_retraining_are_not_promised(tmp_path: Path) -> None:
    plan, report, _ = planned_and_done(tmp_path, "plain_cnn", "scripted", scope="global", schedule="iterative", steps=3)
    assert not plan.exact
    assert not any(file.exact for file in plan.files.values())
    assert "In one step all of it is exact" in plan.notes[0]
    assert plan.after.parameters == pytest.approx(report.after.parameters, rel=0.3)


def test_weights_that_are_chosen_while_training_keep_every_size(tmp_path: Path) -> None:
    plan, report, written = planned_and_done(
        tmp_path, "mlp", "scripted", granularity="weight", amount=0.9, schedule="iterative", steps=3
    )
    assert not plan.exact
    assert plan.files["model.pt"].exact
    assert plan.files["model.pt"].size_bytes == written["model.pt"]
    assert plan.after.parameters == report.after.parameters
    zeros = sum(layer.zeroed_weights for layer in plan.layers)
    assert zeros == report.after.parameters - report.after.nonzero_parameters


def test_a_packed_file_is_about_so_large_where_its_weights_still_change(tmp_path: Path) -> None:
    fields = {"granularity": "weight", "amount": 0.9, "outputs": ["packed"], "quantize": {"bits": 4}}
    plan, report, _ = planned_and_done(tmp_path, "mlp", "scripted", **fields)
    assert plan.exact
    assert not plan.files["model.packed"].exact
    assert "model.packed" in plan.notes[0]
    assert plan.after.file_bytes == pytest.approx(report.after.file_bytes, rel=0.2)


def test_an_amount_for_packed_bytes_is_about_right_where_the_weights_still_change(tmp_path: Path) -> None:
    fields = {"granularity": "weight", "target": {"file_bytes": 0.3}, "outputs": ["packed"]}
    plan, report, _ = planned_and_done(tmp_path, "mlp", "scripted", **fields)
    assert not plan.exact
    assert "goes on with less" in plan.notes[1]
    assert report.goal is not None
    assert plan.amount == pytest.approx(report.goal.amount, rel=0.1)


def test_without_retraining_all_of_it_is_exact(tmp_path: Path) -> None:
    fields = {"granularity": "channel", "scope": "global", "schedule": "iterative", "steps": 2}
    outputs = ["packed", "torchscript"]
    for place, choice in (("a", {}), ("b", {"target": {"params": 0.5}})):
        (tmp_path / place).mkdir()
        plan, report, written = planned_and_done(
            tmp_path / place, "plain_cnn", "scripted", data=False, outputs=outputs, **fields, **choice
        )
        assert plan.exact
        assert plan.files["model.packed"].exact
        assert_kept(plan, report, written)


def test_what_the_job_would_fail_with_the_plan_fails_with(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="matches no layer"):
        planned_and_done(tmp_path, "mlp", "scripted", include=["conv*"])
    (tmp_path / "out").rmdir()
    with pytest.raises(NothingToPrune, match="less than one channel"):
        planned_and_done(tmp_path, "mlp", "scripted", amount=0.001)
