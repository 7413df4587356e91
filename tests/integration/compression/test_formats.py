"""A format that cannot be written costs that format alone: whichever it is, whichever else is asked for."""

from __future__ import annotations

import contextlib
import functools
import itertools
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pared.compression import distill, prune
from pared.compression.architectures import build
from pared.compression.export.formats import Formats
from pared.compression.loading import LoadedModel
from pared.compression.work import DatasetFile, ModelFile, Work
from pared.errors import ExportFailed
from pared.job_types import BY_SPEC
from pared.reports import Plan, Report
from pared.specs import PlanSpec, PruneSpec
from tests.support.campaign import in_every_run, one_form_each
from tests.support.models import zoo
from tests.support.observers import Kept, Killed
from tests.support.torch_forks import in_a_fork, in_a_fresh_process

FILES = {
    "torchscript": "model.pt",
    "state_dict": "model.safetensors",
    "exported_program": "model.pt2",
    "onnx": "model.onnx",
    "packed": "model.packed",
}
MODEL, DATA = "mdl_" + "0" * 26, "dst_" + "0" * 26


class Net(nn.Module):
    """Draws random numbers while it trains, so that a generator that was used in between is seen in the bytes."""

    def __init__(self):
        super().__init__()
        self.fc1, self.drop, self.fc2 = nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc2(self.drop(torch.relu(self.fc1(x))))


class NoOnnx(Net):
    def forward(self, x):
        return self.fc2(self.drop(torch.relu(self.fc1(torch.lgamma(1 + x.abs())))))


class NoProgram(Net):
    def forward(self, x):
        hidden = torch.relu(self.fc1(x))
        if bool(hidden.sum() > 0):
            hidden = self.drop(hidden)
        return self.fc2(hidden)


class Neither(Net):
    def forward(self, x):
        hidden = torch.relu(self.fc1(torch.lgamma(1 + x.abs())))
        if bool(hidden.sum() > 0):
            hidden = hidden + 1
        return self.fc2(hidden)


class Noisy(Net):
    """Answers otherwise each time: only its weights can be checked."""

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)) + torch.rand_like(x[:, :1]))


@functools.cache
def upload(kind: type[nn.Module]) -> bytes:
    torch.manual_seed(0)
    return zoo.saved(torch.jit.script(kind().eval()))


X = np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32)
Y = X[:, :3].argmax(1)


class Told(Kept):
    """Keeps what it hears, too, in order."""

    def __init__(self, resume: bytes | None = None, die_at: int | None = None):
        super().__init__(resume, die_at)
        self.heard: list[str] = []

    def stage(self, name):
        self.heard.append(name)

    def log(self, text):
        self.heard.append(text)

    def said(self, word: str) -> list[str]:
        return [line for line in self.heard if word in line]


def job(folder: Path, kind: type[nn.Module], observer: Told | None = None, **fields) -> tuple[PruneSpec, Work]:
    """A job on one of these models that zeroes half of its weights, and its work in `folder/out`."""
    (folder / "model.pt").write_bytes(upload(kind))
    np.savez(folder / "data.npz", x=X, y=Y)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    given = {"type": "prune", "model": MODEL, "dataset": DATA, "granularity": "weight"}
    given |= {} if "target" in fields else {"amount": 0.5}
    spec = PruneSpec.model_validate(given | fields)
    models = {"model": ModelFile(folder / "model.pt", "model.pt", "")}
    return spec, Work(models, DatasetFile(folder / "data.npz", "data.npz"), out, observer or Told(), timed=False)


def done(spec: PruneSpec, work: Work) -> Report:
    report = BY_SPEC[PruneSpec].load_method()(spec, work)
    assert isinstance(report, Report)
    return report


def planned(spec: PruneSpec, work: Work) -> Plan:
    plan = BY_SPEC[PlanSpec].load_method()(PlanSpec(type="plan", job=spec), work)
    assert isinstance(plan, Plan)
    return plan


TRAINED, UNTRAINED = {"epochs": 1, "lr": 0.05}, None


@functools.cache
def alone(kind: type[nn.Module], output: str, *, trained: bool) -> bytes:
    """The file of a job that asks for this format alone."""
    with tempfile.TemporaryDirectory() as folder:
        spec, work = job(Path(folder), kind, outputs=[output], retrain=TRAINED if trained else UNTRAINED)
        assert done(spec, work).failed_outputs == []
        return (work.directory / FILES[output]).read_bytes()


