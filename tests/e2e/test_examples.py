"""The examples run as they stand, against a whole service: notebooks, scripts, a step of continuous integration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
import yaml

from tests.e2e.test_readme import blocks
from tests.support.campaign import each_nth
from tests.support.notebooks import executed, html_of, of_cells
from tests.support.stack import Stack

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = ["vision", *sorted({path.stem for path in EXAMPLES.glob("*.ipynb")} - {"vision"})]


def test_notebooks_are_kept_without_outputs() -> None:
    assert len(NOTEBOOKS) == 4
    for name in NOTEBOOKS:
        notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
        nbformat.validate(notebook)
        assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.parametrize("name", each_nth(NOTEBOOKS, len(NOTEBOOKS)))
def test_a_notebook_runs_as_it_stands(embedded: Stack, tmp_path: Path, name: str) -> None:
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    executed(notebook, tmp_path, embedded.env)
    shown = html_of(notebook)
    assert any(">succeeded</span>" in piece for piece in shown)
    assert any('class="verdict"' in piece for piece in shown)


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "result"), [("plain_loop", "digits_mlp_small.pt"), ("hf_trainer", "small.zip")])
def test_a_script_runs_as_it_stands(embedded: Stack, tmp_path: Path, name: str, result: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=embedded.env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / result).is_file()


BUDGETS = [
    ("params=0.01%", 3, "::error title=Size budget missed::"),
    ("params=60%", 0, "The budget of params=60% is met."),
]


@pytest.mark.parametrize(("budget", "code", "said"), each_nth(BUDGETS, 2))
def test_a_build_fails_where_the_budget_is_missed(
    embedded: Stack, tmp_path: Path, budget: str, code: int, said: str
) -> None:
    layers = torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    torch.jit.script(torch.nn.Sequential(*layers)).save(tmp_path / "model.pt")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = embedded.env | {"PATH": path, "BUDGET": budget, "MAX_DROP": "99%", "EPOCHS": "1"}
    command = ["bash", str(EXAMPLES / "size_budget.sh"), "model.pt", "builtin:digits", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
    assert (tmp_path / "out/small.pt").is_file()
    assert "<!DOCTYPE html>" in (tmp_path / "out/report.html").read_text()


def test_the_workflow_runs_the_script_that_is_tested_here() -> None:
    workflow = yaml.safe_load((EXAMPLES / "github_actions.yml").read_text())
    steps = workflow["jobs"]["size-budget"]["steps"]
    assert [step["run"] for step in steps if "size_budget" in step.get("run", "")] == [
        "examples/size_budget.sh digits_cnn.pt digits.npz size-budget"
    ]
    ours = yaml.safe_load((EXAMPLES.parent / ".github/workflows/ci.yml").read_text())
    pinned = {step["uses"] for job in ours["jobs"].values() for step in job["steps"] if "uses" in step}
    assert {
        step["uses"] for step in steps if step.get("uses", "").startswith(("actions/checkout", "actions/setup"))
    } <= pinned


@pytest.mark.campaign
def test_the_page_on_notebooks_runs_as_one(embedded: Stack, tmp_path: Path) -> None:
    from pared.examples.train_digits import main  # scikit-learn takes seconds to import

    main(tmp_path)
    notebook = of_cells(*(text for language, text in blocks(EXAMPLES.parent / "docs/notebooks.md")))
    executed(notebook, tmp_path, embedded.env)
    plan, watched, report, layers = html_of(notebook)
    assert "plan: what the job would do" in plan
    assert ">succeeded</span>" in watched
    assert "prune report" in report
    assert "<th>left</th>" in layers
