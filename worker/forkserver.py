"""Owns starting children: they are forked, and then confined, from a process that has loaded what they all need.

Importing torch costs seconds of processor time, so it is done once for a worker and not once for a job. The
fork server has the children's user and environment, knows no secret, opens no upload and ends with its
worker. Each child leaves it for good: another session, other descriptors, and the worker for a parent.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pared import gpus
from pared.gpus import VISIBLE
from worker import child_processes, sandbox
from worker.sandbox import Confinement

CHILD_NAME = "pared-job"
_POLL_S = 0.1
_FORK_TIMEOUT_S = 600.0
_ANSWER = 3  # among the descriptors of an order
_MESSAGES_FD = 3
_BY_OTHERS = {signal.SIGKILL, signal.SIGTERM}
"""What nothing does to itself: the kernel where memory is short, or a person, ended it."""
MOST_SHARED = 128
"""Descriptors that a child may have in common with others."""

# -- the worker's side --------------------------------------------------------------------------


@dataclass(frozen=True)
class Child:
    """A started child of this process. `messages` and `output` are the parent's ends of its pipes."""

    pid: int
    """Also the id of its session and its process group."""
    messages: int
    output: int

    def how_it_ended(self, timeout_s: float) -> str | None:
        """How the child ended, in words; None: it lives. The child is not reaped, so its process id stays its own."""
        status = self.status(timeout_s)
        if status is None:
            return None
        if status >= 0:
            return f"ended with exit status {status}"
        hint = " (often: the machine has no memory left)" if -status == signal.SIGKILL else ""
        return f"was ended by {_signal_name(-status)}{hint}"

    def ended_by_others(self, timeout_s: float) -> bool:
        """Whether the child ended, and for nothing that it did itself, as far as its status tells."""
        status = self.status(timeout_s)
        return status is not None and -status in _BY_OTHERS

    def status(self, timeout_s: float) -> int | None:
        """The exit status of the child, or −N where signal N ended it; None: it lives. It is not reaped."""
        until = time.monotonic() + timeout_s
        while True:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info:
                return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
            if time.monotonic() >= until:
                return None
            time.sleep(_POLL_S / 2)

    def kill(self) -> None:
        """SIGKILL to everything in its session, wait for it, and close the pipes."""
        child_processes.kill_session(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # none is left
            while True:
                os.waitpid(-self.pid, 0)
        for fd in (self.messages, self.output):
            os.close(fd)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class ServerEnded(OSError):
    """There is no child, for the process that children are forked from has ended."""

    def __init__(self, status: int) -> None:
        """Args: status: as of `subprocess.Popen`."""
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        super().__init__(errno.ECHILD, f"the process that children are forked from ended with {how}")
        self.by_others = -status in _BY_OTHERS


class ForkServer:
    """The process that children are forked from: started on first need, and again when it has died."""

    _lock = threading.Lock()  # of all servers: who adopts orphans is a matter of the whole process

    def __init__(
        self, command: Sequence[str], confinement: Confinement, *, threads: int, gpu: str | None = None
    ) -> None:
        """Set up; starts nothing.

        Args:
            command: the program; once it has loaded what it needs, it must call `enter`.
            confinement: the level that children hold, and the user that they are.
            threads: that a child computes with.
            gpu: the one that children see, as `CUDA_VISIBLE_DEVICES` names it; empty: none; None: what this process
                sees.
        """
        self.confinement = confinement
        self.threads = threads
        self.gpu = gpu
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

    def child(
        self,
        folder: Path,
        request: dict[str, Any],
        stop: Callable[[], bool] = lambda: False,
        shared: Sequence[int] = (),
    ) -> Child | None:
        """Fork a child, with its request on stdin.

        Args:
            folder: its scratch folder, from `make_scratch`.
            request: one JSON object, with `memory_bytes`, its limit, where wanted `file_bytes`, that of each file that
                it writes, and `gpu`, whether it may use the GPUs (where it
                does not say so: if there are any), of which `card` may name one; `enter` returns it there.
            stop: whether it is no longer wanted; asked while the server still loads.
            shared: descriptors that it has in common with other children; `request["shared"]` says which they are
                there.

        Returns:
            The child, or None where `stop` came first.

        Raises:
            OSError: there is no child, for the reason that the kernel or the fork server gave.
        """
        default = {"gpu": bool(gpus.device_files())}
        fixed = {
            "level": self.confinement.level,
            "messages": _MESSAGES_FD,
            "parent": os.getpid(),
            "shared": [_MESSAGES_FD + 1 + index for index in range(len(shared))],
        }
        line = json.dumps(default | request | fixed).encode() + b"\n"
        with self._lock:
            had_started = self._process is not None
            try:
                return self._ask(folder, line, stop, shared)
            except ServerEnded:
                # Since the last child, such as for want of memory; one that ends while it loads would do so again.
                if not had_started:
                    raise
                return None if stop() else self._ask(folder, line, stop, shared)

    def close(self) -> None:
        """End it. Its children live on."""
        with self._lock:
            self._end()

    def _ask(self, folder: Path, request: bytes, stop: Callable[[], bool], shared: Sequence[int]) -> Child | None:
        with ExitStack() as for_child, ExitStack() as ours, ExitStack() as theirs, sandbox.adopting_orphans():
            stdin, request_end = _pipe(theirs, ours)
            messages, child_messages = _pipe(for_child, theirs)
            output, child_output = _pipe(for_child, theirs)
            answer, child_answer = _pipe(ours, theirs)
            scratch_folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            theirs.callback(os.close, scratch_folder)
            fds = [stdin, child_output, child_messages, child_answer, scratch_folder, *shared]
            with suppress(BrokenPipeError, ConnectionResetError):  # told by the answer that does not come
                socket.send_fds(self._start(), [b"fork"], fds)
            theirs.close()
            reply = self._read_answer(answer, stop)
            if reply is None:
                return None
            child = Child(self._pid_in(reply), messages, output)
            os.set_blocking(messages, False)
            os.set_blocking(output, False)
            # A child that is dead already is found by its closed pipes.
            with suppress(BrokenPipeError), os.fdopen(request_end, "wb", closefd=False) as file:
                file.write(request)
            for_child.pop_all()
            return child

    def _read_answer(self, answer: int, stop: Callable[[], bool]) -> bytes | None:
        """The answer, whole once nobody holds its other end; None: `stop` came first."""
        reply = b""
        until = time.monotonic() + _FORK_TIMEOUT_S
        while True:
            if select.select([answer], [], [], _POLL_S)[0]:
                part = os.read(answer, 1 << 10)
                if not part:
                    return reply
                reply += part
            elif stop():
                return None
            elif time.monotonic() > until:
                self._end()
                raise OSError(errno.ETIMEDOUT, f"no child was forked within {_FORK_TIMEOUT_S:g} seconds")

    def _pid_in(self, reply: bytes) -> int:
        match reply.split():
            case [*_, pid, b"ready"]:
                return int(pid)
            case [b"error", number]:
                raise OSError(int(number), os.strerror(int(number)))
            case [pid]:
                with suppress(ChildProcessError):
                    os.waitpid(int(pid), 0)
                raise OSError(errno.ECHILD, "the child ended before it began")
        if (status := self._status_of_ended()) is not None:
            raise ServerEnded(status)
        raise OSError(errno.ECHILD, "the child was ended before it was forked")

    def _status_of_ended(self) -> int | None:
        """The fork server's exit status, and forget it; None: it lives."""
        assert self._process is not None  # noqa: S101 - it has been asked
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(1)
            self._end()
            return status
        return None

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
                    env=_environment(self.threads, self.gpu),
                    start_new_session=True,
                    umask=0o077,
                    user=self.confinement.uid,
                    group=self.confinement.uid,
                    extra_groups=None if self.confinement.uid is None else [],
                )
            except OSError:
                ours.close()
                raise
        self._control = ours
        return ours

    def _end(self) -> None:
        if self._control is None or self._process is None:
            return
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._control = self._process = None


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """A new pipe, whose ends are closed with these stacks."""
    reading, writing = os.pipe()
    reader.callback(os.close, reading)
    writer.callback(os.close, writing)
    return reading, writing