REFUSING = {"onnx": NoOnnx, "exported_program": NoProgram}


# -- one of two is missing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "trained"),
    one_form_each(itertools.permutations(FILES, 2), [False, True], n=5),
    ids=lambda each: "-".join(each) if isinstance(each, tuple) else ("trained" if each else "untrained"),
)
def test_the_other_format_is_kept_as_if_alone(pair, trained, tmp_path):
    """A model that the format cannot hold; or, where it holds all, a folder in the place of its file."""
    bad, good = pair
    kind = REFUSING.get(bad, Net)
    observer = Told()
    first_bad = list(FILES).index(bad) % 2 == trained
    spec, work = job(
        tmp_path,
        kind,
        observer,
        outputs=[bad, good] if first_bad else [good, bad],
        retrain=TRAINED if trained else UNTRAINED,
    )
    obstacle = work.directory / FILES[bad]
    if bad not in REFUSING:
        obstacle.mkdir()
    report = done(spec, work)
    (failed,) = report.failed_outputs
    assert (failed.format, failed.code) == (bad, "export-failed")
    assert report.verdict.endswith(f" Not written: {bad}.")
    assert f"{bad} is not among the files: {failed.detail}" in report.warnings
    left = {path.name for path in work.directory.iterdir()}
    assert left == {FILES[good], "report.json"} | ({obstacle.name} if obstacle.exists() else set())
    assert list(report.reproduce.outputs) == [FILES[good]]
    assert report.after.file_bytes == (work.directory / FILES[good]).stat().st_size
    assert (work.directory / FILES[good]).read_bytes() == alone(kind, good, trained=trained)
    early = observer.said(f"{bad} will be missing")
    assert bool(early) == (trained and bad in REFUSING)
    assert not early or observer.heard.index(early[0]) < observer.heard.index("retrain")


@pytest.mark.parametrize("bad", ["torchscript", "packed", "onnx", "exported_program"])
def test_weights_are_kept_of_a_model_whose_answers_cannot_be_checked(bad, tmp_path):
    observer = Told()
    report = done(*job(tmp_path, Noisy, observer, outputs=[bad, "state_dict"], retrain=TRAINED))
    (failed,) = report.failed_outputs
    assert failed.format == bad
    assert "answers the same inputs otherwise each time" in failed.detail
    assert "`state_dict`" in failed.detail
    assert observer.heard.index(observer.said(f"{bad} will be missing")[0]) < observer.heard.index("retrain")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "report.json"}


def test_where_onnx_is_not_installed_the_others_are_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = done(*job(tmp_path, Net, outputs=["onnx", "state_dict"], retrain=TRAINED))
    assert [failed.format for failed in report.failed_outputs] == ["onnx"]
    assert "Install pared[worker,onnx]" in report.failed_outputs[0].detail


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk or a quota: what is written beyond this raises."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_was_written_half_is_not_left(tmp_path):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 4000), nn.Linear(4000, 3)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x)))

    spec, work = job(tmp_path, Wide, amount=0.99, outputs=["state_dict", "onnx", "packed"], retrain=UNTRAINED)
    with files_of_at_most(100_000):
        report = done(spec, work)
    assert [failed.format for failed in report.failed_outputs] == ["state_dict", "onnx"]
    assert {path.name for path in work.directory.iterdir()} == {"model.packed", "report.json"}


