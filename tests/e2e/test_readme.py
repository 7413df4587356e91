"""Every command and Python block of README and tutorial, and the session on the page about Python, run as they stand.

`tests/unit/test_docs.py` holds the blocks of all other pages against the code.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pared import spec_fields
from tests.support.forks import pared_for_shells
from tests.support.stack import Stack
from tests.support.torch_forks import in_a_fork

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs/tutorial.md"
PYTHON_API = ROOT / "docs/python-api.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
IMPORTS_TORCH = re.compile(r"^import .*\btorch\b", re.MULTILINE)
SET_UP = re.compile(r"make |source |git clone|cd pared|pip install|docker|pared up")


def blocks(page: Path = README) -> list[tuple[str, str]]:
    """(language, text) of each block that a reader would run."""
    return [(match[1], match[2]) for match in BLOCK.finditer(page.read_text())]


def test_there_is_something_to_run() -> None:
    languages = [language for language, _ in blocks()]
    assert "bash" in languages
    assert "python" in languages


@pytest.mark.timeout(1200)
def test_readme_and_tutorial_run_as_they_stand(embedded: Stack, tmp_path: Path) -> None:
    """Where a reader's commands and blocks import nothing first: that takes seconds for each of them."""
    binaries = Path(sys.executable).parent
    with pared_for_shells() as commands:
        env = embedded.env | {"PATH": f"{commands}:{binaries}:{os.environ['PATH']}", "S": embedded.url}
        for language, text in dict.fromkeys([*blocks(), *blocks(TUTORIAL)]):  # what both have runs once
            if language == "bash" and SET_UP.search(text):
                continue  # the set-up itself: `make` and `pared up` have tests of their own
            if language == "python" and IMPORTS_TORCH.search(text):
                in_a_fork(run_block, text, tmp_path, env)
                continue
            command = [str(binaries / "python"), "-c", text]
            if language == "bash":
                command = [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", local(text, embedded)]
            done = subprocess.run(
                command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=800
            )
            assert done.returncode == 0, f"{text}\n--- exits {done.returncode}\n{done.stdout}{done.stderr}"


def run_block(text: str, folder: Path, env: Mapping[str, str]) -> None:
    """Run Python in this process, as a program of its own."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    exec(compile(text, "block.py", "exec"), {"__name__": "__main__"})


def local(text: str, stack: Stack) -> str:
    """The block, with the address that the README names replaced by this stack's."""
    return text.replace("http://127.0.0.1:8000", stack.url).replace("http://localhost:8000", stack.url)


def test_the_page_on_python_runs_as_one_session(embedded: Stack, tmp_path: Path) -> None:
    languages, texts = zip(*blocks(PYTHON_API), strict=True)
    assert set(languages) == {"python"}
    in_a_fork(run_block, "\n\n".join(texts), tmp_path, embedded.env)
    assert {"pruned", "small.pt", "sparse.pt"} <= {path.name for path in tmp_path.iterdir()}


def test_the_page_on_python_names_every_keyword() -> None:
    kinds = [spec_fields.PruneJobFields, spec_fields.DistillJobFields, spec_fields.RetrainFields]
    kinds += [spec_fields.TargetFields, spec_fields.QuantizeFields, spec_fields.KnowledgeFields]
    kinds += [
        spec_fields.PipelineJobFields,
        spec_fields.DistillStepFields,
        spec_fields.PreprocessFields,
        spec_fields.TensorFields,
    ]
    text = PYTHON_API.read_text()
    assert [name for kind in kinds for name in kind.__annotations__ if f"`{name}`" not in text] == []
