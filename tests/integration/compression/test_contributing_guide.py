"""The contributing guide's examples of an operator rule and a criterion, done as it says in a copy of the code."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pared.compression.coupling import rules

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
WITHOUT_DATA: dict[str, Any] = {}
OF_BLOCKS = {"granularity": "residual_block", "dataset": "builtin:digits"}
IN_THE_COPY = """
import contextlib, io, json, sys
import pytest


def said(what):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            code = pytest.main(what) if isinstance(what, list) else exec(what, {"__name__": "example"})
        except Exception as error:
            return [type(error).__name__, str(error)]
    return [None if code is None else int(code), printed.getvalue().strip()]


print(json.dumps({name: said(what) for name, what in json.load(sys.stdin).items()}))
"""
"""Runs snippets and test files, all in one process: to import what they need takes seconds. Answers what they print."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(CHECKOUT / "pared", folder / "pared")  # with what is compiled, for what stays as it is
    return folder


class Rule:
    """The guide's operator rule, put into the copy."""

    def __init__(self, copy: Path) -> None:
        section = section_of("Add a rule for an operator")
        self.program, rule, test = pieces_of(section)
        (file,) = set(re.findall(r"to the end of `(\S+\.py)`", section))
        (test_file,) = set(re.findall(r"Add a test to `(\S+\.py)`", section))
        append(copy / file, rule)
        model = self.program.partition("from pared")[2].partition("\n")[2].partition("coupling = ")[0]
        self.test_file = copy / "test_with_a_new_rule.py"
        shutil.copy(CHECKOUT / test_file, self.test_file)
        append(self.test_file, model + "\n\n" + test)


class Criterion:
    """The guide's criterion, put into the copy."""

    def __init__(self, copy: Path) -> None:
        section = section_of("Add a criterion")
        criterion, test, self.program = pieces_of(section)
        (file,) = set(re.findall(r"Write `(\S+\.py)`", section))
        (test_file,) = set(re.findall(r"Add a test to `(\S+\.py)`", section))
        (copy / file).write_text(criterion)
        self.test_file = copy / "test_with_a_new_criterion.py"
        shutil.copy(CHECKOUT / test_file, self.test_file)
        append(self.test_file, test)


@pytest.fixture(scope="module")
def rule(copy: Path) -> Rule:
    return Rule(copy)


@pytest.fixture(scope="module")
def criterion(copy: Path) -> Criterion:
    return Criterion(copy)


@pytest.fixture(scope="module")
def said(copy: Path, rule: Rule, criterion: Criterion) -> dict[str, tuple[Any, str]]:
    """What all of it came to on the copy's own `pared`."""
    options = ["-p", "no:cacheprovider", "-q", "-s", "--import-mode=importlib"]
    asked = {
        "criterion": criterion.program,
        "criterion's test": [*options, "-k", "snip", criterion.test_file.name],
        "rule's test": [*options, "-k", "bilinear", rule.test_file.name],
        "API": API,
        "without data": REFUSED.replace("{fields}", repr(WITHOUT_DATA)),
        "of blocks": REFUSED.replace("{fields}", repr(OF_BLOCKS)),
    }
    done = run_in(copy, "-c", IN_THE_COPY, given=json.dumps(asked))
    assert done.returncode == 0, done.stderr
    return {name: tuple(answer) for name, answer in json.loads(done.stdout.splitlines()[-1]).items()}


def test_an_operator_gets_its_rule_as_the_guide_says(rule: Rule, said: dict[str, tuple[Any, str]]) -> None:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(rule.program, {"__name__": "example"})
    assert (
        shown.getvalue().strip() == shown_in(rule.program) == "[] torch.bilinear: what it does to channels is not known"
    )
    code, printed = said["rule's test"]
    assert code == 0, printed
    assert "2 passed" in printed


def test_every_module_of_rules_is_loaded() -> None:
    modules = {path.stem for path in Path(rules.__file__).parent.glob("*.py")} - {"__init__"}
    assert {f"{rules.__name__}.{module}" for module in modules} <= sys.modules.keys()


def test_an_operator_has_one_rule_only() -> None:
    with pytest.raises(ValueError, match="aten::relu has two rules: unary and tanh"):

        @rules.rule("relu")
        def tanh(tracker: rules.LabelTracker, call: object) -> None: ...


def test_a_job_prunes_by_the_new_criterion(criterion: Criterion, said: dict[str, tuple[Any, str]]) -> None:
    assert said["criterion"] == (None, shown_in(criterion.program))


def test_the_guides_test_of_scores_passes(said: dict[str, tuple[Any, str]]) -> None:
    code, printed = said["criterion's test"]
    assert code == 0, printed
    assert "1 passed" in printed


def test_the_api_offers_the_new_criterion(said: dict[str, tuple[Any, str]]) -> None:
    described = json.loads(said["API"][1])
    assert described["enum"].index("snip") == described["enum"].index("taylor") + 1
    assert "change of the loss, up or down (`snip`)" in described["description"]


@pytest.mark.usefixtures("criterion")
def test_the_command_line_offers_the_new_criterion(copy: Path) -> None:
    help_text = re.sub(r"[\s│]", "", run_in(copy, "-m", "pared", "prune", "--help").stdout)
    assert "|taylor|snip|hessian|" in help_text
    assert "activation,taylor,snipandhessianneed--data" in help_text


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("without data", "snip looks at training samples: name a `dataset`"),
        ("of blocks", "snip does not compare blocks: use magnitude, l2, activation, taylor, hessian or random"),
    ],
)
def test_specs_refuse_the_new_criterion_where_it_cannot_score(
    said: dict[str, tuple[Any, str]], case: str, says: str
) -> None:
    error, text = said[case]
    assert error == "ValidationError"
    assert says in text


def section_of(title: str) -> str:
    """The guide's section of this title."""
    guide = (CHECKOUT / "CONTRIBUTING.md").read_text()
    return guide.partition(f"## {title}\n")[2].partition("\n## ")[0]


def pieces_of(section: str) -> list[str]:
    """Its pieces of Python."""
    return [textwrap.dedent(code) for code in re.findall(r" *```python\n(.*?)```", section, re.DOTALL)]


def shown_in(program: str) -> str:
    """What a program prints, as the comment at its end says."""
    shown = re.search(r"\)  # (.*)", program)
    assert shown is not None
    return shown[1]


def append(path: Path, code: str) -> None:
    path.write_text(f"{path.read_text()}\n\n{code}")


def run_in(copy: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Python on the copy's own `pared`, beside the service and the tests of the checkout."""
    path = f"{copy}{os.pathsep}{CHECKOUT}"
    environment = os.environ | {"COLUMNS": "300", "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=copy, env=environment, input=given, capture_output=True, text=True, timeout=240)
