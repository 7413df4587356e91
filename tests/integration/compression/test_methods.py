"""The methods from file to report, on scikit-learn's handwritten digits."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pared.compression import distill as distill_model
from pared.compression import prune as prune_model
from pared.compression.architectures import build
from pared.compression.data import load_dataset
from pared.compression.export.writers import export
from pared.compression.loading import LoadedModel
from pared.compression.tasks.classification import Classification
from pared.compression.training.calibration import learn_labels
from pared.compression.training.loop import fit
from pared.compression.work import DatasetFile, ModelFile, SilentObserver, Work
from pared.errors import InvalidData, NothingToPrune, ValidationError
from pared.job_types import BY_SPEC, JOB_TYPES, listed_spec
from pared.reports import DatasetInspection, ModelInspection, Report
from pared.specs import DistillSpec, InspectSpec, TeachTrain, Train
from pared.weights.packed import read
from pared.weights.unpack import unpack
from tests.support.campaign import each_nth
from tests.support.clean_process import CleanProcess

MODEL = "mdl_" + "0" * 26
OTHER = "mdl_" + "1" * 26
DIGITS = DatasetFile(None, "builtin:digits")
LEARN = learn_labels(Classification())


class Digits(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.fc = nn.Linear(2 * width * 4, 10)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))


LAYERS = [
    ["Flatten", {}, "flat"],
    ["Linear", {"in_features": 64, "out_features": 64}, "fc1"],
    ["ReLU", {}, "act"],
    ["Linear", {"in_features": 64, "out_features": 10}, "fc2"],
]


def taught(module):
    data = load_dataset(DIGITS, task="classification", preprocess=None, seed=0)
    fit(module, data, Train(epochs=4, lr=0.05), LEARN, task=Classification(), seed=0, phase="dense")
    return module


def file_of(path, architecture=None):
    return ModelFile(path, path.name, hashlib.sha256(path.read_bytes()).hexdigest(), architecture)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dense") / "digits.pt"
    torch.jit.save(torch.jit.script(taught(Digits())), path)
    return file_of(path)


@pytest.fixture(scope="module")
def layered(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("layered") / "mlp.pt"
    torch.save(taught(build({"layers": LAYERS})).state_dict(), path)
    return file_of(path, {"layers": LAYERS})


class Kept(SilentObserver):
    """Keeps what it hears; `die_at` ends the process's work after so many checkpoints, as a kill would."""

    class Killed(Exception):
        pass

    def __init__(self, resume=None, die_at=None):
        self.stages, self.fractions, self.metrics, self.checkpoints = [], [], [], []
        self._resume, self._die_at = resume, die_at

    def stage(self, name):
        self.stages.append(name)

    def progress(self, fraction, *, epoch=None, epochs=None):
        self.fractions.append(fraction)

    def metric(self, name, value, *, step, phase):
        self.metrics.append((phase, name, step))

    def checkpoint(self, state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.checkpoints.append(buffer.getvalue())
        if len(self.checkpoints) == self._die_at:
            raise self.Killed

    def resume(self):
        return None if self._resume is None else torch.load(io.BytesIO(self._resume), weights_only=True)


def run(spec, models, directory, *, dataset=DIGITS, observer=None, timed=False):
    directory.mkdir(exist_ok=True)
    spec = listed_spec.validate_python(spec)
    work = Work(models, dataset, directory, observer or SilentObserver(), timed=timed)
    return BY_SPEC[type(spec)].load_method()(spec, work)


def pruning(**fields):
    return {
        "type": "prune",
        "model": MODEL,
        "dataset": "builtin:digits",
        "amount": 0.5,
        "retrain": {"epochs": 2, "lr": 0.05},
    } | fields


def distilling(student, **fields):
    return {
        "type": "distill",
        "teacher": MODEL,
        "student": student,
        "dataset": "builtin:digits",
        "train": {"epochs": 2, "lr": 0.02},
    } | fields


@pytest.fixture(scope="module")
def in_a_clean_process(tmp_path_factory):
    """Loads a file with torch alone, and gives the output's shape and the number of weights."""
    process = CleanProcess(tmp_path_factory.mktemp("clean"))

    def loaded(path, *shape, dtype=torch.float32):
        answer = process.run(path.read_bytes(), x=torch.randn(shape).abs().to(dtype))
        return (*answer["shapes"]["x"], answer["parameters"])

    yield loaded
    process.process.kill()


def test_channel_pruning_makes_a_smaller_model_and_a_true_report(dense, tmp_path, in_a_clean_process):
    observer = Kept()
    report = run(pruning(amount=0.5), {"model": dense}, tmp_path, observer=observer, timed=True)
    assert isinstance(report, Report)
    assert report.after.parameters < report.before.parameters / 1.8
    assert report.after.file_bytes == (tmp_path / "model.pt").stat().st_size < report.before.file_bytes
    assert report.after.macs < report.before.macs
    assert report.before.quality.test.value > 0.9
    assert report.before_retraining.test.value < report.after.quality.test.value
    assert report.comparison.quality_difference.value == pytest.approx(
        report.after.quality.test.value - report.before.quality.test.value
    )
    assert in_a_clean_process(tmp_path / "model.pt", 7, 1, 8, 8) == (7, 10, report.after.parameters)
    assert report.reproduce.inputs == {"digits.pt": dense.sha256}
    assert report.reproduce.outputs == {"model.pt": hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()}
    assert "fewer parameters" in report.verdict
    assert "of test accuracy (95 % CI" in report.verdict
    layers = {layer.name: layer for layer in report.layers}
    gone = layers["conv1"].removed_units
    assert layers["conv1"].shape_after[0] == 16 - len(gone)
    assert report.removed["conv2.weight"]["1"] == gone
    assert layers["fc"].reason
    assert layers["fc"].shape_after[0] == 10
    assert Report.model_validate_json((tmp_path / "report.json").read_text()).verdict == report.verdict

    assert observer.stages == ["validate", "baseline", "compress", "retrain", "evaluate", "export"]
    assert observer.fractions == sorted(observer.fractions)
    assert observer.fractions[-1] == 1.0
    assert ("retrain", "validation_accuracy", 2) in observer.metrics
    assert len(observer.checkpoints) == 2
    assert set(report.seconds) == set(observer.stages)


def test_weight_pruning_says_that_zeros_save_nothing(dense, tmp_path):
    report = run(
        pruning(granularity="weight", amount=0.8, outputs=["torchscript", "state_dict"]), {"model": dense}, tmp_path
    )
    module = torch.jit.load(tmp_path / "model.pt")
    weights = [p for p in module.parameters() if p.dim() >= 2]
    zeros, total = (sum(f(w) for w in weights) for f in (lambda w: int((w == 0).sum()), torch.numel))
    assert zeros == round(0.8 * total)
    assert report.after.parameters == report.before.parameters
    assert report.after.nonzero_parameters == report.before.nonzero_parameters - zeros
    assert report.after.compressed_bytes < 0.6 * report.before.compressed_bytes
    assert any(
        warning.startswith("Zeros make this dense file neither smaller nor faster") for warning in report.warnings
    )
    assert "of all parameters are zero, file no smaller" in report.verdict
    assert set(report.reproduce.outputs) == {"model.pt", "model.safetensors"}


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_iterative_pruning_reaches_the_same_amount(dense, tmp_path, granularity):
    report = run(
        pruning(granularity=granularity, amount=0.5, schedule="iterative", steps=3, retrain={"epochs": 1, "lr": 0.02}),
        {"model": dense},
        tmp_path,
    )
    assert [record.phase for record in report.history] == ["retrain 1", "retrain 2", "retrain 3"]
    if granularity == "weight":
        zeros = report.before.nonzero_parameters - report.after.nonzero_parameters
        assert zeros == round(0.5 * (16 * 9 + 32 * 16 * 9 + 128 * 10))
        return
    removed = {layer.name: layer.removed_units for layer in report.layers}
    assert len(removed["conv1"]) + len(removed["conv2"]) == 24
    # In the upload's numbering, so that it can be looked up there.
    upload, result = torch.jit.load(dense.path), torch.jit.load(tmp_path / "model.pt")
    for layer, size in (("conv1", 16), ("conv2", 32)):
        kept = sorted(set(range(size)) - set(removed[layer]))
        assert len(getattr(result, layer).bias) == len(kept)
        assert getattr(upload, layer).bias[kept].shape == getattr(result, layer).bias.shape


def test_a_report_tells_where_the_outcome_is_not_what_was_asked_for(dense, tmp_path):
    with pytest.raises(ValidationError, match=r"'conv9' matches no layer. The layers are: conv1, bn1|conv1, conv2"):
        run(pruning(amount=0.98, exclude=["conv9"], retrain=None), {"model": dense}, tmp_path)
    report = run(pruning(amount=0.98, retrain=None), {"model": dense}, tmp_path)
    assert any(w.startswith("46 of 48 removable channels went") and "asks for 47" in w for w in report.warnings)
    assert not any("Little is left" in warning for warning in report.warnings), "it is what was asked for"
    report = run(pruning(amount=0.6, scope="global", exclude=["conv1"], retrain=None), {"model": dense}, tmp_path)
    assert not any("Little is left" in warning for warning in report.warnings)
    report = run(pruning(amount=0.95, scope="global", retrain=None), {"model": dense}, tmp_path)
    assert any("Little is left of conv1 (1 of 16 channels)" in warning for warning in report.warnings)
    sparse = file_of(tmp_path / "model.pt")
    module = torch.jit.load(sparse.path)
    with torch.no_grad():
        module.fc.weight[1:] = 0
    module.save(sparse.path)
    again = run(
        pruning(amount=0.1, granularity="weight", retrain={"epochs": 1}), {"model": file_of(sparse.path)}, tmp_path
    )
    assert any("zero in the upload already" in warning for warning in again.warnings)


class Rows(nn.Module):
    """Reads an image row by row; nearly all weights are those of its memory, whose units are summed up in order."""

    def __init__(self):
        super().__init__()
        self.memory, self.fc1, self.fc2 = nn.LSTM(8, 48, batch_first=True), nn.Linear(48, 12), nn.Linear(12, 10)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(torch.cumsum(self.memory(x.squeeze(1))[0][:, -1], 1))))


