"""The contributing guide's worked example of a criterion, done as it says in a copy of the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

CHECKOUT = next(folder for folder in Path(__file__).parents if (folder / "CONTRIBUTING.md").exists())
API = """
import json
from pared.state.settings import Settings
from service.app import create_app

described = create_app(Settings(data_dir=".")).openapi()
print(json.dumps(described["components"]["schemas"]["PruneSpec"]["properties"]["criterion"]))
"""
REFUSED = """
from pared.specs import PruneSpec

PruneSpec(type="prune", model="mdl_" + "0" * 26, criterion="snip", amount=0.5, **{fields})
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return Example(tmp_path_factory.mktemp("copy"))


class Example:
    """A copy of the code with the guide's criterion in it."""

    def __init__(self, copy: Path) -> None:
        guide = (CHECKOUT / "CONTRIBUTING.md").read_text()
        section = guide.partition("## Add a criterion\n")[2].partition("\n## ")[0]
        criterion, self.test, self.program = (
            textwrap.dedent(code) for code in re.findall(r" *```python\n(.*?)```", section, re.DOTALL)
        )
        (file,) = set(re.findall(r"Write `(\S+\.py)`", section))
        (self.test_file,) = set(re.findall(r"Add a test to `(\S+\.py)`", section))
        shutil.copytree(CHECKOUT / "pared", copy / "pared")  # with what is compiled, for what stays as it is
        (copy / file).write_text(criterion)
        self.copy = copy

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Python on the copy's own `pared`, beside the service and the tests of the checkout."""
        path = f"{self.copy}{os.pathsep}{CHECKOUT}"
        environment = os.environ | {"COLUMNS": "300", "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.copy, env=environment, capture_output=True, text=True, timeout=240
        )


def test_a_job_prunes_by_the_new_criterion(example: Example) -> None:
    ran = example.run("-c", example.program)
    expected = re.search(r"\)  # (.*)", example.program)
    assert expected is not None
    assert ran.stdout.strip() == expected[1], ran.stderr


def test_the_guides_test_of_scores_passes(example: Example) -> None:
    copied = example.copy / "test_with_a_new_criterion.py"
    copied.write_text(f"{(CHECKOUT / example.test_file).read_text()}\n\n{example.test}")
    options = ["-p", "no:cacheprovider", "-q", "-k", "snip", "--import-mode=importlib"]
    tried = example.run("-m", "pytest", *options, copied.name)
    assert tried.returncode == 0, tried.stdout
    assert "1 passed" in tried.stdout


def test_the_api_offers_the_new_criterion(example: Example) -> None:
    ran = example.run("-c", API)
    assert ran.returncode == 0, ran.stderr
    described = json.loads(ran.stdout)
    assert described["enum"].index("snip") == described["enum"].index("taylor") + 1
    assert "change of the loss, up or down (`snip`)" in described["description"]


def test_the_command_line_offers_the_new_criterion(example: Example) -> None:
    help_text = re.sub(r"[\s│]", "", example.run("-m", "pared", "prune", "--help").stdout)
    assert "|taylor|snip|hessian|" in help_text
    assert "activation,taylor,snipandhessianneed--data" in help_text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "snip looks at training samples: name a `dataset`"),
        (
            {"granularity": "residual_block", "dataset": "builtin:digits"},
            "snip does not compare blocks: use magnitude, l2, activation, taylor, hessian or random",
        ),
    ],
)
def test_specs_refuse_the_new_criterion_where_it_cannot_score(example: Example, fields: dict, says: str) -> None:
    assert says in example.run("-c", REFUSED.replace("{fields}", repr(fields))).stderr