def test_a_file_of_an_earlier_result_does_not_stay_for_one_that_cannot_be_written(tmp_path):
    """As where a result misses its goal and another follows it."""
    formats = Formats(["onnx", "torchscript"], (torch.randn(4, 6),))
    for kind, names in ((Net, {"model.onnx", "model.pt"}), (NoOnnx, {"model.pt"})):
        written = formats.write(LoadedModel(torch.jit.script(kind()).eval(), "torchscript", "scripted"), tmp_path)
        assert {path.name for path in written.paths} == {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize(
    ("kind", "bad", "says"),
    [(NoOnnx, "onnx", "ONNX cannot hold"), (NoProgram, "exported_program", "torch.export cannot hold")],
)
def test_layers_that_a_format_does_not_take_are_kept_in_torchscript(kind, bad, says, tmp_path):
    observer = Told()
    report = done(*job(tmp_path, kind, observer, outputs=[bad, "torchscript"], retrain=TRAINED))
    assert [(failed.format, says in failed.detail) for failed in report.failed_outputs] == [(bad, True)]
    assert observer.said(f"{bad} will be missing")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.pt", "report.json"}


LAYERS = [
    *(["Linear", {"in_features": 6, "out_features": 8}], ["ReLU"], ["Dropout", {"p": 0.2}]),
    *(["Linear", {"in_features": 8, "out_features": 8}], ["ReLU"], ["Linear", {"in_features": 8, "out_features": 3}]),
]


def digests_of_a_layer_list(outputs: list[str]) -> dict[str, str]:
    torch.manual_seed(0)
    fields = {"amount": 0.5, "schedule": "iterative", "steps": 2, "retrain": TRAINED, "outputs": outputs}
    return prune(build({"layers": LAYERS}), (X, Y), **fields).report.reproduce.outputs


@pytest.mark.parametrize("called", in_every_run([in_a_fork, in_a_fresh_process], {in_a_fork}))
def test_torchscript_of_a_layer_list_is_as_alone_beside_what_is_tried_first(called):
    digests = [
        called(digests_of_a_layer_list, [*beside, "torchscript"]) for beside in ([], ["onnx", "exported_program"])
    ]
    assert digests[0]["model.pt"] == digests[1]["model.pt"]
    assert set(digests[1]) == {"model.onnx", "model.pt2", "model.pt"}


# -- none of them can be written ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "outputs", "says"),
    [
        (NoOnnx, ["onnx"], r"lgamma.* `outputs` may name `torchscript`, `state_dict`, `exported_program`, `packed`"),
        (NoProgram, ["exported_program"], r"torch\.export cannot hold"),
        (Neither, ["exported_program", "onnx"], r"None of the formats.*exported_program: .* onnx: .*lgamma"),
        (Noisy, ["torchscript"], "otherwise each time"),
        (Noisy, ["packed", "torchscript"], "otherwise each time"),
    ],
)
def test_where_none_can_be_written_the_job_fails_before_it_trains_as_its_plan_does(kind, outputs, says, tmp_path):
    observer = Told()
    spec, work = job(tmp_path, kind, observer, outputs=outputs, retrain={"epochs": 1000})
    with pytest.raises(ExportFailed, match=says) as caught:
        done(spec, work)
    assert "retrain" not in observer.heard
    assert list(work.directory.iterdir()) == []
    with pytest.raises(ExportFailed) as foretold:
        planned(spec, work)
    if kind is not Noisy:  # its differences are others each time
        assert foretold.value.detail == caught.value.detail
    with pytest.raises(ExportFailed, match=says):
        done(spec.model_copy(update={"retrain": None}), work)


def test_a_cubic_ramp_is_not_begun_either(tmp_path):
    observer = Told()
    spec, work = job(tmp_path, NoOnnx, observer, outputs=["onnx"], schedule="cubic", retrain={"epochs": 1000})
    with pytest.raises(ExportFailed):
        done(spec, work)
    assert "retrain" not in observer.heard


# -- plans, goals, attempts ---------------------------------------------------------------------


def test_a_plan_lists_what_can_be_written_and_names_the_rest(tmp_path):
    spec, work = job(tmp_path, NoOnnx, outputs=["onnx", "torchscript", "state_dict"], retrain=TRAINED)
    plan, report = planned(spec, work), done(spec, work)
    assert set(plan.files) == {"model.pt", "model.safetensors"}
    assert plan.failed_outputs == report.failed_outputs
    assert plan.after.file_bytes == report.after.file_bytes == plan.files["model.pt"].size_bytes
    assert plan.verdict.endswith(" Not written: onnx.")


def test_bytes_of_a_file_that_cannot_be_written_are_no_goal(tmp_path):
    observer = Told()
    spec, work = job(
        tmp_path,
        NoOnnx,
        observer,
        granularity="channel",
        target={"file_bytes": 0.9},
        outputs=["onnx", "torchscript"],
        retrain=TRAINED,
    )
    with pytest.raises(
        ExportFailed, match=r"goal `file_bytes`.*`onnx` cannot be written: .*lgamma.*begin with another"
    ):
        done(spec, work)
    assert "retrain" not in observer.heard
    with pytest.raises(ExportFailed, match="goal `file_bytes`"):
        planned(spec, work)


