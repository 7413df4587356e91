"""Owns probing the sandbox: a real confined child attempts what an upload must not do, and reports what was refused.

The parent plants secrets, opens sockets and looks afterwards for traces; the child attempts to reach each. The level is
what was shown by attempts, not what the kernel's version promises.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from pared import gpus
from worker import child_processes, forkserver, sandbox, seccomp
from worker.forkserver import Child, ForkServer, ServerEnded
from worker.sandbox import Confinement, Level

PROBE_TIMEOUT_S = 60.0
PLANTED = "pared-planted-secret"
_ROOM_BYTES = 1 << 16
_EXIT_S = 5.0
_TRIES = 3
_SAYS_NOTHING = {errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ECHILD}
"""Why there is no child: the machine is short of something, or somebody ended it before it was one."""

log = structlog.get_logger()

# -- the parent's side --------------------------------------------------------------------------


class NothingShown(OSError):
    """The child was ended by others, or not even forked. That says nothing about the sandbox."""


class _Unanswered(NothingShown):
    """It took too long: the machine is slow, or the child hangs."""


@dataclass(frozen=True)
class ProbeResult:
    """The confinement to use, and each attempt that got through at the levels above it."""

    confinement: Confinement
    escaped: dict[str, list[str]] = field(default_factory=dict)


def probe(folder: Path, highest: Level = "standard", *, gpu: bool | None = None) -> ProbeResult:
    """Find the strongest confinement that holds on this machine, by making every attempt under each.

    Args:
        folder: where scratch folders are made; the probe's too, since where it lies matters.
        highest: the first level to try.
        gpu: whether some children will be given the GPUs, so that the form of a level for them must hold as well; left
            out: if there are any.

    Raises:
        NothingShown: the children were ended by others, again and again.
        OSError: there is no room for the attempts, so that nothing was shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    forms = (False, True) if (bool(gpus.device_files()) if gpu is None else gpu) else (False,)
    escaped: dict[str, list[str]] = {}
    levels: tuple[Level, ...] = ("standard", "weak")
    for level in levels[levels.index(highest) :] if highest in levels else ():
        for uid in (sandbox.NOBODY, None) if os.geteuid() == 0 else (None,):
            confinement = Confinement(level, uid)
            outcomes = [_shown(folder, confinement, form) for form in forms]
            failed = {name for outcome in outcomes for name, correct in outcome.items() if not correct}
            if refused := sorted(failed & _FOR_CUDA.keys()):
                log.warning("sandbox_too_tight_for_cuda", refused=refused)
            wrong = sorted(failed - _FOR_CUDA.keys() - (set() if level == "standard" else _FILES))
            if all(outcomes) and not wrong:
                return ProbeResult(confinement, escaped)
            escaped[f"{level} as {'this user' if uid is None else uid}"] = wrong or ["the child did not run"]
    return ProbeResult(Confinement("none"), escaped)


def _shown(folder: Path, confinement: Confinement, gpu: bool) -> dict[str, bool]:
    """What `probe_level` finds, tried again where that is nothing; a child that never answers did not run."""
    for tries in range(1, _TRIES + 1):
        try:
            return probe_level(folder, confinement, gpu=gpu)
        except NothingShown as error:
            log.warning("sandbox_probe_disturbed", level=confinement.level, tries=tries, reason=str(error))
            if tries == _TRIES and not isinstance(error, _Unanswered):
                raise
    return {}


