"""Owns the scratch folders of jobs: made for one child, and gone with it, also after its worker was killed."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from worker import child_files, sandbox
from worker.child_files import Written

WRITABLE = ("out", "checkpoints", "tmp")
"""The folders in which a child may write."""
_PREFIX = "job-"
_REMOVE_S = 10.0
"""How long a job may take to remove its folder, before the next one may start."""
_CLEAR_S = 1.0
"""How long a job looks after what others left. `clear` in a worker's own time does the rest."""
_TRY_AGAIN_S = 600.0

log = structlog.get_logger()


@contextmanager
def scratch(root: Path, uid: int | None) -> Iterator[Path]:
    """A fresh folder with its `in`, `out`, `checkpoints` and `tmp`, removed at the end of the block.

    What cannot be removed, or not soon, is left to `clear`, and is no other job's trouble.

    Args:
        root: where this machine's scratch folders lie; those of workers that died are removed first.
        uid: the user that the child becomes.
    """
    root.mkdir(parents=True, exist_ok=True)
    clear(root, limit_s=_CLEAR_S)
    folder, lock = _make(root)
    try:
        sandbox.make_scratch(folder, uid)
        yield folder
    finally:
        _remove(folder, _REMOVE_S)
        os.close(lock)


def clear(root: Path, *, limit_s: float) -> None:
    """Remove the folders of workers that died, and what was left of others.

    One that cannot be removed is logged, and let be for ten minutes.

    Args:
        root: where this machine's scratch folders lie.
        limit_s: what isn't removed by then is left for another time.
    """
    until = time.monotonic() + limit_s
    with suppress(FileNotFoundError), os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and time.monotonic() < until:
                _remove_abandoned(Path(entry.path), until)


def written(folder: Path) -> Written:
    """What a child has written, as far as it is looked at: see `child_files.weigh`."""
    top = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        parts = [child_files.weigh(top, name) for name in WRITABLE]
    finally:
        os.close(top)
    entries = sum(part.entries for part in parts)
    too_many = entries > child_files.MAX_ENTRIES or any(part.too_many for part in parts)
    return Written(sum(part.size_bytes for part in parts), entries, too_many)


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


def _remove_abandoned(folder: Path, until: float) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.monotonic() >= _let_be.get(folder, 0.0):
            _remove(folder, until - time.monotonic())
    except BlockingIOError:
        return  # its worker lives
    finally:
        os.close(lock)


_let_be: dict[Path, float] = {}
"""Folder that could not be removed -> when it is tried again."""


def _remove(folder: Path, limit_s: float) -> None:
    """Remove a folder, or log why it stays."""
    try:
        parent = os.open(folder.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            gone = child_files.remove(parent, folder.name, limit_s=limit_s)
        finally:
            os.close(parent)
    except OSError as error:
        _let_be[folder] = time.monotonic() + _TRY_AGAIN_S
        log.warning("scratch_not_removed", folder=str(folder), reason=str(error))
    else:
        _let_be.pop(folder, None)
        if not gone:
            log.info("scratch_removed_later", folder=str(folder))
