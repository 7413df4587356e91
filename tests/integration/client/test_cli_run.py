"""`pared run`: a spec in a file, on the server and in the command's own process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pared as pared_client
from tests.support.forks import run_pared
from tests.support.processes import environment
from tests.support.scripted_server import Scripted
from tests.support.stack import PARED, Stack

SPEC: dict[str, Any] = {
    "type": "prune",
    "model": "mlp.pt",
    "dataset": "data.npz",
    "amount": 0.5,
    "retrain": {"epochs": 1},
    "outputs": ["torchscript", "state_dict"],
}
ID = "mdl_01K9Q5V7M3W8Z2X4Y6A0B1C2D3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    torch.jit.script(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))).save(str(folder / "mlp.pt"))
    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=x[:, :3].argmax(1))
    return folder


def pared(
    folder: Path, spec: dict[str, Any] | str, line: str, typed: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    (folder / "spec.json").write_text(spec if isinstance(spec, str) else json.dumps(spec))
    # One thread, as the workers of the tests have: sums of several threads differ in their last bits.
    env = environment(COLUMNS="200", OMP_NUM_THREADS="1") | env
    loaded = ("pared.compression.library",) if "--here" in line else ()  # torch takes seconds to load
    return run_pared(["run", "spec.json", *line.split()], cwd=folder, env=env, stdin=typed, loaded=loaded)


def test_a_spec_gives_the_same_files_here_and_on_the_server(embedded: Stack, folder: Path) -> None:
    here = pared(folder, SPEC, "--here -o here")
    assert here.returncode == 0, here.stderr
    assert "smaller" in here.stdout
    assert "here/model.pt" in here.stdout
    assert "retrain: epoch 1" in here.stderr
    there = pared(folder, SPEC, "-o there -o small.safetensors", **embedded.env)
    assert there.returncode == 0, there.stderr
    assert "uploaded mlp.pt" in there.stderr
    names = {path.name for path in (folder / "here").iterdir()}
    assert {"model.pt", "model.safetensors", "report.json"} <= names
    assert names == {path.name for path in (folder / "there").iterdir()}
    for name in names - {"report.json"}:
        assert (folder / "here" / name).read_bytes() == (folder / "there" / name).read_bytes(), name
    assert (folder / "small.safetensors").read_bytes() == (folder / "here/model.safetensors").read_bytes()


def test_a_student_is_distilled_here_and_json_is_all_that_is_printed(folder: Path) -> None:
    spec = {
        "type": "distill",
        "teacher": "mlp.pt",
        "student": {"from_teacher": {"width": 0.5}},
        "dataset": "data.npz",
        "train": {"epochs": 1},
    }
    done = pared(folder, spec, "--here -o student --json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    printed = json.loads(done.stdout)
    assert printed["report"]["after"]["parameters"] < printed["report"]["before"]["parameters"]
    assert printed["files"] == ["student/model.pt", "student/report.json"]


def test_several_teachers_are_uploaded_and_their_answers_are_kept_for_the_next_job(
    embedded: Stack, folder: Path
) -> None:
    torch.manual_seed(1)
    torch.jit.script(nn.Linear(6, 3)).save(str(folder / "line.pt"))
    spec = {
        "type": "distill",
        "teacher": "mlp.pt",
        "teachers": [{"model": "line.pt", "weight": 0.5}],
        "student": {"from_teacher": {"width": 0.5}},
        "dataset": "data.npz",
        "train": {"epochs": 1},
    }
    reports = []
    for out in ("--here -o teachers-here", "-o teachers-1", "-o teachers-2"):
        done = pared(folder, spec, out, **embedded.env)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((folder / out.split()[-1] / "report.json").read_text()))
    assert [each["pointer"] for each in reports[2]["teachers"]] == ["/teacher", "/teachers/0"]
    models = [(folder / name / "model.pt").read_bytes() for name in ("teachers-here", "teachers-1", "teachers-2")]
    assert models[0] == models[1] == models[2]
    with pared_client.Client(embedded.env["PARED_URL"]) as client:
        latest, earlier = (list(client.jobs.list(type="distill"))[index] for index in (0, 1))
        kept = "are those that an earlier job kept"
        logs = [[event.data["text"] for event in job.events() if event.event == "log"] for job in (earlier, latest)]
    assert [any(kept in line for line in lines) for lines in logs] == [False, True]


def test_the_debugger_starts_where_a_job_fails(folder: Path) -> None:
    spec = SPEC | {"dataset": "builtin:digits"}
    failed = pared(folder, spec, "--here -o wrong")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    debugged = pared(folder, spec, "--here -o wrong --pdb", typed="p args[0].shape\nquit\n")
    assert debugged.returncode == 1
    assert failed.stderr.splitlines()[-1].removeprefix("pared: ")[:60] in debugged.stderr
    assert "Traceback" in debugged.stderr
    assert "(Pdb) torch.Size([" in debugged.stdout  # what the layer was given that cannot take it


@pytest.mark.parametrize(
    ("spec", "line", "says"),
    [
        (SPEC | {"model": ID}, "--here -o out", f"model: {ID} is an upload on a server"),
        (SPEC | {"dataset": "builtin:mnist"}, "--here -o out", "there is no builtin:mnist, only builtin:digits"),
        (SPEC | {"model": "nowhere.pt"}, "--here -o out", "model: there is no file nowhere.pt"),
        (SPEC | {"dataset": "nowhere.npz"}, "", "dataset: there is no file nowhere.npz"),
        (SPEC | {"amonut": 0.5}, "--here -o out", "/amonut: "),
        (SPEC | {"type": "squeeze"}, "--here -o out", "squeeze"),
        (SPEC, "--here", "name the one folder"),
        (SPEC, "--here -o small.pt", "name the one folder"),
        (SPEC, "--here -o mlp.pt/out", "mlp.pt/out cannot be written"),
        (SPEC, "--pdb", "give --here, too"),
        (SPEC, "-o small.onnx", "the spec does not ask for onnx: add it to `outputs`"),
        (SPEC, "-o small.h5", "names no format"),
        ("{", "", "spec.json is not JSON"),
        ("[]", "", "spec.json is not a spec"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent_or_run(
    folder: Path, spec: dict[str, Any] | str, line: str, says: str
) -> None:
    server = Scripted()
    done = pared(folder, spec, line, PARED_URL=server.url)
    server.close()
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert server.asked == []
    assert not (folder / "out").exists()


def test_here_needs_the_extras_of_a_worker(folder: Path) -> None:
    block = "import sys; sys.modules['torch'] = None"
    arguments = ["pared", "run", "spec.json", "--here", "-o", "out"]
    command = f"{block}; sys.argv = {arguments}; from pared.cli import main; main()"
    (folder / "spec.json").write_text(json.dumps(SPEC))
    python = str(Path(PARED).with_name("python"))
    done = subprocess.run([python, "-c", command], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "pip install 'pared[worker]'" in done.stderr.replace("\n", " ")
