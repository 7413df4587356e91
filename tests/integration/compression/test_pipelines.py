"""Pipelines in this process: what steps hand on, what stays the reference, and where a killed one goes on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from pared.client import Plan as PrintedPlan
from pared.client import Report as PrintedReport
from pared.compression import SilentObserver, pipeline
from pared.compression.architectures import build
from pared.compression.jobs.pipeline import pipeline as run_pipeline
from pared.compression.loading import load_model
from pared.compression.work import DatasetFile, ModelFile, Work
from pared.errors import NothingToPrune, ParedError, ShapeMismatch
from pared.job_types import listed_spec
from pared.reports import Report
from pared.specs import PipelineSpec
from tests.support.models import zoo
from tests.support.observers import Kept
from tests.support.plans import plan_of

MODEL, DATA = "mdl_" + "0" * 26, "dst_" + "0" * 26
PRUNE = {"prune": {"amount": 0.5, "retrain": {"epochs": 1}}}
DISTILL = {"distill": {"train": {"epochs": 1}}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFile, DatasetFile]:
    folder = tmp_path_factory.mktemp("files")
    model, data = folder / "resnet.pt", folder / "images.npz"
    model.write_bytes(zoo.upload("resnet", "scripted"))
    x, y = zoo.images(3, 8)(400, 0)
    data.write_bytes(zoo.npz(x, y))
    return ModelFile(model, model.name, hashlib.sha256(model.read_bytes()).hexdigest()), DatasetFile(data, data.name)


def spec_of(*steps: Any, **fields: Any) -> PipelineSpec:
    document = {"type": "pipeline", "model": MODEL, "dataset": DATA, "steps": list(steps)} | fields
    spec = listed_spec.validate_python(document)
    assert isinstance(spec, PipelineSpec)
    return spec


def work_of(files: tuple[ModelFile, DatasetFile], folder: Path, observer: Any = None) -> Work:
    folder.mkdir(exist_ok=True)
    # Latency is another test's, and takes seconds.
    return Work({"model": files[0]}, files[1], folder, observer or SilentObserver(), timed=False)


def run(files: tuple[ModelFile, DatasetFile], folder: Path, *steps: Any, observer: Any = None, **fields: Any) -> Report:
    return run_pipeline(spec_of(*steps, **fields), work_of(files, folder, observer))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(files: tuple[ModelFile, DatasetFile], tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path, Kept]:
    """Pruned as far as a goal of the whole takes it, then taught."""
    folder, observer = tmp_path_factory.mktemp("whole"), Kept()
    steps = {"prune": {"retrain": {"epochs": 1}}}, DISTILL
    report = run(files, folder, *steps, target={"file_bytes": 0.55, "max_quality_drop": 0.99}, observer=observer)
    return report, folder, observer


def test_each_step_goes_on_with_the_result_of_the_one_before(whole: tuple[Report, Path, Kept]) -> None:
    report, folder, observer = whole
    assert set(contents(folder)) == {
        *("1-prune.model.pt", "1-prune.report.json", "1-prune.frontier.csv"),
        *("2-distill.report.json", "model.pt", "report.json"),
    }
    assert [row.type for row in report.steps] == ["prune", "distill"]
    assert [row.artifact for row in report.steps] == ["1-prune.model.pt", "model.pt"]
    first, last = (load_model(ModelFile(folder / row.artifact, "", "")).module for row in report.steps if row.artifact)
    shapes = [{name: weight.shape for name, weight in module.named_parameters()} for module in (first, last)]
    assert shapes[0] == shapes[1]
    assert any(not torch.equal(*pair) for pair in zip(first.parameters(), last.parameters(), strict=True))
    assert report.after.parameters == sum(weight.numel() for weight in last.parameters()) < report.before.parameters
    assert report.after.file_bytes == (folder / "model.pt").stat().st_size
    own = Report.model_validate_json((folder / "2-distill.report.json").read_text())
    assert (own.before.file_bytes, own.before.quality) == (report.before.file_bytes, report.before.quality)
    assert report.steps[1].quality == report.after.quality
    assert [record.phase for record in report.history] == ["1-prune: retrain", "2-distill: distill"]
    assert observer.phases == [record.phase for record in report.history]
    assert observer.fractions == sorted(observer.fractions)
    assert observer.fractions[-1] == 1.0
    assert [line for line in observer.lines if line.startswith("step ")] == [
        "step 1 of 2: prune",
        "step 2 of 2: distill",
    ]
    assert "1 prune" in str(PrintedReport.model_validate(report.model_dump()))


def test_the_amount_is_the_least_that_meets_the_target_of_the_whole(whole: tuple[Report, Path, Kept]) -> None:
    report, _, _ = whole
    assert report.goal is not None
    assert report.goal.status == "met", report.verdict
    assert 0.5 < report.goal.reached["file_bytes"] == report.after.file_bytes / report.before.file_bytes <= 0.55
    assert report.goal.amount is not None
    assert report.goal.amount in [point.amount for point in report.frontier]
    assert set(report.goal.reached) == {"file_bytes", "max_quality_drop"}
    assert report.verdict.startswith("Goal met: ")


def test_a_plan_has_the_sizes_of_the_result(
    files: tuple[ModelFile, DatasetFile], whole: tuple[Report, Path, Kept], tmp_path: Path
) -> None:
    report, folder, _ = whole
    spec = spec_of({"prune": {"retrain": {"epochs": 1}}}, DISTILL, target={"file_bytes": 0.55})
    plan = plan_of(spec, work_of(files, tmp_path / "plan"))
    assert plan.exact
    assert (plan.after.parameters, plan.after.macs, plan.after.file_bytes) == (
        *(report.after.parameters, report.after.macs, report.after.file_bytes),
    )
    assert {name: file.size_bytes for name, file in plan.files.items()} == {
        "model.pt": (folder / "model.pt").stat().st_size
    }
    assert [(row.type, row.parameters, row.file_bytes) for row in plan.steps] == [
        (row.type, row.parameters, row.file_bytes) for row in report.steps
    ]
    assert plan.goal is not None
    assert report.goal is not None
    assert (plan.goal.status, plan.amount) == ("met", report.goal.amount)
    assert "2 distill" in str(PrintedPlan.model_validate(plan.model_dump()))


def test_a_killed_pipeline_goes_on_in_its_step_and_epoch(
    files: tuple[ModelFile, DatasetFile], whole: tuple[Report, Path, Kept], tmp_path: Path
) -> None:
    report, folder, observer = whole
    steps = {"prune": {"retrain": {"epochs": 1}}}, DISTILL
    # Looked ahead, an epoch of retraining, the next step begun, an epoch of teaching.
    assert len(observer.checkpoints) == 4
    again = Kept(resume=observer.checkpoints[-1])
    resumed = run(
        files, tmp_path / "out", *steps, target={"file_bytes": 0.55, "max_quality_drop": 0.99}, observer=again
    )
    assert again.phases == []  # nothing is trained twice
    assert [line for line in again.lines if line.startswith("step ")] == ["step 2 of 2: distill"]
    assert (resumed.verdict, resumed.goal, resumed.steps[0]) == (report.verdict, report.goal, report.steps[0])
    kept = ("model.pt", "1-prune.model.pt", "1-prune.report.json", "1-prune.frontier.csv")
    assert {name: contents(tmp_path / "out")[name] for name in kept} == {name: contents(folder)[name] for name in kept}


def test_zeros_of_pruned_weights_stay_zero_in_later_steps(files: tuple[ModelFile, DatasetFile], tmp_path: Path) -> None:
    steps = {"prune": {"amount": 0.9, "granularity": "weight", "retrain": None}}, DISTILL
    report = run(files, tmp_path, *steps, outputs=["packed"])
    pruned, taught = report.steps
    assert taught.nonzero_parameters <= pruned.nonzero_parameters < 0.2 * report.before.parameters
    assert pruned.artifact == "1-prune.model.pt"
    assert (tmp_path / "model.packed").exists()


def test_a_later_prune_step_is_compared_with_the_upload_and_taught_by_it(
    files: tuple[ModelFile, DatasetFile], tmp_path: Path
) -> None:
    middle = {"distill": {"student": {"from_teacher": {"width": 0.75}}, "train": {"epochs": 1}}}
    report = run(files, tmp_path, middle, {"prune": {"target": {"params": 0.25}, "retrain": {"epochs": 1}}})
    own = Report.model_validate_json((tmp_path / "2-prune.report.json").read_text())
    assert own.before.parameters == report.before.parameters
    assert own.before.quality == report.before.quality
    assert own.goal is not None
    assert own.goal.reached["params"] == report.after.parameters / report.before.parameters <= 0.25
    assert report.comparison == own.comparison
    assert f"compared with: {files[0].filename}" in own.reproduce.inputs


def test_a_student_of_an_assistant_is_compared_with_the_upload(
    files: tuple[ModelFile, DatasetFile], tmp_path: Path
) -> None:
    half = {"student": {"from_teacher": {"width": 0.6}}, "train": {"epochs": 1}}
    report = run(files, tmp_path, {"distill": half}, {"distill": half | {"teacher": "previous"}}, outputs=["packed"])
    own = Report.model_validate_json((tmp_path / "2-distill.report.json").read_text())
    assert (
        own.before.parameters
        < report.before.parameters
        == sum(weight.numel() for weight in zoo.trained("resnet").parameters())
    )
    assert report.comparison is not None
    assert report.before.quality is not None
    assert report.after.quality is not None
    assert report.comparison.quality_difference.value == pytest.approx(
        report.after.quality.test.value - report.before.quality.test.value
    )
    assert not any("where the upload had" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("last", "error", "says"),
    [
        ({"distill": {"loss": {"kind": "knowledge", "features": [["a", "b"]]}}}, ParedError, "a"),
        ({"prune": {"amount": 0.5, "include": ["layer9*"]}}, ParedError, "layer9"),
        ({"prune": {"amount": 0.5, "include": ["fc"]}}, NothingToPrune, "fc"),
    ],
)
def test_what_a_later_step_refuses_is_refused_before_any_training(
    files: tuple[ModelFile, DatasetFile], tmp_path: Path, last: dict[str, Any], error: type[ParedError], says: str
) -> None:
    observer = Kept()
    with pytest.raises(error) as caught:
        run(files, tmp_path, PRUNE, last, observer=observer)
    assert observer.phases == observer.checkpoints == []
    assert caught.value.detail.startswith("Step 2 of 2, ")
    assert says in caught.value.detail
    name = next(iter(last))
    assert all(each["pointer"].startswith(f"/steps/1/{name}/") for each in caught.value.errors)


def test_a_student_with_other_outputs_is_refused_before_any_training(
    files: tuple[ModelFile, DatasetFile], tmp_path: Path
) -> None:
    layers = [["Flatten", {}], ["Linear", {"in_features": 192, "out_features": 5}]]
    observer = Kept()
    with pytest.raises(ShapeMismatch) as caught:
        run(files, tmp_path, {"distill": {"student": {"layers": layers}}}, PRUNE, observer=observer)
    assert caught.value.detail.startswith("Step 1 of 2, distill: ")
    assert observer.phases == []


def test_the_library_takes_modules_through_pipelines(tmp_path: Path) -> None:
    layers = [["Linear", {"in_features": 16, "out_features": 24}], ["ReLU", {}]]
    module = build({"layers": [*layers, ["Linear", {"in_features": 24, "out_features": 4}]]})
    x, y = zoo.tables(300, 0)
    result = pipeline(module, (x, y), steps=[PRUNE, DISTILL], directory=tmp_path)
    assert result.report.after.parameters == sum(weight.numel() for weight in result.model.parameters())
    assert result.report.after.parameters < result.report.before.parameters
    assert result.model(torch.from_numpy(x[:5])).shape == (5, 4)
    assert (tmp_path / "1-prune.model.safetensors").exists()
    assert (tmp_path / "1-prune.architecture.json").exists()
    with pytest.raises(ParedError, match="names an upload"):
        pipeline(module, (x, y), steps=[{"distill": {"student": MODEL}}])
    assert np.isfinite(result.report.after.quality.test.value if result.report.after.quality else np.nan)


def test_an_int8_file_that_only_its_runtime_opens_is_compared_with_the_upload() -> None:
    net = build(
        {
            "layers": [
                ["Linear", {"in_features": 8, "out_features": 32}],
                ["ReLU"],
                ["Linear", {"out_features": 3, "in_features": 32}],
            ]
        }
    )
    x, y = np.random.default_rng(0).normal(size=(300, 8)).astype("float32"), np.arange(300) % 3
    steps = [{"prune": {"amount": 0.25, "retrain": {"epochs": 1}}}, {"quantize": {"method": "static"}}]
    found = pipeline(net, (x, y), steps=steps, outputs=["onnx"])
    report = found.report
    assert report.comparison is not None
    assert report.before.quality.samples == report.after.quality.samples
    assert report.after.quality.test.value == report.steps[-1].quality.test.value
    assert report.before.parameters > report.after.parameters
    assert found.model(torch.from_numpy(x[:5])).shape == (5, 3)
    assert any("in ONNX Runtime" in text for text in report.warnings)


@pytest.mark.parametrize("last", [{"quantize": {"method": "dynamic"}}, {"prune": {"amount": 0.1}}, DISTILL])
def test_an_onnx_file_of_numbers_keeps_its_names_to_the_end(last: dict[str, Any], tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)).eval()
    names = {"input_names": ["features"], "output_names": ["price"], "dynamic_axes": {"features": {0: "rows"}}}
    torch.onnx.export(net, (torch.zeros(2, 8),), tmp_path / "net.onnx", dynamo=False, **names)
    x = np.random.default_rng(0).normal(size=(200, 8)).astype("float32")
    steps = [{"prune": {"amount": 0.25, "retrain": {"epochs": 1}}}, last]
    found = pipeline(tmp_path / "net.onnx", (x, x.sum(1, keepdims=True)), steps=steps, directory=tmp_path)
    assert found.report.task == "regression"
    assert found.report.comparison is not None
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [each.name for each in session.get_inputs()] == ["features"]
    assert [each.name for each in session.get_outputs()] == ["price"]
