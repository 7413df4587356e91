"""Forks a process for each `pared` command, for `tests.support.cli`: to import what commands need takes a second.

Reads JSON lines `{"arguments", "cwd", "env", "folder"}`; the folder holds `stdin` and gets `stdout` and `stderr`.
Writes each command's exit status, negative where a signal ended it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

# What is of a command's own environment, such as the width of a terminal, is read when `pared.cli` is imported: later.
import typer.rich_utils  # noqa: F401

import pared.client
import pared.specs  # noqa: F401


def main() -> None:
    """Until end of file."""
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            os._exit(_command(request))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _command(request: dict[str, Any]) -> int:
    """Run one command in this process, and return its exit status."""
    for descriptor, (stream, flags) in enumerate(
        (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY | os.O_CREAT), ("stderr", os.O_WRONLY | os.O_CREAT))
    ):
        os.dup2(os.open(f"{request['folder']}/{stream}", flags, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["pared", *request["arguments"]]
    try:
        from pared.cli import main as pared_main

        pared_main()
        status: Any = 0
    except SystemExit as ended:
        status = ended.code
    except BaseException:  # noqa: BLE001 - as the interpreter does at the top
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else int(status is not None)


if __name__ == "__main__":
    main()