def probe_level(folder: Path, confinement: Confinement, *, gpu: bool = False) -> dict[str, bool]:
    """Make every attempt once.

    Args:
        folder: where the scratch folder is made.
        confinement: what the child is held to.
        gpu: whether as a child that may use the GPUs; there need not be any.

    Returns:
        Attempt -> whether the sandbox did as it should: refused it or, for what CUDA does to start, allowed it. Empty
        when the child did not run.

    Raises:
        NothingShown: the child was ended by others, or could not be made for want of something.
        OSError: there is no room for it in the folder: what a full disk refuses, the sandbox does not.
    """
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="probe-", ignore_cleanup_errors=True) as name,
        ExitStack() as targets,
    ):
        base = Path(name)
        base.chmod(0o711)
        scratch, outside = base / "scratch", base / "outside"
        scratch.mkdir()
        sandbox.make_scratch(scratch, confinement.uid)
        # As if careless: everybody may read and write it. Only the sandbox stands before it.
        outside.mkdir()
        outside.chmod(0o777)
        secret = outside / "secret"
        secret.write_text(PLANTED)
        secret.chmod(0o666)
        (outside / "other").touch()
        reached: list[str] = []
        request = {
            "memory_bytes": 2**30,
            "gpu": gpu,
            "outside": str(outside),
            "tcp": targets.enter_context(_tcp_target(reached)),
            # Relative to the child's folder, for a socket's address has room for 107 bytes.
            "unix": targets.enter_context(_unix_target(outside / "socket", "../outside/socket", reached)),
            "abstract": targets.enter_context(_abstract_target(f"\0pared-{os.getpid()}-{id(reached)}", reached)),
        }
        targets.enter_context(_environment_secret())
        server = ForkServer(
            [sys.executable, "-P", "-m", "worker.forkserver", "worker.sandbox_probe"], confinement, threads=1
        )
        targets.callback(server.close)
        try:
            child = server.child(scratch, request)
        except OSError as error:
            if error.by_others if isinstance(error, ServerEnded) else error.errno in _SAYS_NOTHING:
                raise NothingShown(error.errno, error.strerror) from error
            log.debug("sandbox_probe_not_started", uid=confinement.uid, reason=str(error))
            outcome = {}
        else:
            assert child is not None  # noqa: S101 - nothing calls it off
            outcome = _read(child)
        (base / "room").write_bytes(bytes(_ROOM_BYTES))
        if outcome:
            outcome["left no trace"] = (
                not reached
                and {entry.name for entry in outside.iterdir()} == {"secret", "other", "socket"}
                and secret.read_text() == PLANTED
                and secret.stat().st_mode & 0o777 == 0o666
            )
        return outcome


def _read(child: Child) -> dict[str, bool]:
    late = threading.Event()

    def end_it() -> None:
        late.set()
        child_processes.kill_session(child.pid, signal.SIGKILL)

    timer = threading.Timer(PROBE_TIMEOUT_S, end_it)
    timer.start()
    os.set_blocking(child.messages, True)
    try:
        with os.fdopen(os.dup(child.messages), "rb") as messages:
            line = messages.readline(1 << 16)
        with suppress(ValueError):
            return {str(name): bool(correct) for name, correct in json.loads(line).items()}
        if late.is_set():
            raise _Unanswered(errno.ETIMEDOUT, f"the child did not answer within {PROBE_TIMEOUT_S:g} seconds")
        if child.ended_by_others(_EXIT_S):
            raise NothingShown(errno.ECHILD, f"the child {child.how_it_ended(_EXIT_S)}")
        with os.fdopen(os.dup(child.output), "rb") as output:
            log.debug("sandbox_probe_died", output=(output.read(4000) or b"").decode(errors="replace"))
        return {}
    finally:
        timer.cancel()
        timer.join()
        child.kill()


