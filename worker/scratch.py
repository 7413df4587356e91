"""Owns the scratch folders of jobs: made for one child, and gone with it, also after its worker was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker import sandbox

_PREFIX = "job-"


@contextmanager
def scratch(root: Path, uid: int | None) -> Iterator[Path]:
    """A fresh folder with its `in`, `out`, `checkpoints` and `tmp`, removed at the end of the block.

    Args:
        root: where this machine's scratch folders lie; those of workers that died are removed first.
        uid: the user that the child becomes.
    """
    root.mkdir(parents=True, exist_ok=True)
    for entry in root.glob(f"{_PREFIX}*"):
        _remove_abandoned(entry)
    folder, lock = _make(root)
    try:
        sandbox.make_scratch(folder, uid)
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def written_bytes(folder: Path) -> int:
    """Bytes on disk that a child has written."""
    total = 0
    for name in ("out", "checkpoints", "tmp"):
        for parent, _, files in os.walk(folder / name):
            for file in files:
                with suppress(OSError):  # gone meanwhile, or nested so deep that no path leads there
                    total += os.lstat(os.path.join(parent, file)).st_blocks * 512
    return total


def _make(root: Path) -> tuple[Path, int]:
    """A new folder, and the lock that says its worker lives: the kernel lets go of it with the process."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=root, prefix=_PREFIX))
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another worker took it for abandoned before it was locked
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                return folder, lock
        except BlockingIOError:
            pass
        os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(folder)
    except BlockingIOError:
        return  # its worker lives
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    # A child can make folders that not even their owner may enter.
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(parent, name)
            with suppress(OSError):  # nested so deep that no path leads there
                if not path.is_symlink():
                    path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
