"""Outlives the test run by a moment: ends the registered processes and folders when the run is gone, however it went.

Reads `process PID` and `folder PATH` lines on standard input, which the run holds open; at its end
(also when the run was killed with SIGKILL) all of them go.
"""

from __future__ import annotations

import contextlib
import shutil
import sys

import psutil


def main() -> None:
    """Register until end of file, then clean up."""
    roots: dict[int, psutil.Process] = {}
    folders: list[str] = []
    for line in sys.stdin:
        kind, _, value = line.rstrip("\n").partition(" ")
        if kind == "folder":
            folders.append(value)
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                roots[int(value)] = psutil.Process(int(value))
    for process in roots.values():
        kill_tree(process)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def kill_tree(process: psutil.Process) -> None:
    """SIGKILL a process and all that it started, stopped ones included."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for victim in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()


if __name__ == "__main__":
    main()
