"""The contributing guide's worked example of an operator rule, done as it says in a copy of the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pared.compression.coupling import rules

CHECKOUT = next(folder for folder in Path(__file__).parents if (folder / "CONTRIBUTING.md").exists())


def test_an_operator_gets_its_rule_as_the_guide_says(tmp_path: Path) -> None:
    guide = (CHECKOUT / "CONTRIBUTING.md").read_text()
    section = guide.partition("## Add a rule for an operator\n")[2].partition("\n## ")[0]
    program, rule, test = (textwrap.dedent(code) for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    (rule_file,) = set(re.findall(r"to the end of `(\S+\.py)`", section))
    (test_file,) = set(re.findall(r"Add a test to `(\S+\.py)`", section))
    shutil.copytree(CHECKOUT / "pared", tmp_path / "pared")  # with what is compiled, for what stays as it is

    shown = run_in(tmp_path, "-c", program)
    expected = re.search(r"\)  # (.*)", program)
    assert expected is not None
    assert shown.stdout.strip() == expected[1] == "[] torch.bilinear: what it does to channels is not known"

    append(tmp_path / rule_file, rule)
    copied_test = tmp_path / "test_with_a_new_rule.py"
    shutil.copy(CHECKOUT / test_file, copied_test)
    model = program.partition("from pared")[2].partition("\n")[2].partition("coupling = ")[0]
    append(copied_test, model + "\n\n" + test)
    options = ["-p", "no:cacheprovider", "-q", "-k", "bilinear", "--import-mode=importlib"]
    tried = run_in(tmp_path, "-m", "pytest", *options, copied_test.name)
    assert tried.returncode == 0, tried.stdout
    assert "2 passed" in tried.stdout


def test_every_module_of_rules_is_loaded() -> None:
    modules = {path.stem for path in Path(rules.__file__).parent.glob("*.py")} - {"__init__"}
    assert {f"{rules.__name__}.{module}" for module in modules} <= sys.modules.keys()


def test_an_operator_has_one_rule_only() -> None:
    with pytest.raises(ValueError, match="aten::relu has two rules: unary and tanh"):

        @rules.rule("relu")
        def tanh(tracker: rules.LabelTracker, call: object) -> None: ...


def append(path: Path, code: str) -> None:
    path.write_text(f"{path.read_text()}\n\n{code}")


def run_in(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python on the copy's own `pared`."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=240
    )
