"""Runs `pared` and Celery as commands: in processes of their own, forked from one that has loaded what they import."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

LIMIT_S = 120
ROOT = Path(__file__).parents[2]


class Fork:
    """A forked command, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        """Made by `fork`."""
        self.pid, self._ended = pid, threading.Event()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status; None: it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        if not self._ended.wait(timeout) or self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def end(self, status: int) -> None:
        """Called with the exit status by whoever reads it."""
        self.returncode = status
        self._ended.set()


class _Server:
    """The process that is forked; it ends with this one, whose end of the pipe closes."""

    def __init__(self, loaded: Sequence[str]) -> None:
        """Args: loaded: modules that it loads beside those that all commands need."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server", *loaded],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._forks: dict[int, Fork] = {}
        self._started = threading.Condition()
        self._last: Fork | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def fork(self, request: dict[str, object]) -> Fork:
        """Start a command; one at a time, for the answers name no request."""
        assert self.process.stdin is not None
        with self._started:
            self._last = None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            assert self._started.wait_for(lambda: self._last, LIMIT_S), "the fork server does not answer"
            assert self._last is not None
            return self._last

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            what, *numbers = line.split()
            if what == "started":
                with self._started:
                    self._last = self._forks[int(numbers[0])] = Fork(int(numbers[0]))
                    self._started.notify_all()
            else:
                self._forks.pop(int(numbers[0])).end(int(numbers[1]))


_servers: dict[Sequence[str], _Server] = {}
"""By the modules that they have loaded more than others; all tests of this process share them."""


def fork(
    module: str,
    arguments: Sequence[str],
    *,
    cwd: Path | str,
    env: Mapping[str, str],
    files: Sequence[Path | str],
    loaded: tuple[str, ...] = (),
) -> Fork:
    """Start `main()` of a module as a command, in a session of its own.

    Args:
        files: standard input, output and error; the last two are appended to.
        loaded: modules that several commands of the tests import, and others do not.
    """
    server = _servers.get(loaded)
    if server is None or server.process.poll() is not None:
        server = _servers[loaded] = _Server(loaded)
    named = {"module": module, "arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}
    return server.fork(named | {"files": [str(file) for file in files]})


def run_pared(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: str = "",
    loaded: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` of the installed `pared`, with its output captured as text; `loaded` as of `fork`."""
    with tempfile.TemporaryDirectory(prefix="pared-cli-") as name:
        typed, out, err = (Path(name, stream) for stream in ("stdin", "stdout", "stderr"))
        typed.write_text(stdin)
        started = fork("pared.cli", arguments, cwd=cwd, env=env, files=(typed, out, err), loaded=loaded)
        try:
            status = started.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            subprocess.run(["pkill", "-KILL", "-s", str(started.pid)], check=False)
            raise AssertionError(f"pared {' '.join(arguments)} did not end within {LIMIT_S} s") from None
        return subprocess.CompletedProcess(["pared", *arguments], status, out.read_text(), err.read_text())


# Reads nothing of the installed packages: it starts in milliseconds.
_COMMAND = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({address!r})
    where = {{"pid": os.getpid(), "cwd": os.getcwd(), "env": dict(os.environ)}}
    asked.sendall(json.dumps(where | {{"arguments": sys.argv[1:]}}).encode() + b"\\n")
    sys.exit(int(asked.makefile().readline() or 1))
"""


@contextlib.contextmanager
def pared_for_shells() -> Iterator[Path]:
    """A folder for the PATH of shells, with a `pared` that is forked as by `run_pared`.

    It has the streams, folder and environment of the shell that calls it.
    """
    with tempfile.TemporaryDirectory(prefix="pared-cli-") as folder:
        address, command = str(Path(folder, "socket")), Path(folder, "pared")
        command.write_text(_COMMAND.format(python=sys.executable, address=address))
        command.chmod(0o755)
        with socketserver.ThreadingUnixStreamServer(address, _Calls) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            try:
                yield Path(folder)
            finally:
                server.shutdown()


class _Calls(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        asked = json.loads(self.rfile.readline())
        files = tuple(f"/proc/{asked['pid']}/fd/{number}" for number in range(3))
        status = fork("pared.cli", asked["arguments"], cwd=asked["cwd"], env=asked["env"], files=files).wait()
        self.wfile.write(f"{status if status >= 0 else 128 - status}\n".encode())
