"""Every command and every Python block of the README, run as it stands, in order, in one folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.stack import Stack

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SET_UP = re.compile(r"make |git clone|cd pared|pip install|docker|pared up")


def blocks() -> list[tuple[str, str]]:
    """(language, text) of each block that a reader would run."""
    return [(match[1], match[2]) for match in BLOCK.finditer(README.read_text())]


def test_there_is_something_to_run() -> None:
    languages = [language for language, _ in blocks()]
    assert "bash" in languages
    assert "python" in languages


@pytest.mark.timeout(600)
def test_the_readme_runs_as_it_stands(embedded: Stack, tmp_path: Path) -> None:
    binaries = Path(sys.executable).parent
    env = embedded.env | {"PATH": f"{binaries}:{os.environ['PATH']}", "S": embedded.url}
    for language, text in blocks():
        if language == "bash" and SET_UP.search(text):
            continue  # the set-up itself: `make` and `pared up` have tests of their own
        command = [str(binaries / "python"), "-c", text]
        if language == "bash":
            command = [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", local(text, embedded)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{text}\n--- exits {done.returncode}\n{done.stdout}{done.stderr}"


def local(text: str, stack: Stack) -> str:
    """The block, with the address that the README names replaced by this stack's."""
    return text.replace("http://127.0.0.1:8000", stack.url).replace("http://localhost:8000", stack.url)
