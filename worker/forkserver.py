"""Owns how children come to be: forked, already confined, from a process that has loaded what they all need.

Importing torch costs seconds of processor time, so it is done once for a worker and not once for a job. The
fork server has the children's user and environment, knows no secret, opens no upload and ends with its
worker. Each child leaves it for good: another session, other descriptors, and the worker for a parent.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker import sandbox
from worker.sandbox import Confinement

CHILD_NAME = "pared-job"
_START_S = 120.0
_MAX_ORDER_BYTES = 1 << 16
_MESSAGES_FD = 3

# -- the worker's side --------------------------------------------------------------------------


@dataclass(frozen=True)
class Child:
    """A started child of this process. `messages` and `output` are the parent's ends of its pipes."""

    pid: int
    """Also the id of its session and its process group."""
    messages: int
    output: int

    def kill(self) -> None:
        """SIGKILL to everything in its session, wait for it, and close the pipes."""
        sandbox.kill_session(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # none is left
            while True:
                os.waitpid(-self.pid, 0)
        for fd in (self.messages, self.output):
            os.close(fd)


class ForkServer:
    """The process that children are forked from: started on first need, and again when it has died."""

    _lock = threading.Lock()  # of all servers: who adopts orphans is a matter of the whole process

    def __init__(self, command: Sequence[str], confinement: Confinement, *, threads: int) -> None:
        """Set up; starts nothing.

        Args:
            command: the program; once it has loaded what it needs, it must call `enter`.
            confinement: the level that children hold, and the user that they are.
            threads: that a child computes with.
        """
        self.confinement = confinement
        self.threads = threads
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Have it load what children need, so that the first one does not wait for that. Returns at once.

        Raises:
            OSError: it could not be started, such as when the user may not read the interpreter.
        """
        with self._lock:
            self._start()

    def child(self, folder: Path, request: dict[str, Any]) -> Child:
        """Fork a child, with its request on stdin.

        Args:
            folder: its scratch folder, from `make_scratch`.
            request: one JSON object, with `memory_bytes`, its limit; `enter` returns it there.

        Raises:
            OSError: there is no child, for the reason that the kernel or the fork server gave.
        """
        stdin, request_end = os.pipe()
        messages, child_messages = os.pipe()
        output, child_output = os.pipe()
        try:
            pid = self._fork(folder, [stdin, child_output, child_messages])
        except OSError:
            for fd in (request_end, messages, output):
                os.close(fd)
            raise
        finally:
            for fd in (stdin, child_messages, child_output):
                os.close(fd)
        os.set_blocking(messages, False)
        os.set_blocking(output, False)
        whole = request | {"level": self.confinement.level, "messages": _MESSAGES_FD, "parent": os.getpid()}
        # A child that is dead already is found by its closed pipes.
        with suppress(BrokenPipeError), os.fdopen(request_end, "wb") as file:
            file.write(json.dumps(whole).encode() + b"\n")
        return Child(pid, messages, output)

    def close(self) -> None:
        """End it. Its children live on."""
        with self._lock:
            self._end()

    def _fork(self, folder: Path, fds: list[int]) -> int:
        order = os.fsencode(folder)
        with self._lock, sandbox.adopting_orphans():
            # The second time for one that died since, such as for want of memory.
            answer = self._exchange(order, fds) or self._exchange(order, fds)
        if not answer:
            raise OSError(errno.ECHILD, "the process that children are forked from ends at once")
        said = json.loads(answer)
        if "error" in said:
            raise OSError(said["error"], os.strerror(said["error"]))
        return int(said["pid"])

    def _exchange(self, order: bytes, fds: list[int]) -> bytes:
        """Its answer; empty when it has died."""
        control = self._start()
        answer = b""
        try:
            socket.send_fds(control, [order], fds)
            answer = control.recv(_MAX_ORDER_BYTES)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except TimeoutError as error:
            raise OSError(errno.ETIMEDOUT, f"no child was forked within {_START_S:g} seconds") from error
        finally:
            if not answer:
                self._end()
        return answer

    def _start(self) -> socket.socket:
        if self._control is not None:
            return self._control
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=its.fileno(),
                    cwd="/",
                    env=_environment(self.threads),
                    start_new_session=True,
                    umask=0o077,
                    user=self.confinement.uid,
                    group=self.confinement.uid,
                    extra_groups=None if self.confinement.uid is None else [],
                )
            except OSError:
                ours.close()
                raise
        ours.settimeout(_START_S)
        self._control = ours
        return ours

    def _end(self) -> None:
        if self._control is None or self._process is None:
            return
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._control = self._process = None


def _environment(threads: int) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH") if name in os.environ}
    if site.ENABLE_USER_SITE and site.USER_BASE:
        kept["PYTHONUSERBASE"] = site.USER_BASE  # found through HOME otherwise
    kept |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return kept | {
        # Threads that spin while they wait cost five times the time where the cores are shared with other work.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HOME": "/nonexistent",  # a child's own is its scratch folder
        "USER": "pared",  # or getpass looks into /etc/passwd
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",  # same seed, same bytes
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


# -- the fork server's side ---------------------------------------------------------------------


def enter() -> dict[str, Any]:
    """Serve the worker until it ends. Returns in each child, which is then confined, with its request.

    Call it with everything imported and nothing opened; no thread survives into a child.

    Raises:
        OSError: a part of the level could not be put in place; the child must then end.
    """
    # Where memory runs out a child goes first. Once hidden, a process of another user could not say so.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    sandbox.hide_from_others()
    _serve()
    request: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sandbox.restrict(
        request["level"],
        folder=Path.cwd(),
        parent=request["parent"],
        memory_bytes=request["memory_bytes"],
    )
    return request


def _serve() -> None:
    """Fork a child for each order. Returns in the children alone."""
    control = socket.socket(fileno=os.dup(0))
    while True:
        message, fds, _, _ = socket.recv_fds(control, _MAX_ORDER_BYTES, 3)
        if not message:  # the worker has ended
            os._exit(0)
        try:
            between = os.fork()
        except OSError as error:
            _answer(control, {"error": error.errno})
        else:
            if not between:
                _fork_again(control, Path(os.fsdecode(message)), fds)
                return
            os.waitpid(between, 0)
        for fd in fds:
            os.close(fd)


def _fork_again(control: socket.socket, folder: Path, fds: list[int]) -> None:
    """Become the child. The process between ends at once, and the kernel gives its child to the worker."""
    between = os.getpid()
    try:
        os.chdir(folder)
        pid = os.fork()
    except OSError as error:
        _answer(control, {"error": error.errno})
        os._exit(1)
    if pid:
        os._exit(0)
    os.setsid()
    while os.getppid() == between:
        time.sleep(0.0005)
    sandbox.name_process(CHILD_NAME)
    os.environ["HOME"] = os.environ["TMPDIR"] = str(folder / "tmp")
    tempfile.tempdir = None  # asked for anew
    _answer(control, {"pid": os.getpid()})
    # Out of the way of the numbers that they are to have.
    stdin, output, messages = (fcntl.fcntl(fd, fcntl.F_DUPFD, 16) for fd in fds)
    for fd, number in ((stdin, 0), (output, 1), (output, 2), (messages, _MESSAGES_FD)):
        os.dup2(fd, number, inheritable=False)
    control.detach()
    for name in os.listdir("/proc/self/fd"):
        if int(name) > _MESSAGES_FD:
            with suppress(OSError):  # the one that listed them is closed again
                os.close(int(name))


def _answer(control: socket.socket, answer: dict[str, Any]) -> None:
    with suppress(OSError):  # the worker has ended, and this process with it
        control.send(json.dumps(answer).encode())