@pytest.fixture
def rows(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "rows.pt"
    torch.jit.save(torch.jit.script(Rows().eval()), path)
    return file_of(path)


def test_a_report_says_why_many_channels_held_few_parameters(rows, tmp_path):
    report = run(pruning(retrain=None), {"model": rows}, tmp_path)
    layers = {layer.name: layer for layer in report.layers}
    assert layers["fc1"].shape_after == [6, 48]
    assert "torch.cumsum" in layers["memory.weight_hh_l0"].reason
    share = 100 * (48 * 12 + 12 * 10) / report.before.parameters
    (warning,) = [w for w in report.warnings if "the model shrank little" in w]
    assert f"hold only {share:.1f} % of the parameters" in warning
    assert "memory.weight_hh_l0 (torch.cumsum: mixes the channels" in warning


def test_weights_of_recurrent_layers_are_zeroed_and_stay_zero(rows, tmp_path):
    report = run(pruning(granularity="weight", amount=0.8, retrain={"epochs": 1}), {"model": rows}, tmp_path)
    sparsity = {layer.name: layer.sparsity for layer in report.layers}
    assert sparsity["memory.weight_hh_l0"] > 0.7
    assert not any("the model shrank little" in warning for warning in report.warnings)


def test_a_training_that_came_to_nothing_is_told(layered, tmp_path):
    harmful = {"epochs": 1, "optimizer": "adam", "lr": 1.0}
    report = run(pruning(amount=0.1, retrain=harmful), {"model": layered}, tmp_path)
    assert report.best_epoch == 0
    assert any(w.startswith("The retraining did not help") for w in report.warnings)
    stepwise = pruning(amount=0.1, retrain=harmful, schedule="iterative", steps=2)
    report = run(stepwise, {"model": layered}, tmp_path)
    assert any(w.startswith("The retraining after the last step did not help") for w in report.warnings)
    report = run(distilling(OTHER, train=harmful), {"teacher": layered, "student": layered}, tmp_path)
    assert any(w.startswith("The distillation did not help") for w in report.warnings)
    report = run(pruning(amount=0.5), {"model": layered}, tmp_path)
    assert report.best_epoch
    assert not any("did not help" in w for w in report.warnings)


def test_a_test_split_that_the_model_may_have_been_trained_on_is_told(layered, tmp_path):
    def told(dataset):
        report = run(pruning(retrain=None), {"model": layered}, tmp_path, dataset=dataset)
        spec = distilling({"layers": LAYERS}, train={"epochs": 1})
        taught = run(spec, {"teacher": layered}, tmp_path, dataset=dataset)
        return [[w for w in each.warnings if "drawn by seed" in w] for each in (report, taught)]

    for (warning,) in told(DIGITS):
        assert "its accuracy before is too high" in warning
        assert "x_test and y_test" in warning
    x, y = np.random.default_rng(0).normal(size=(60, 64)).astype(np.float32), np.arange(60) % 10
    np.savez(tmp_path / "own.npz", x=x, y=y, x_test=x, y_test=y)
    assert told(DatasetFile(tmp_path / "own.npz", "own.npz")) == [[], []]


def test_inputs_that_the_spec_describes_wrongly_are_pointed_at(dense, tmp_path):
    spec = pruning(dataset=None, retrain=None, example_inputs=[{"shape": [2, 3, 8, 8]}], granularity="weight")
    with pytest.raises(ValidationError, match=r"\[2, 3, 8, 8\]") as caught:
        run(spec, {"model": dense}, tmp_path, dataset=None)
    assert caught.value.errors[0]["pointer"] == "/example_inputs"


def test_without_data_there_is_no_accuracy_and_no_retraining(dense, tmp_path):
    report = run(pruning(dataset=None, retrain=None), {"model": dense}, tmp_path, dataset=None)
    assert report.after.quality is None
    assert report.comparison is None
    assert report.history == []
    assert "quality was not measured" in report.verdict
    assert report.after.parameters < report.before.parameters


def test_a_model_whose_inputs_cannot_be_guessed_asks_for_them(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(35, 16)
            self.fc2 = nn.Linear(16, 3)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x.reshape(x.shape[0], 5, 7).flatten(1)[:, :35].repeat(1, 1)[:, :35])))

    path = tmp_path / "odd.pt"
    torch.jit.save(torch.jit.script(Odd()), path)
    given = [{"shape": [1, 5, 7]}]
    report = run(
        pruning(dataset=None, retrain=None, example_inputs=given),
        {"model": file_of(path)},
        tmp_path / "out",
        dataset=None,
    )
    assert report.after.parameters < report.before.parameters


