"""Owns `RESULTS.md`: each benchmark rewrites its own section, and leaves the others'."""

from __future__ import annotations

import platform
import re
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADING = "# Results\n\nWritten by the benchmarks in this folder, each its own section.\n"


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
