"""Owns the sandbox: the restrictions that a child process puts on itself before it opens anything.

A TorchScript file is a program, so whoever opens one runs it. The child therefore gives up, for good
and before it reads a byte of the upload, everything a compression job does not need: other files,
the network, other programs, other processes and the privileges of root. Landlock guards the file
system, TCP ports and signals; seccomp guards the rest of the kernel's surface; rlimits bound what is left.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from worker import landlock, seccomp
from worker.system_calls import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, last_error, libc, prctl

Level = Literal["standard", "weak", "none"]
"""`standard`: Landlock and seccomp; `weak`: seccomp alone; `none`: neither could be shown to hold."""

MAX_FILE_BYTES = 64 * 2**30
MAX_OPEN_FILES = 1024
_MAX_THREADS = 1024

# -- the parent's side --------------------------------------------------------------------------


@dataclass(frozen=True)
class Confinement:
    """What this machine can hold a child to, as shown by the sandbox probe."""

    level: Level
    uid: int | None = None
    """The unprivileged user that children become; None: they keep the worker's."""

    def in_words(self) -> str:
        """For logs and for the person who follows a job."""
        guards = {"standard": f"Landlock {landlock.abi_version()}, seccomp, ", "weak": "seccomp, ", "none": ""}[
            self.level
        ]
        user = f"as user {self.uid}" if self.uid is not None else "as the worker's user"
        return f"{self.level} ({guards}{user})"


def make_scratch(folder: Path, uid: int | None) -> None:
    """The folders of one child: it reads `in`, and writes `out`, `checkpoints` and `tmp`."""
    folder.chmod(0o711 if uid is not None else 0o700)
    for name in ("in", "out", "checkpoints", "tmp"):
        (folder / name).mkdir(mode=0o700)
        if uid is not None and name != "in":
            os.chown(folder / name, uid, uid)
    if uid is not None:
        (folder / "in").chmod(0o755)


# -- the child's side ---------------------------------------------------------------------------


def restrict(
    level: Level,
    *,
    folder: Path,
    parent: int,
    memory_bytes: int,
    file_bytes: int = MAX_FILE_BYTES,
    gpu: bool,
    card: int | None = None,
) -> None:
    """Confine this process for good.

    Args:
        level: what must hold; anything that fails raises.
        folder: the scratch folder: `in` stays readable; `out`, `checkpoints` and `tmp` writable.
        parent: the process that this one must not outlive.
        memory_bytes: the job's memory limit.
        file_bytes: how long a file of the job's may become, sparse ones too.
        gpu: whether it may use the GPUs, with the few rights more that CUDA does not start without.
        card: N of /dev/nvidiaN, the only one whose file it may open; None: those of all.

    Raises:
        OSError: a part of the level could not be put in place.
        RuntimeError: threads run already, which Landlock would leave unconfined, or the parent is gone.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("the sandbox must be entered before the first thread starts")
    _end_with(parent)
    _limit_resources(memory_bytes, min(file_bytes, MAX_FILE_BYTES), gpu=gpu)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _drop_capabilities()
    if level == "standard":
        landlock.confine_files(folder, gpu=gpu, card=card)
    if level != "none":
        seccomp.refuse_system_calls(gpu=gpu)


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, however that ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Meanwhile, this process becomes the parent of every process below it whose own parent ends."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def name_process(name: str) -> None:
    """What `ps` and `top` call this process; at most 15 bytes."""
    prctl(_PR_SET_NAME, ctypes.cast(ctypes.c_char_p(name.encode()), ctypes.c_void_p).value or 0)


def hide_from_others() -> None:
    """Keep this process's memory and environment from other processes of the same user."""
    prctl(PR_SET_DUMPABLE, 0)


def _end_with(parent: int) -> None:
    end_with_parent()
    if os.getppid() != parent:
        raise RuntimeError("the parent ended before the sandbox was ready")


def _limit_resources(memory_bytes: int, file_bytes: int, *, gpu: bool) -> None:
    # The exact limit is the parent's watch over resident memory. This one stops a single huge
    # allocation between two looks; CUDA reserves far more address space than it uses.
    data = resource.RLIM_INFINITY if gpu else memory_bytes + 4 * 2**30
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: data,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if os.getuid() == NOBODY:
        # Counted over all processes of a user, so only of use for one that runs nothing else.
        limits[resource.RLIMIT_NPROC] = _MAX_THREADS
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        bound = (
            limit if hard == resource.RLIM_INFINITY else hard if limit == resource.RLIM_INFINITY else min(limit, hard)
        )
        resource.setrlimit(kind, (bound, bound))


NOBODY = 65534

_PR_SET_NAME, _PR_CAPBSET_DROP = 15, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 36, 38, 47


def _drop_capabilities() -> None:
    """Root without capabilities is an ordinary user that happens to own root's files."""
    for capability in range(64):
        with suppress(OSError):  # unknown to this kernel, or not ours to drop
            prctl(_PR_CAPBSET_DROP, capability)
    with suppress(OSError):
        prctl(_PR_CAP_AMBIENT, 4)  # clear all
    header = struct.pack("=Ii", 0x20080522, 0)
    if libc.capset(header, struct.pack("=6I", *[0] * 6)):
        raise last_error("capset")
