"""Runs `pared` as a command: in a process of its own, forked from one that has loaded what all commands import."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LIMIT_S = 120
_server: subprocess.Popen[str] | None = None


def run_pared(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of the installed `pared`, with its output captured as text."""
    server = _started()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory(prefix="pared-cli-") as name:
        folder = Path(name)
        (folder / "stdin").write_text(stdin)
        request = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env), "folder": name}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], LIMIT_S)[0]:
            _end()
        line = server.stdout.readline()
        assert line, f"pared {' '.join(arguments)} did not end within {LIMIT_S} s"
        out, err = ((folder / stream).read_text() for stream in ("stdout", "stderr"))
        return subprocess.CompletedProcess(["pared", *arguments], json.loads(line), out, err)


def _started() -> subprocess.Popen[str]:
    """The process that is forked; it ends with this one, whose end of the pipe closes."""
    global _server  # noqa: PLW0603 - one for all tests of this process
    if _server is None or _server.poll() is not None:
        command = [sys.executable, str(Path(__file__).with_name("cli_forks.py"))]
        _server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
    return _server


def _end() -> None:
    """End it and the command that it runs."""
    if _server is not None:
        subprocess.run(["pkill", "-KILL", "-s", str(_server.pid)], check=False)
