"""`pared unpack` as a process of its own, which must not need torch."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from pared.compression.export.writers import export
from pared.compression.loading import LoadedModel
from pared.weights.packed import write
from tests.support.forks import run_pared

ARCHITECTURE = {"layers": [["Linear", {"in_features": 3, "out_features": 2}, "fc"]]}
WEIGHTS = {"fc.weight": np.eye(2, 3, dtype=np.float32), "fc.bias": np.arange(2, dtype=np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "weights.packed", WEIGHTS, architecture=ARCHITECTURE)
    (tmp_path / "no-torch").mkdir()
    (tmp_path / "no-torch" / "torch.py").write_text("raise ImportError('no torch here')")
    return tmp_path


def pared(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(folder / "no-torch"), "COLUMNS": "200"}
    return run_pared(line.split(), cwd=folder, env=env)


def test_the_command_finds_no_torch(folder):
    """Or the others here would show nothing: this one needs it."""
    (folder / "job.json").write_text(json.dumps({"type": "prune", "model": "model.pt", "amount": 0.5}))
    (folder / "model.pt").write_bytes(b"a model")
    done = pared(folder, "run job.json --here -o out/")
    assert "no torch here" in done.stdout + done.stderr


def test_weights_and_their_architecture_come_out_beside_the_file(folder):
    done = pared(folder, "unpack weights.packed")
    assert done.returncode == 0, done.stderr
    assert "weights.safetensors" in done.stdout
    loaded = load_file(folder / "weights.safetensors")
    assert all(np.array_equal(loaded[name], array) for name, array in WEIGHTS.items())
    assert json.loads((folder / "weights.architecture.json").read_text()) == ARCHITECTURE
    again = pared(folder, "unpack weights.packed")
    assert again.returncode == 2
    assert "there already" in again.stderr


def test_a_program_comes_out_as_torchscript(folder):
    module = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval())
    export(LoadedModel(module, "torchscript", "scripted"), (torch.rand(2, 3),), ["packed"], folder)
    done = pared(folder, "unpack model.packed -o new/small.pt --json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"files": ["new/small.pt"]}
    x = torch.rand(5, 3)
    assert torch.equal(torch.jit.load(folder / "new" / "small.pt")(x), module(x))


def test_into_a_folder_it_goes_under_its_own_name(folder):
    (folder / "there").mkdir()
    assert pared(folder, "unpack weights.packed -o there").returncode == 0
    assert sorted(p.name for p in (folder / "there").iterdir()) == ["weights.architecture.json", "weights.safetensors"]


def test_what_cannot_be_unpacked_is_told_in_a_line(folder):
    whole = (folder / "weights.packed").read_bytes()
    (folder / "cut.packed").write_bytes(whole[:-1])
    (folder / "changed.packed").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (folder / "newer.packed").write_bytes(whole[:4] + b"\7" + whole[5:])
    (folder / "other.packed").write_text("hello")
    for line, code, says in [
        ("unpack cut.packed", 1, "cut off"),
        ("unpack changed.packed", 1, "Download it again"),
        ("unpack newer.packed", 1, "newer pared"),
        ("unpack other.packed", 1, "not a packed file"),
        ("unpack nothing.packed", 2, "no file"),
        ("unpack weights.packed -o weights.pt", 2, ".safetensors"),
    ]:
        done = pared(folder, line)
        assert (done.returncode, says in done.stderr) == (code, True), (line, done.stderr)
        assert "Traceback" not in done.stderr
    assert not list(folder.glob("*.part"))


def test_a_model_that_is_there_outlives_a_file_that_cannot_be_unpacked(folder):
    assert pared(folder, "unpack weights.packed").returncode == 0
    model = (folder / "weights.safetensors").read_bytes()
    whole = (folder / "weights.packed").read_bytes()
    (folder / "changed.packed").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert pared(folder, "unpack changed.packed -o weights.safetensors").returncode == 1
    assert (folder / "weights.safetensors").read_bytes() == model