def test_other_goals_are_judged_without_it(tmp_path):
    fields = {"granularity": "channel", "target": {"params": 0.6}, "outputs": ["onnx", "torchscript"]}
    spec, work = job(tmp_path, NoOnnx, retrain=TRAINED, **fields)
    plan, report = planned(spec, work), done(spec, work)
    assert report.goal is not None
    assert report.goal.status == "met"
    assert report.goal == plan.goal
    assert [point.file_bytes for point in report.frontier] == [None] * len(report.frontier)
    assert [failed.format for failed in report.failed_outputs] == ["onnx"]


def test_a_file_that_is_lost_at_the_end_misses_its_goal_and_nothing_else(tmp_path):
    fields = {"granularity": "channel", "target": {"file_bytes": 0.9, "params": 0.8}}
    spec, work = job(tmp_path, Net, outputs=["packed", "state_dict"], retrain=TRAINED, **fields)
    (work.directory / "model.packed").mkdir()
    report = done(spec, work)
    assert report.goal is not None
    assert report.goal.status == "infeasible"
    assert set(report.goal.reached) == {"params"}
    assert "an unknown share of the file's bytes, where at most 90 % was asked" in report.goal.sentence
    assert (work.directory / "model.safetensors").is_file()


def test_a_search_tries_the_formats_once(tmp_path):
    observer = Told()
    fields = {"granularity": "channel", "target": {"max_accuracy_drop": 0.9}, "outputs": ["torchscript", "onnx"]}
    report = done(*job(tmp_path, NoOnnx, observer, retrain=TRAINED, **fields))
    assert len(report.frontier) > 1
    assert len(observer.said("onnx will be missing")) == 1


@pytest.mark.parametrize("schedule", in_every_run(["one_shot", "iterative", "cubic"], {"iterative"}))
def test_a_resumed_job_ends_the_same_and_tries_nothing_again(schedule, tmp_path):
    fields = {"outputs": ["torchscript", "onnx"], "retrain": {"epochs": 2}, "schedule": schedule}
    spec, work = job(tmp_path, NoOnnx, **fields)
    whole = done(spec, work)
    killed = Told(die_at=1)
    with pytest.raises(Killed):
        done(*job(tmp_path, NoOnnx, killed, **fields))
    assert killed.said("onnx will be missing")
    later = Told(resume=killed.checkpoints[-1])
    resumed = done(*job(tmp_path, NoOnnx, later, **fields))
    assert not later.said("onnx will be missing")
    assert resumed.failed_outputs == whole.failed_outputs != []
    assert resumed.reproduce.outputs == whole.reproduce.outputs
    assert resumed.verdict.endswith(" Not written: onnx.")


# -- as a library -------------------------------------------------------------------------------


def test_the_library_keeps_what_can_be_written_and_prints_nothing(tmp_path, capfd):
    torch.manual_seed(0)
    fields = {"granularity": "weight", "amount": 0.5, "outputs": ["onnx", "torchscript"], "retrain": {"epochs": 1}}
    result = prune(NoOnnx().eval(), (X, Y), directory=tmp_path, **fields)
    assert [failed.format for failed in result.report.failed_outputs] == ["onnx"]
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "report.json"}
    assert capfd.readouterr().out == ""


def test_a_student_is_written_in_what_holds_it(tmp_path):
    torch.manual_seed(0)
    fields = {"train": {"epochs": 1}, "compare_with_labels_only": True}
    result = distill(Net().eval(), NoOnnx(), (X, Y), directory=tmp_path, outputs=["onnx", "state_dict"], **fields)
    assert [failed.format for failed in result.report.failed_outputs] == ["onnx"]
    assert result.report.verdict.endswith(" Not written: onnx.")
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "report.json"}
    with pytest.raises(ExportFailed, match="lgamma"):
        distill(Net().eval(), NoOnnx(), (X, Y), outputs=["onnx"], train={"epochs": 1000})
