"""Owns the sandbox's Landlock rules: which files a child may read and write, and that it reaches no TCP port."""

from __future__ import annotations

import errno
import os
import site
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from pared import gpus
from worker.system_calls import last_error, libc

_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FS_TRUNCATE, _FS_IOCTL_DEV = 1 << 14, 1 << 15
_READ = _FS_READ_FILE | _FS_READ_DIR
_ON_FILES = _FS_EXECUTE | _FS_WRITE_FILE | _FS_READ_FILE | _FS_TRUNCATE | _FS_IOCTL_DEV
# Remove and make files and folders, truncate, and rename from one folder to another.
_WRITE = _READ | _FS_WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13 | _FS_TRUNCATE
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture


def abi_version() -> int:
    """The version of Landlock this kernel speaks; 0: none."""
    return max(0, int(libc.syscall(_CREATE_RULESET, None, 0, 1)))


def confine_files(folder: Path, *, gpu: bool, card: int | None) -> None:
    """Leave this process its scratch folder and what it needs to compute, for good; TCP and signals where Landlock can.

    Args:
        folder: the scratch folder.
        gpu: whether it may use the GPUs.
        card: N of /dev/nvidiaN, the only one whose file it may open; None: those of all.

    Raises:
        OSError: this kernel has no Landlock, or refuses.
    """
    abi = abi_version()
    if not abi:
        raise OSError(errno.EOPNOTSUPP, "this kernel has no Landlock")
    # Everything an ABI knows is handled, which means denied where no rule allows it.
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    network = 0b11 if abi >= 4 else 0  # TCP bind and connect
    scopes = 0b11 if abi >= 6 else 0  # abstract unix sockets and signals
    attributes = struct.pack("=QQQ", handled, network, scopes)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        raise last_error("landlock_create_ruleset")
    for path in _readable(gpu=gpu):
        _allow(ruleset, path, _READ & handled)
    _allow(ruleset, folder / "in", _READ & handled, needed=True)
    for name in ("out", "checkpoints", "tmp"):
        _allow(ruleset, folder / name, _WRITE & handled, needed=True)
    _allow(ruleset, Path(os.devnull), (_FS_READ_FILE | _FS_WRITE_FILE) & handled)
    if gpu:
        for path in gpus.device_files(card):
            _allow(ruleset, path, (_FS_READ_FILE | _FS_WRITE_FILE | _FS_IOCTL_DEV) & handled)
        # CUDA names its threads, through task/<thread>/comm, and does not start where it may not. The rule is taken
        # here, in the child, so it holds for its own threads. What else lies there is guarded by the kernel: see
        # docs/decisions/0012-what-a-gpu-adds-to-the-sandbox.md.
        _allow(ruleset, Path("/proc/self/task"), (_FS_WRITE_FILE | _FS_TRUNCATE) & handled)
    if libc.syscall(_RESTRICT_SELF, ruleset, 0):
        raise last_error("landlock_restrict_self")
    os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int, *, needed: bool = False) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        if needed:
            raise
        return  # what is not there, or not ours to see, needs no rule
    try:
        if not path.is_dir():
            rights &= _ON_FILES
        rule = struct.pack("=Qi", rights, fd)
        if libc.syscall(_ADD_RULE, ruleset, 1, rule, 0):
            raise last_error(f"landlock_add_rule {path}")
    finally:
        # A rule is tied to an inode. Those of /proc are made anew when memory was short and nobody held them, and
        # the rule is lost with them: such a descriptor stays open for as long as the process lives.
        if not path.is_relative_to("/proc"):
            os.close(fd)


def _readable(*, gpu: bool) -> Iterable[Path]:
    """The interpreter, the installed packages and the system's libraries; no configuration, nobody's data."""
    import pared
    import worker

    yield from (
        Path(entry) for entry in {sys.prefix, sys.base_prefix, *site.getsitepackages(), site.USER_SITE} if entry
    )
    # The packages themselves, not the folder they lie in: in a checkout that also holds the data.
    yield from (Path(entry) for package in (pared, worker) for entry in package.__path__)
    yield from (Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib"), Path("/lib"), Path("/lib64"))
    yield from (Path("/etc/ld.so.cache"), Path("/proc/self"), Path("/proc/cpuinfo"), Path("/proc/meminfo"))
    yield from (Path("/sys/devices/system/cpu"), Path("/sys/devices/system/node"))
    yield from (Path("/dev/urandom"), Path("/dev/random"))
    if gpu:
        yield from (
            Path("/proc/driver/nvidia"),
            Path("/sys/module/nvidia"),
            Path("/sys/bus/pci"),
            Path("/usr/local/cuda"),
        )
        yield from (Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry)
