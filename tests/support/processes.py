"""Child processes of a test run: started in their own session, logged to a file, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.support.forks import Fork, fork
from tests.support.guard import kill_tree

T = TypeVar("T")


WITHOUT_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of what the tests start, which speaks none: to load the certificates that are trusted takes a while."""
PATIENCE_S = 240
"""How long tests wait for what must come: machines are slow, and other tests run beside."""


def wait_for(condition: Callable[[], T], what: str, limit_s: float = PATIENCE_S, every_s: float = 0.1) -> T:
    """The first true value of `condition`.

    Raises:
        AssertionError: it was not true within `limit_s`; the message says `what`.
    """
    until = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"not within {limit_s:g} s: {what} (last: {value!r})")
        time.sleep(every_s)


@contextlib.contextmanager
def meanwhile(do: Callable[[], object], every_s: float) -> Iterator[None]:
    """Have it done in a thread, over and over, while the block lasts."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every_s):
            do()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Process:
    """One running command, with the faults that a test can put on it and on all it started."""

    def __init__(self, popen: subprocess.Popen[bytes] | Fork, command: list[str], name: str, log: Path) -> None:
        """Made by `Processes.start` and `Processes.fork`."""
        self.popen, self.command, self.name, self.log = popen, command, name, log

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.popen.poll() is None

    @property
    def psutil(self) -> psutil.Process:
        """To look at memory and children."""
        return psutil.Process(self.popen.pid)

    def tree(self) -> list[psutil.Process]:
        """It and all that it started, parents first."""
        try:
            return [self.psutil, *self.psutil.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """SIGKILL to it and all that it started, as a machine that loses power."""
        kill_tree(self.psutil)
        self.popen.wait(10)

    def kill_alone(self) -> None:
        """SIGKILL to the process itself only; what it started must notice by itself."""
        self.popen.kill()
        self.popen.wait(10)

    def pause(self, database: Path | None = None) -> None:
        """SIGSTOP to it and all that it started.

        Args:
            database: an SQLite file that it must not be writing to: nobody else could write then.
        """
        while True:
            for process in self.tree():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            if database is None or _can_be_written(database):
                return
            self.go_on()
            time.sleep(0.05)

    def go_on(self) -> None:
        """SIGCONT after `pause`."""
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def stop(self, limit_s: float = PATIENCE_S) -> int:
        """SIGTERM, and its exit status. Killed, and a failure, if it does not stop in time."""
        self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {limit_s} s of SIGTERM\n{self.tail()}") from None

    def records(self, **fields: Any) -> list[dict[str, Any]]:
        """The JSON lines that it logged so far with these fields."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [record for record in records if record.items() >= fields.items()]

    def tail(self, lines: int = 40) -> str:
        """The end of what it wrote."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- {self.name} ---\n" + "\n".join(text.splitlines()[-lines:])


class Processes:
    """All processes of a run. Ended with `close`, or by the guard when the run itself was killed."""

    def __init__(self) -> None:
        """Starts the guard."""
        self.all: list[Process] = []
        self._guard = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("guard.py"))],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def start(
        self,
        command: list[str],
        *,
        name: str,
        log: Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> Process:
        """Start `command` in its own session, its output appended to `log`."""
        with log.open("ab") as output:
            popen = subprocess.Popen(
                command,
                cwd=cwd,
                env=None if env is None else dict(env),
                user=user,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._kept(Process(popen, command, name, log))

    def fork(
        self, module: str, arguments: list[str], *, name: str, log: Path, cwd: Path, env: Mapping[str, str]
    ) -> Process:
        """As `start`, for `main()` of a module, in a process forked from one that has loaded what it imports."""
        forked = fork(module, arguments, cwd=cwd, env=env, files=(os.devnull, log, log))
        return self._kept(Process(forked, [module.partition(".")[0], *arguments], name, log))

    def remove_at_end(self, folder: Path) -> None:
        """Delete this folder when the run is over."""
        self._tell(f"folder {folder}")

    def close(self) -> None:
        """End every process and wait for the guard to have removed the folders."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(PATIENCE_S)  # hundreds of databases are gigabytes
        for process in self.all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(5)

    def _kept(self, process: Process) -> Process:
        self._tell(f"process {process.popen.pid}")
        self.all.append(process)
        return process

    def _tell(self, line: str) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.write(line + "\n")
        self._guard.stdin.flush()


def environment(**values: str) -> dict[str, str]:
    """This process's environment, of `PARED_` settings only that of how long latency is measured, and these values."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("PARED_") or name == "PARED_LATENCY_S"
    }
    return kept | values


def _can_be_written(database: Path) -> bool:
    with contextlib.closing(sqlite3.connect(database, timeout=1, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True