def _environment(threads: int, gpu: str | None) -> dict[str, str]:
    names = (VISIBLE, "CUDA_DEVICE_ORDER", "LD_LIBRARY_PATH", "PARED_LATENCY_S")
    passed = {name: os.environ[name] for name in names if name in os.environ}
    if gpu is not None:
        passed[VISIBLE] = gpu
    if site.ENABLE_USER_SITE and site.USER_BASE:
        passed["PYTHONUSERBASE"] = site.USER_BASE  # found through HOME otherwise
    if os.environ.get("PYTHONPATH"):  # where pared is, in a checkout that nobody installed
        passed["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, os.environ["PYTHONPATH"].split(os.pathsep)))
    passed |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return passed | {
        # Threads that spin for long while they wait cost many times the time where others are at work on the cores;
        # those that do not spin at all make small models up to five times slower than their users will see them.
        "GOMP_SPINCOUNT": "2000",
        "HOME": "/nonexistent",  # a child's own is its scratch folder
        "USER": "pared",  # or getpass looks into /etc/passwd
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",  # same seed, same bytes
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


# -- the fork server's side ---------------------------------------------------------------------


def main() -> None:
    """Load the program that the command line names, and let it serve.

    Out of sight first: what it loads takes seconds, and whoever could write into its memory would write into that of
    every child.
    """
    _hide()
    gc.disable()  # nothing that is loaded goes again, and to look for it takes half a second
    importlib.import_module(sys.argv[1]).main()


def enter() -> dict[str, Any]:
    """Serve the worker until it ends. Returns in each child, which is then confined, with its request.

    Call it with everything imported and nothing opened; no thread survives into a child.

    Raises:
        OSError: a part of the level could not be put in place; the child must then end.
    """
    _hide()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by some who start services, and then not to be waited for
    sys.stdout.flush()
    gc.freeze()  # or each collection in a child would walk through all that was loaded, and copy its pages
    gc.enable()
    _serve()
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)  # no longer wanted
    request: dict[str, Any] = json.loads(line)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if not request["gpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that torch does not go looking for what is out of reach
    sandbox.restrict(
        request["level"],
        folder=Path(),
        parent=request["parent"],
        memory_bytes=request["memory_bytes"],
        file_bytes=request.get("file_bytes", sandbox.MAX_FILE_BYTES),
        gpu=request["gpu"],
        card=request.get("card"),
    )
    return request


def _hide() -> None:
    # Where memory runs out a child goes first. Once hidden, a process of another user could not say so.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    sandbox.hide_from_others()


def _serve() -> None:
    """Fork a child for each order. Returns in the children alone."""
    control = socket.socket(fileno=os.dup(0))
    while True:
        order, fds, _, _ = socket.recv_fds(control, 16, 5 + MOST_SHARED)
        if not order:  # the worker has ended
            os._exit(0)
        try:
            between = os.fork()
        except OSError as error:
            _answer(fds[_ANSWER], f"error {error.errno}")
        else:
            if not between:
                control.detach()  # closed with all that is not the child's, and not once more later
                _fork_again(*fds)
                return
            os.waitpid(between, 0)
        for fd in fds:
            os.close(fd)


def _fork_again(stdin: int, output: int, messages: int, answer: int, folder: int, *shared: int) -> None:
    """Become the child. The process between ends at once, and the kernel gives its child to the worker."""
    between = os.getpid()
    try:
        os.fchdir(folder)  # by its descriptor: the way there may be closed to this user
        pid = os.fork()
    except OSError as error:
        _answer(answer, f"error {error.errno}")
        os._exit(1)
    if pid:
        _answer(answer, f"{pid} ")
        os._exit(0)
    os.setsid()
    while os.getppid() == between:
        time.sleep(0.0005)
    sandbox.name_process(CHILD_NAME)
    os.environ["HOME"] = os.environ["TMPDIR"] = os.path.join(os.getcwd(), "tmp")
    tempfile.tempdir = None  # asked for anew
    _answer(answer, f"{os.getpid()} ready")
    own = {stdin: (0,), output: (1, 2), messages: (_MESSAGES_FD,)}
    own |= {fd: (_MESSAGES_FD + 1 + index,) for index, fd in enumerate(shared)}
    # Out of the way of the numbers that they are to have.
    beyond = _MESSAGES_FD + 1 + len(shared)
    for fd, numbers in [(fcntl.fcntl(fd, fcntl.F_DUPFD, beyond), numbers) for fd, numbers in own.items()]:
        for number in numbers:
            os.dup2(fd, number, inheritable=False)
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= beyond:
            with suppress(OSError):  # the one that listed them is closed again
                os.close(int(name))


def _answer(answer: int, text: str) -> None:
    with suppress(OSError):  # the worker has ended, or waits no longer
        os.write(answer, text.encode())


if __name__ == "__main__":
    main()
