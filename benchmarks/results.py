"""What benchmarks start from and leave: MNIST, the digits CNN, results that are kept on the way, and `RESULTS.md`.

Of `RESULTS.md` each benchmark rewrites its own section, and leaves the others'.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADING = "# Results\n\nWritten by the benchmarks in this folder, each its own section.\n"


def mnist_file() -> str:
    """The path that PARED_MNIST names; without one the process ends."""
    mnist = os.environ.get("PARED_MNIST")
    if not mnist:
        sys.exit("PARED_MNIST must name an .npz with x_train, y_train, x_test and y_test.")
    return mnist


def trained_digits(folder: Path) -> Path:
    """The folder with `digits_cnn.pt` and `digits.npz`, trained by plain PyTorch unless they lie there."""
    if not (folder / "digits_cnn.pt").exists():
        subprocess.run([sys.executable, "-P", "-m", "pared.examples.train_digits", str(folder)], check=True)
    return folder


class Kept(dict[str, Any]):
    """Results by name, written to a folder's `results.json` as each comes, and read from there by the next run."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "results.json"
        super().__init__(json.loads(self._file.read_text()) if self._file.exists() else {})

    def __setitem__(self, name: str, result: Any) -> None:
        super().__setitem__(name, result)
        self._file.write_text(json.dumps(self, indent=1))


def write_section(name: str, text: str) -> None:
    """Put `text` between the markers of section `name`."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    before = RESULTS.read_text() if RESULTS.exists() else HEADING
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(before):
        RESULTS.write_text(pattern.sub(lambda _: section, before))
    else:
        RESULTS.write_text(f"{before.rstrip()}\n\n{section}\n")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def machine() -> str:
    """The processor and its cores, as a sentence's subject."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = re.findall(r"model name\s*: (.+)", info)
    return f"{names[0] if names else platform.processor() or platform.machine()}, {len(names) or '?'} cores"