def test_no_retraining_when_none_is_asked_for(dense, tmp_path):
    report = run(pruning(retrain=None), {"model": dense}, tmp_path)
    assert report.history == []
    assert report.after.quality is not None


def test_nothing_to_prune_names_the_layers(dense, tmp_path):
    with pytest.raises(NothingToPrune, match="conv1"):
        run(pruning(include=["fc"]), {"model": dense}, tmp_path)


READER = [
    ["Reshape", {"shape": [8, 8]}],
    ["Linear", {"in_features": 8, "out_features": 16}, "rows"],
    ["TransformerEncoderLayer", {"d_model": 16, "nhead": 4, "dim_feedforward": 24}, "encoder"],
    ["Mean", {"dim": 1}],
    ["Linear", {"in_features": 16, "out_features": 10}, "fc"],
]


@pytest.mark.parametrize("form", each_nth(["state_dict", "torchscript"], 2))
def test_whole_heads_go_and_the_files_run(tmp_path, form, in_a_clean_process):
    torch.manual_seed(0)
    module = build({"layers": READER}).eval()
    if form == "torchscript":
        torch.jit.save(torch.jit.script(module), tmp_path / "reader.pt")
        given = file_of(tmp_path / "reader.pt")
    else:
        torch.save(module.state_dict(), tmp_path / "reader.pt")
        given = file_of(tmp_path / "reader.pt", {"layers": READER})
    spec = pruning(granularity="head", schedule="iterative", steps=2, retrain={"epochs": 1, "lr": 0.02})
    spec["outputs"] = ["torchscript", "state_dict"]
    report = run(spec, {"model": given}, tmp_path / "first")
    heads = set(report.removed["encoder.self_attn.out_proj.weight"]["1"])
    assert len(heads) == 8
    assert all({4 * (index // 4) + place for place in range(4)} <= heads for index in heads), "whole ones of width 4"
    weights, work = 2 * 4 * (3 * 16 + 3 + 16), report.before.macs - report.after.macs
    assert report.before.parameters - report.after.parameters == weights
    assert work > 0
    assert "fewer parameters" in report.verdict
    small = torch.jit.load(tmp_path / "first" / "model.pt")
    assert small.encoder.self_attn.in_proj_weight.shape == (24, 16)
    assert in_a_clean_process(tmp_path / "first" / "model.pt", 1, 1, 8, 8)[:2] == (1, 10)
    if form == "state_dict":
        architecture = json.loads((tmp_path / "first" / "architecture.json").read_text())
        twin = build(architecture)
        twin.load_state_dict(load_file(tmp_path / "first" / "model.safetensors"))
        x = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(twin.eval()(x), small(x))
        assert architecture["layers"][2][1]["nhead"] == 2
    again = run(spec, {"model": given}, tmp_path / "second").reproduce.outputs
    # TorchScript numbers the classes it compiles, and here two jobs share one process.
    same = again.keys() - ({"model.pt"} if form == "state_dict" else set())
    assert {name: again[name] for name in same} == {name: report.reproduce.outputs[name] for name in same}


def test_a_torchscript_file_needs_nothing_but_torch(tmp_path, in_a_clean_process):
    module = build({"name": "text_transformer", "kwargs": {"vocabulary": 20, "features": 8, "heads": 2}}).eval()
    loaded = LoadedModel(module, "state_dict", "state_dict", module.architecture)
    export(loaded, (torch.zeros(2, 6, dtype=torch.int64),), ["torchscript"], tmp_path)
    assert in_a_clean_process(tmp_path / "model.pt", 7, 5, dtype=torch.int64)[:2] == (7, 2)


def test_a_model_without_attention_has_no_heads_to_lose(dense, tmp_path):
    with pytest.raises(NothingToPrune, match=r"No attention of this model can lose heads \(.*`channel`"):
        run(pruning(granularity="head"), {"model": dense}, tmp_path)


@pytest.mark.parametrize("granularity", each_nth(["block", "weight", "n:m", "channel"], 2))
def test_the_same_spec_gives_the_same_bytes(dense, tmp_path, granularity):
    spec = pruning(granularity=granularity, outputs=["torchscript", "state_dict"], seed=3, exclude=["conv1"])
    digests = []
    for name in ("first", "second"):
        torch.rand(3)  # whatever the process did before
        digests.append(run(spec, {"model": dense}, tmp_path / name).reproduce.outputs)
    assert digests[0] == digests[1]
    assert digests[0] != run(spec | {"seed": 4}, {"model": dense}, tmp_path / "other").reproduce.outputs


def interrupted(spec, models, directory, die_at):
    """Artifact digests of a job that dies after each of its first checkpoints in turn, and is resumed each time."""
    last = None
    for _ in range(die_at):
        observer = Kept(resume=last, die_at=1)
        with pytest.raises(Kept.Killed):
            run(spec, models, directory, observer=observer)
        last = observer.checkpoints[-1]
    return run(spec, models, directory, observer=Kept(resume=last))


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_an_interrupted_pruning_ends_as_an_uninterrupted_one(dense, tmp_path, granularity):
    spec = pruning(
        granularity=granularity, schedule="iterative", steps=2, retrain={"epochs": 2, "lr": 0.05, "optimizer": "sgd"}
    )
    whole = run(spec, {"model": dense}, tmp_path / "whole")
    pieces = interrupted(spec, {"model": dense}, tmp_path / "pieces", 3)
    assert pieces.reproduce.outputs == whole.reproduce.outputs
    assert pieces.removed == whole.removed
    assert pieces.layers == whole.layers
    assert [(r.phase, r.epoch, r.train_loss) for r in pieces.history] == [
        (r.phase, r.epoch, r.train_loss) for r in whole.history
    ]
    assert pieces.after.quality == whole.after.quality


def test_distillation_into_a_narrower_teacher(dense, tmp_path, in_a_clean_process):
    before = dense.path.read_bytes()
    report = run(distilling({"from_teacher": {"width": 0.5}}), {"teacher": dense}, tmp_path)
    assert report.type == "distill"
    assert report.after.parameters < report.before.parameters / 1.8
    assert {layer.name: layer.shape_after[0] for layer in report.layers} == {"conv1": 8, "conv2": 16, "fc": 10}
    assert dense.path.read_bytes() == before
    assert in_a_clean_process(tmp_path / "model.pt", 1, 1, 8, 8)[:2] == (1, 10)


def test_distillation_into_an_architecture_beside_labels_alone(dense, tmp_path):
    spec = distilling({"layers": LAYERS}, compare_with_labels_only=True, outputs=["state_dict", "torchscript"])
    observer = Kept()
    report = run(spec, {"teacher": dense}, tmp_path, observer=observer)
    assert {record.phase for record in report.history} == {"distill", "labels only"}
    assert report.labels_only.samples == report.after.quality.samples
    assert "labels alone" in report.verdict
    assert json.loads((tmp_path / "architecture.json").read_text())["layers"]
    assert observer.fractions == sorted(observer.fractions)


def test_an_interrupted_distillation_ends_as_an_uninterrupted_one(dense, layered, tmp_path):
    # As safetensors: TorchScript numbers the classes it compiles, and here two jobs share one process.
    spec = distilling(OTHER, compare_with_labels_only=True, outputs=["state_dict"])
    models = {"teacher": dense, "student": layered}
    whole = run(spec, models, tmp_path / "whole")
    pieces = interrupted(spec, models, tmp_path / "pieces", 3)
    assert pieces.reproduce.outputs == whole.reproduce.outputs
    assert pieces.labels_only == whole.labels_only
    assert pieces.verdict.partition(" — ")[2] == whole.verdict.partition(" — ")[2]
    assert set(whole.reproduce.inputs) == {"teacher: digits.pt", "student: mlp.pt"}


def test_a_report_has_the_epochs_that_nobody_named(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(TeachTrain, "usual_epochs", (1, 2))
    report = run(distilling({"layers": LAYERS}, train={}), {"teacher": dense}, tmp_path)
    assert report.reproduce.spec["train"]["epochs"] == len(report.history) == 2


def test_features_of_named_layers_are_distilled_from_file_to_file(dense, layered, tmp_path):
    loss = {"kind": "knowledge", "alpha": 0.5, "features": [["conv2", "fc1"]]}
    report = run(distilling(OTHER, loss=loss), {"teacher": dense, "student": layered}, tmp_path)
    assert report.after.quality.test.value > 0.8
    loss["features"] = [["convv2", "fc1"]]
    with pytest.raises(ValidationError, match=r"no layer 'convv2'.*conv1"):
        run(distilling(OTHER, loss=loss), {"teacher": dense, "student": layered}, tmp_path)


def test_a_student_with_too_few_outputs_is_refused(dense, tmp_path):
    short = [*LAYERS[:-1], ["Linear", {"in_features": 64, "out_features": 9}, "fc2"]]
    with pytest.raises(InvalidData, match="9 outputs"):
        run(distilling({"layers": short}), {"teacher": dense}, tmp_path)


def test_softened_classes_make_no_sense_for_numbers():
    with pytest.raises(ValueError, match="regression does not have"):
        listed_spec.validate_python(distilling(OTHER, task="regression", loss={"kind": "knowledge"}))
    spec = distilling(OTHER, task="regression", loss={"kind": "output_mse"})
    assert isinstance(listed_spec.validate_python(spec), DistillSpec)


def test_inspections(dense, tmp_path):
    model = BY_SPEC[InspectSpec].load_method()(
        InspectSpec(type="inspect", subject=MODEL), Work({"subject": dense}, None, tmp_path, sandbox="standard")
    )
    assert isinstance(model, ModelInspection)
    assert model.sandbox == "standard"
    assert {layer.name: layer.prunable_channels for layer in model.layers}["conv1"]
    data = BY_SPEC[InspectSpec].load_method()(
        InspectSpec(type="inspect", subject="builtin:digits"), Work({}, DIGITS, tmp_path)
    )
    assert isinstance(data, DatasetInspection)
    assert sum(data.samples.values()) == 1797


def test_a_state_dict_comes_back_as_one_with_its_new_architecture(layered, tmp_path):
    report = run(pruning(outputs=["state_dict"]), {"model": layered}, tmp_path)
    architecture = json.loads((tmp_path / "architecture.json").read_text())
    assert architecture["layers"][1][1]["out_features"] == 32
    assert report.after.file_bytes == (tmp_path / "model.safetensors").stat().st_size


# -- as a library -------------------------------------------------------------------------------


def test_a_module_is_pruned_without_any_server_and_is_not_changed():
    torch.manual_seed(0)
    module = Digits()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    result = prune_model(module, "builtin:digits", amount=0.5, retrain={"epochs": 1})
    assert sum(p.numel() for p in result.model.parameters()) == result.report.after.parameters
    assert result.report.after.parameters < result.report.before.parameters
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)


def test_arrays_and_layered_modules_serve_as_well(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 64, generator=generator)
    y = x[:, :10].argmax(1)
    module = build({"layers": LAYERS})
    result = prune_model(module, (x, y), amount=0.25, retrain={"epochs": 1}, directory=tmp_path)
    assert result.model.architecture["layers"][1][1]["out_features"] == 48
    assert (tmp_path / "model.safetensors").exists()
    small = {"layers": [["Linear", {"in_features": 64, "out_features": 10}, "fc"]]}
    found = distill_model(module, small, (x.numpy(), y.numpy()), train={"epochs": 1})
    assert found.model.fc.weight.shape == (10, 64)


def test_samples_change_at_random_where_a_spec_asks_for_it():
    model = Digits(4)
    changes = {"crop": {"padding": 1}, "color_jitter": {}, "erasing": {"p": 0.2}, "cutmix": {"p": 0.5}, "mixup": {}}
    retrain = {"epochs": 1, "lr": 0.02, "augment": changes}
    results = []
    for augment in (changes, changes, None):
        again = prune_model(model, "builtin:digits", amount=0.5, retrain={**retrain, "augment": augment})
        results.append(again.report.history[-1].train_loss)
    assert results[0] == results[1] != results[2]
    student = {"from_teacher": {"width": 0.5}}
    how = {"train": {"epochs": 1, "augment": changes}, "loss": {"kind": "knowledge", "labels": 0.3}}
    taught_alone = distill_model(model, student, "builtin:digits", compare_with_labels_only=True, **how)
    assert [record.phase for record in taught_alone.report.history] == ["distill", "labels only"]
    taught_by_itself = prune_model(
        model, "builtin:digits", task="match", amount=0.5, retrain={**retrain, "teach": False}
    )
    assert taught_by_itself.report.history[0].train_loss < 3
    x = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    table = (x, np.arange(200) % 3)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValidationError, match=r"`horizontal_flip` changes images .* numbers \(N, 6\)") as caught:
        prune_model(net, table, amount=0.5, retrain={"augment": {"horizontal_flip": {}}})
    assert [error["pointer"] for error in caught.value.errors] == ["/retrain/augment/horizontal_flip"]


def test_data_that_is_no_pair_of_arrays_is_answered_with_what_to_do():
    x, y = torch.rand(60, 64), torch.arange(60) % 10
    with pytest.raises(ValidationError, match=r"TensorDataset.*two arrays"):
        prune_model(build({"layers": LAYERS}), torch.utils.data.TensorDataset(x, y), amount=0.5)
    half = x.bfloat16().requires_grad_()
    result = prune_model(build({"layers": LAYERS}), (half, y), amount=0.5, retrain=None)
    assert result.report.before.quality is not None


def test_a_bad_field_points_at_itself():
    with pytest.raises(ValidationError) as caught:
        prune_model(Digits(), "builtin:digits", amount=1.5)
    assert caught.value.errors[0]["pointer"] == "/amount"


@pytest.mark.parametrize("job_type", JOB_TYPES, ids=lambda each: each.name)
def test_each_type_of_job_has_its_method(job_type):
    assert job_type.load_method().__name__ == job_type.name


# -- schedules and patterns ---------------------------------------------------------------------


def zeros_in(path):
    """Name of each weight in a TorchScript file -> its tensor."""
    module = torch.jit.load(path)
    return {name: tensor for name, tensor in module.named_parameters() if tensor.dim() >= 2}


CUBIC = {
    "granularity": "weight",
    "amount": 0.9,
    "schedule": "cubic",
    "retrain": {"epochs": 6, "lr": 0.02, "lr_schedule": "cosine", "warmup": 0.02, "nesterov": True, "teach": True},
}


def test_weights_go_along_a_ramp_taught_by_the_model_as_it_came(dense, tmp_path):
    report = run(pruning(**CUBIC), {"model": dense}, tmp_path)
    weights = zeros_in(tmp_path / "model.pt")
    count = sum(weight.numel() for weight in weights.values())
    assert sum(int((weight == 0).sum()) for weight in weights.values()) == round(0.9 * count)
    assert report.best_epoch > 3, "the epochs before the end of the ramp have too many weights"
    assert report.after.quality.test.value > report.before.quality.test.value - 0.05
    assert report.reproduce.spec["retrain"]["teach"]["kind"] == "knowledge"


def test_stages_each_have_a_ramp_of_their_own(dense, tmp_path):
    spec = pruning(**CUBIC | {"stages": [0.5, 0.8], "regrow": 0.1, "retrain": {"epochs": 2, "lr": 0.05}})
    report = run(spec, {"model": dense}, tmp_path)
    assert [record.phase for record in report.history] == ["retrain 1"] * 2 + ["retrain 2"] * 2 + ["retrain 3"] * 2
    weights = zeros_in(tmp_path / "model.pt")
    count = sum(weight.numel() for weight in weights.values())
    assert sum(int((weight == 0).sum()) for weight in weights.values()) == round(0.9 * count)


def test_an_upload_that_was_pruned_before_goes_on_from_there(dense, tmp_path):
    spec = pruning(**CUBIC | {"amount": 0.8, "retrain": {"epochs": 2, "lr": 0.05}})
    run(spec, {"model": dense}, tmp_path / "once")
    run({**spec, "amount": 0.9}, {"model": file_of(tmp_path / "once" / "model.pt")}, tmp_path / "twice")
    before, after = (zeros_in(tmp_path / name / "model.pt") for name in ("once", "twice"))
    assert all(bool((after[name][weight == 0] == 0).all()) for name, weight in before.items())


def test_an_interrupted_ramp_ends_as_an_uninterrupted_one(dense, tmp_path):
    spec = pruning(**CUBIC | {"stages": [0.5], "regrow": 0.1, "retrain": CUBIC["retrain"] | {"epochs": 3}})
    run(spec, {"model": dense}, tmp_path / "whole")
    killed = Kept(die_at=4)
    with pytest.raises(Kept.Killed):
        run(spec, {"model": dense}, tmp_path / "killed", observer=killed)
    for epochs, state in [(1, killed.checkpoints[0]), (3, killed.checkpoints[2]), (4, killed.checkpoints[3])]:
        again = tmp_path / f"again-{epochs}"
        run(spec, {"model": dense}, again, observer=Kept(resume=state))
        assert (again / "model.pt").read_bytes() == (tmp_path / "whole" / "model.pt").read_bytes()


def test_two_of_four_hold_after_retraining(dense, tmp_path, in_a_clean_process):
    spec = pruning(
        granularity="n:m", exclude=["conv1"], retrain={"epochs": 2, "lr": 0.05, "weight_decay": 0.01, "nesterov": True}
    )
    del spec["amount"]
    report = run(spec, {"model": dense}, tmp_path)
    assert in_a_clean_process(tmp_path / "model.pt", 7, 1, 8, 8) == (7, 10, report.after.parameters)
    upload = zeros_in(dense.path)
    for name, weight in zeros_in(tmp_path / "model.pt").items():
        if name == "conv1.weight":
            continue
        before, after = (each.movedim(1, -1).reshape(-1, 4) for each in (upload[name], weight))
        kept = torch.zeros_like(before, dtype=torch.bool).scatter(1, before.abs().topk(2, dim=1).indices, True)
        assert torch.equal(after != 0, kept)
    assert report.reproduce.spec["amount"] == 0.5
    assert "Zeros make this dense file neither smaller nor faster" in " ".join(report.warnings)


def test_n_of_m_points_at_layers_whose_inputs_do_not_divide(dense, tmp_path):
    spec = pruning(granularity="n:m")
    del spec["amount"]
    with pytest.raises(NothingToPrune, match=r"not: conv1 \(1\). Exclude them"):
        run(spec, {"model": dense}, tmp_path)


@pytest.mark.parametrize("schedule", ["one_shot", "cubic"])
def test_blocks_hold_after_retraining(dense, tmp_path, schedule, in_a_clean_process):
    spec = pruning(granularity="block", block=[4, 3], amount=0.75, scope="global", exclude=["conv1"], schedule=schedule)
    report = run(spec, {"model": dense}, tmp_path)
    assert in_a_clean_process(tmp_path / "model.pt", 7, 1, 8, 8) == (7, 10, report.after.parameters)
    alive, blocks = 0, 0
    for name, weight in zeros_in(tmp_path / "model.pt").items():
        if name == "conv1.weight":
            continue
        matrix = weight.reshape(len(weight), -1)
        for rows in torch.split(matrix, 4):
            for block in torch.split(rows, 3, dim=1):
                blocks += 1
                alive += bool((block != 0).any())
                assert (block == 0).all() or (block != 0).all()
    assert alive == blocks - round(0.75 * blocks)


def test_channels_go_along_a_cubic_in_steps(dense, tmp_path):
    spec = pruning(schedule="cubic", steps=3, amounts={"conv1": 0.25}, retrain={"epochs": 1, "lr": 0.05})
    report = run(spec, {"model": dense}, tmp_path)
    assert {layer.name: layer.shape_after[0] for layer in report.layers} == {"conv1": 12, "conv2": 16, "fc": 10}
    assert [record.phase for record in report.history] == ["retrain 1", "retrain 2", "retrain 3"]


@pytest.mark.parametrize("field", ["include", "exclude", "amounts"])
def test_a_pattern_that_matches_nothing_is_pointed_at(dense, tmp_path, field):
    patterns = {"include": ["conv1", "head*"], "exclude": ["head*"], "amounts": {"head*": 0.1}}
    with pytest.raises(ValidationError, match=r"'head\*' matches no layer. The layers are: conv1, conv2, fc") as caught:
        run(pruning(**{field: patterns[field]}), {"model": dense}, tmp_path)
    assert caught.value.errors[0]["pointer"] == f"/{field}"


# -- residual blocks ----------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        out = self.bn2(self.conv2(torch.relu_(self.bn1(self.conv1(x)))))
        out += x
        return torch.relu_(out)


class ResidualDigits(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(8) for _ in range(4)))
        self.fc = nn.Linear(8 * 16, 10)

    def forward(self, x):
        return self.fc(self.blocks(torch.relu(self.conv(x))).flatten(1))


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("residual") / "residual.pt"
    torch.jit.save(torch.jit.script(taught(ResidualDigits())), path)
    return file_of(path)


def test_whole_residual_blocks_go_from_the_file(residual, tmp_path, in_a_clean_process):
    spec = pruning(granularity="residual_block", criterion="activation", amount=0.5, retrain={"epochs": 1, "lr": 0.05})
    report = run(spec, {"model": residual}, tmp_path / "first")
    result = tmp_path / "first" / "model.pt"
    assert in_a_clean_process(result, 7, 1, 8, 8) == (7, 10, report.after.parameters)
    block = 2 * (8 * 8 * 9 + 8 + 2 * 8)
    assert report.after.parameters == report.before.parameters - 2 * block
    assert report.after.file_bytes < report.before.file_bytes / 1.5
    assert report.after.macs < report.before.macs
    assert report.after.quality.test.value > 0.9
    assert "fewer parameters" in report.verdict
    layers = {layer.name: layer for layer in report.layers}
    gone = [name for name, layer in layers.items() if layer.shape_after == [0, 8, 3, 3]]
    assert len(gone) == 4
    assert all(report.removed[f"{name}.weight"] == {"0": list(range(8))} for name in gone)
    assert all(layers[name].removed_units == list(range(8)) and not layers[name].reason for name in gone)
    assert layers["conv"].reason == "it is in no residual block that could go"
    assert set(dict(torch.jit.load(result).named_parameters())).isdisjoint(report.removed)


@pytest.mark.parametrize("deaths", [1, pytest.param(2, marks=pytest.mark.campaign)])
def test_interrupted_removal_of_blocks_in_steps_ends_as_an_uninterrupted_one(residual, tmp_path, deaths):
    spec = pruning(granularity="residual_block", amount=0.75, schedule="iterative", steps=2, retrain={"epochs": 1})
    whole = run(spec, {"model": residual}, tmp_path / "whole")
    pieces = interrupted(spec, {"model": residual}, tmp_path / "pieces", deaths)
    assert len({layer.name for layer in whole.layers if not layer.shape_after[0]}) == 6
    assert pieces.reproduce.outputs == whole.reproduce.outputs
    assert (pieces.removed, pieces.layers) == (whole.removed, whole.layers)


def test_a_model_without_residual_blocks_is_told_what_to_do(dense, tmp_path):
    with pytest.raises(NothingToPrune, match=r"conv1: it is in no residual block.*Granularity `channel`"):
        run(pruning(granularity="residual_block"), {"model": dense}, tmp_path)


# -- shared values and packed files -------------------------------------------------------------


def sharing(**fields):
    return pruning(
        granularity="weight",
        amount=0.8,
        outputs=["torchscript", "packed"],
        quantize={"bits": 3, "epochs": 2},
        **fields,
    )


def test_shared_values_hold_after_training_and_the_packed_file_is_small(dense, tmp_path):
    report = run(sharing(), {"model": dense}, tmp_path)
    weights = zeros_in(tmp_path / "model.pt")
    count = sum(weight.numel() for weight in weights.values())
    assert sum(int((weight == 0).sum()) for weight in weights.values()) >= round(0.8 * count)
    assert all(len(weight.unique()) <= 1 + 2**3 for weight in weights.values())
    assert [record.phase for record in report.history] == ["retrain"] * 2 + ["shared values"] * 2
    size = (tmp_path / "model.packed").stat().st_size
    assert size < dense.path.stat().st_size / 6
    assert f"The packed file has {size} bytes" in " ".join(report.warnings)
    unpack(read(tmp_path / "model.packed"), tmp_path / "again.pt")
    again, x = torch.jit.load(tmp_path / "again.pt"), torch.rand(5, 1, 8, 8)
    assert torch.equal(again(x), torch.jit.load(tmp_path / "model.pt")(x))


def test_interrupted_sharing_ends_as_an_uninterrupted_one(dense, tmp_path):
    run(sharing(), {"model": dense}, tmp_path / "whole")
    killed = Kept(die_at=3)
    with pytest.raises(Kept.Killed):
        run(sharing(), {"model": dense}, tmp_path / "killed", observer=killed)
    for epochs in (2, 3):
        again = tmp_path / f"again-{epochs}"
        run(sharing(), {"model": dense}, again, observer=Kept(resume=killed.checkpoints[epochs - 1]))
        for name in ("model.pt", "model.packed"):
            assert (again / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_shared_values_need_a_packed_file(dense, tmp_path):
    with pytest.raises(ValueError, match="add `packed` to `outputs`"):
        run(pruning(quantize={"bits": 4}), {"model": dense}, tmp_path)
