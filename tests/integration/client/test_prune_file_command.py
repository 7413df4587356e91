"""`pared prune-file`, as a person runs it: no server, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.forks import run_pared
from tests.support.processes import environment

PARED = str(Path(sys.executable).with_name("pared"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    state = {f"layers.{number}.weight": torch.randn(40, 50) for number in range(3)} | {"norm.bias": torch.ones(9)}
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "model.pt")
    return folder


# An address where nothing listens: there is nobody to ask.
ENV = environment(PARED_URL="http://127.0.0.1:9", COLUMNS="200")


def pared(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    return run_pared(line.split(), cwd=folder, env=ENV)


def in_a_new_process(folder: Path, line: str, *start: str) -> subprocess.CompletedProcess[str]:
    command = [*start, *line.split()]
    return subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True, timeout=240)


def test_it_prunes_and_says_what_that_is_worth(files: Path) -> None:
    done = in_a_new_process(files, "prune-file model.safetensors --amount 90% -o new/sparse.safetensors", PARED)
    assert done.returncode == 0, done.stderr
    size = (files / "model.safetensors").stat().st_size
    assert f"sparse.safetensors ({size:,} bytes" in done.stdout
    assert "5,400 of 6,000 weights (90.00%) are zero now, in 3 tensors; 1 tensors are as they were" in done.stdout
    assert "as large as before and no faster by itself" in done.stdout
    assert done.stderr == ""
    again = pared(files, "prune-file model.safetensors --amount 90% -o new/sparse.safetensors")
    assert (again.returncode, again.stdout) == (2, "")
    assert "new/sparse.safetensors exists" in again.stderr


def test_json_tells_each_tensor(files: Path) -> None:
    line = "prune-file . --amount 0.5 --scope layer --include layers.* --exclude layers.1 --json -o half.safetensors"
    done = pared(files, line)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["zeroed"] == 2000
    assert told["file"] == "half.safetensors"
    pruned = load_file(files / "half.safetensors")
    assert {tensor["name"]: tensor["zeros"] for tensor in told["tensors"]} == {
        name: int((pruned[name] == 0).sum()) for name in ("layers.0.weight", "layers.2.weight")
    }
    for tensor in told["tensors"]:
        assert 0 < tensor["threshold"] < pruned[tensor["name"]].abs().max()
    (files / "half.safetensors").unlink()


@pytest.mark.parametrize(
    ("line", "says", "code"),
    [
        ("model.pt --amount 0.5 -o out.safetensors", "model.pt is no safetensors file", 1),
        ("nothing.safetensors --amount 0.5 -o out.safetensors", "No such file", 2),
        ("model.safetensors --amount 90 -o out.safetensors", "write 50% or 0.5", 2),
        ("model.safetensors --amount 0.5", "--output", 2),
        ("model.safetensors --amount 0.5 -o out", "end in .safetensors", 1),
        ("model.safetensors --amount 0.5 -o model.safetensors", "is what would be pruned", 2),
        ("model.safetensors --amount 0.5 --include x -o out.safetensors", "The layers are: 'layers.0'", 1),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(files: Path, line: str, says: str, code: int) -> None:
    before = sorted(files.iterdir())
    done = pared(files, f"prune-file {line}")
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(files.iterdir()) == before


def test_without_numpy_it_says_what_to_install(files: Path) -> None:
    code = "import sys; sys.modules['numpy'] = None; from pared.cli import main; main()"
    line = "prune-file model.safetensors --amount 0.5 -o out.safetensors"
    done = in_a_new_process(files, line, sys.executable, "-c", code)
    assert done.returncode == 2
    assert "pip install 'pared[files]'" in done.stderr