@contextmanager
def _tcp_target(reached: list[str]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
        _check(server, "tcp", reached)


@contextmanager
def _unix_target(path: Path, address: str, reached: list[str]) -> Iterator[str]:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
            path.chmod(0o666)
            server.listen()
            yield address
            _check(server, "unix", reached)
    finally:
        os.close(folder)


@contextmanager
def _abstract_target(address: str, reached: list[str]) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        yield address
        _check(server, "abstract", reached)


def _check(server: socket.socket, kind: str, reached: list[str]) -> None:
    server.setblocking(False)
    with suppress(BlockingIOError):
        server.accept()[0].close()
        reached.append(kind)


@contextmanager
def _environment_secret() -> Iterator[None]:
    os.environ["PARED_PLANTED_SECRET"] = PLANTED
    try:
        yield
    finally:
        del os.environ["PARED_PLANTED_SECRET"]


# -- the child's side ---------------------------------------------------------------------------


def attempts_of(request: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Each attempt by name: one that raises OSError was refused, one that returns has got through."""
    outside = Path(request["outside"])
    secret = outside / "secret"
    parent = request["parent"]
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: Any) -> int:
        result: int = getattr(libc, name)(*arguments)
        if result == -1:
            raise OSError(ctypes.get_errno(), name)
        return result

    def connect(family: int, address: Any, kind: int = socket.SOCK_STREAM) -> None:
        with socket.socket(family, kind) as sock:
            sock.connect(address)

    def opened(family: int, kind: int = socket.SOCK_STREAM) -> None:
        socket.socket(family, kind).close()

    def open_wide() -> None:
        # The kernel looks at the lower half of the register; so must the filter.
        family = ctypes.c_ulong(1 << 32 | socket.AF_INET)
        os.close(call("syscall", ctypes.c_long(seccomp.number_of("socket")), family, socket.SOCK_STREAM, 0))

    def pair() -> None:
        for end in socket.socketpair():
            end.close()

    def reach(name: str, *arguments: Any) -> None:
        """Whether the kernel gets as far as to say that the descriptor is none."""
        try:
            call(name, -1, *arguments)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise

    def bind(address: str) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(address)

    def write_to(*paths: str) -> None:
        """Whether one of them opens; nothing is written."""
        refused = 0
        for path in paths:
            try:
                os.close(os.open(path, os.O_WRONLY))
            except OSError:
                refused += 1
        if refused == len(paths):
            raise PermissionError

    def be_spared() -> None:
        Path(f"/proc/self/task/{os.getpid()}/oom_score_adj").write_text("-1000")

    def listen() -> None:
        with socket.create_server(("127.0.0.1", 0)):
            pass

    def datagram() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", ("127.0.0.1", 9))

    def through_symlink() -> str:
        (Path("out") / "link").symlink_to(secret)
        return (Path("out") / "link").read_text()

    def fork() -> None:
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)

    def signal_through_a_pipe(set_owner: int, owner: int | bytes) -> None:
        reading, writing = os.pipe()
        try:
            fcntl.fcntl(reading, set_owner, owner)
            fcntl.fcntl(reading, 10, signal.SIGURG)  # F_SETSIG: one that does nothing to whoever gets it
            fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC)
            os.write(writing, b"x")
        finally:
            os.close(reading)
            os.close(writing)

    def raise_a_limit() -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
        except ValueError as error:  # how Python says EPERM here
            raise PermissionError from error

    def find_in_environment() -> None:
        if PLANTED not in str(os.environ):
            raise FileNotFoundError

    def find_descriptor() -> None:
        for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, request["messages"]}:
            with suppress(OSError):  # the one that listed them is closed again
                if not os.readlink(f"/proc/self/fd/{fd}").startswith("/proc/"):  # the sandbox's own: names alone
                    return
        raise FileNotFoundError

    hidden_memory = {
        "keep memory in a file without a name": _keep_in_a_file,
        "keep memory in a shared mapping": _keep_in_a_mapping,
    }
    attempts: dict[str, Callable[[], object]] = {
        "read a file outside": secret.read_text,
        "list a folder outside": lambda: os.listdir(outside),
        "read /etc/passwd": Path("/etc/passwd").read_text,
        "read the parent's environment": Path(f"/proc/{parent}/environ").read_bytes,
        "read the parent's memory": Path(f"/proc/{parent}/maps").read_bytes,
        "find a secret in the environment": find_in_environment,
        "create a file outside": lambda: (outside / "new").write_text("x"),
        "overwrite a file outside": lambda: secret.write_text("x"),
        "truncate a file outside": lambda: os.truncate(secret, 0),
        "delete a file outside": (outside / "other").unlink,
        "change the mode of a file outside": lambda: secret.chmod(0o600),
        "hard-link a file into the results": lambda: (Path("out") / "hard").hardlink_to(secret),
        "read through a symbolic link": through_symlink,
        "rename a file outside": lambda: secret.rename(outside / "renamed"),
        "change an installed package": lambda: Path(__file__).open("ab").close(),
        "overwrite a file outside through /proc": lambda: write_to(f"/proc/self/task/{os.getpid()}/root{secret}"),
        "write elsewhere in /proc": lambda: write_to(*(f"/proc/{name}" for name in (*_PROC, f"{parent}/comm"))),
        "be the last to go where memory runs out": be_spared,
        "open an IPv4 socket": lambda: opened(socket.AF_INET, socket.SOCK_DGRAM),
        "open an IPv4 socket by a wide number": open_wide,
        "open an IPv6 socket": lambda: opened(socket.AF_INET6),
        "open a netlink socket": lambda: opened(socket.AF_NETLINK, socket.SOCK_RAW),
        "open a socket to the hypervisor": lambda: opened(socket.AF_VSOCK),
        "open a packet socket": lambda: opened(socket.AF_PACKET, socket.SOCK_RAW),
        "open a unix socket for single messages": lambda: opened(socket.AF_UNIX, socket.SOCK_DGRAM),
        "open a pair of unix sockets": pair,
        "accept": lambda: reach("accept", None, None),
        "accept, the newer way": lambda: reach("accept4", None, None, 0),
        "connect": lambda: reach("connect", None, 0),
        "send": lambda: reach("sendto", None, 0, 0, None, 0),
        "send a message": lambda: reach("sendmsg", None, 0),
        "send messages": lambda: reach("sendmmsg", None, 0, 0),
        "make a socket among the results": lambda: bind("out/probe"),
        "make a socket in the temporary folder": lambda: bind("tmp/probe"),
        "make a socket outside": lambda: bind("../outside/probe"),
        "connect over TCP": lambda: connect(socket.AF_INET, ("127.0.0.1", request["tcp"])),
        "listen on a TCP port": listen,
        "send a datagram": datagram,
        "connect to a unix socket": lambda: connect(socket.AF_UNIX, request["unix"]),
        "connect to an abstract socket": lambda: connect(socket.AF_UNIX, request["abstract"]),
        "execute a program": lambda: subprocess.run([sys.executable, "--version"], check=False, capture_output=True),
        "fork a process": fork,
        "signal the parent": lambda: os.kill(parent, 0),
        "signal the parent through a pipe": lambda: signal_through_a_pipe(fcntl.F_SETOWN, parent),
        "signal the parent through a pipe, the newer way": lambda: signal_through_a_pipe(
            15,
            struct.pack("=ii", 1, parent),  # F_SETOWN_EX, F_OWNER_PID
        ),
        "trace the parent": lambda: call("ptrace", 0x4206, parent, None, None),  # PTRACE_SEIZE
        "make a namespace": lambda: call("unshare", 0x10000000),
        "mount a file system": lambda: call("mount", b"none", str(Path("tmp").absolute()).encode(), b"tmpfs", 0, None),
        "become root": lambda: call("setresuid", 0, 0, 0),
        "raise its own limits": raise_a_limit,
        "outlive the parent": lambda: call("prctl", 1, ctypes.c_ulong(0), 0, 0, 0),
        "use an inherited descriptor": find_descriptor,
    }
    return attempts if request["gpu"] else hidden_memory | attempts


def _listen() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(f"\0pared-probe-{os.getpid()}")
        sock.listen()


def _name_a_thread() -> None:
    refused: list[OSError] = []

    def name_it() -> None:
        try:
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("probe")
        except OSError as error:
            refused.append(error)

    thread = threading.Thread(target=name_it)
    thread.start()
    thread.join()
    if refused:
        raise refused[0]


def _keep_in_a_file() -> None:
    os.close(os.memfd_create("probe"))


def _keep_in_a_mapping() -> None:
    mmap.mmap(-1, mmap.PAGESIZE).close()


_FOR_CUDA: dict[str, Callable[[], object]] = {
    "let CUDA listen on an abstract unix socket": _listen,
    "let CUDA name a thread": _name_a_thread,
    "let CUDA keep memory in a file without a name": _keep_in_a_file,
    "let CUDA keep memory in a shared mapping": _keep_in_a_mapping,
}
"""What CUDA does to start. It counts for no level: where it is refused the GPU is of no use, and nothing is unsafe."""

_PROC = (
    "self/oom_score_adj", "self/comm", "self/coredump_filter", "self/clear_refs", "self/timerslack_ns",
    "self/autogroup", "self/mem", "self/attr/current", "sys/kernel/core_pattern", "sys/vm/overcommit_memory",
    "sys/net/ipv4/ip_forward", "sysrq-trigger",
)  # fmt: skip

_FILES = {
    "read a file outside", "list a folder outside", "read /etc/passwd", "create a file outside",
    "overwrite a file outside", "overwrite a file outside through /proc", "delete a file outside",
    "rename a file outside", "change an installed package", "write elsewhere in /proc",
    "make a socket among the results", "make a socket in the temporary folder", "make a socket outside",
    "left no trace",
}  # fmt: skip
"""What only Landlock guards: without it a child may touch what its user may."""


def is_refused(attempt: Callable[[], object]) -> bool:
    """Whether an attempt fails."""
    try:
        attempt()
    except OSError:
        return True
    return False


def main() -> None:
    """Confine this process, make every attempt, and report to the parent which the sandbox refused."""
    request = forkserver.enter()
    outcome = {name: is_refused(attempt) for name, attempt in attempts_of(request).items()}
    if request["gpu"]:
        outcome |= {name: not is_refused(need) for name, need in _FOR_CUDA.items()}
    os.write(request["messages"], json.dumps(outcome).encode() + b"\n")
