"""Owns weighing and removing the files of a child, whatever their number, nesting and names.

A child may nest folders deeper than any path leads, or make millions of them. So nothing here recurses, names a file by
more than one part of its path, or keeps a list of all that it finds.
"""

from __future__ import annotations

import itertools
import os
import secrets
import stat
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

MAX_ENTRIES = 100_000
"""Files and folders that a child may have; a method makes hundreds at most."""
MAX_DEPTH = 32
"""How deep it may nest its folders."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REMEMBERED = 1000
_BLOCK = 512  # st_blocks counts in these, whatever the file system's own are


@dataclass(frozen=True)
class Written:
    """What a child has in its folders."""

    size_bytes: int
    """Of each file what it takes on disk or its length, whichever is more."""
    entries: int
    too_many: bool = False
    """More than MAX_ENTRIES, or nested deeper than MAX_DEPTH: it was not looked at to the end."""


def size_of(status: os.stat_result) -> int:
    """What a file costs, in bytes: a sparse one takes no room until it is copied, and then its whole length."""
    return max(status.st_blocks * _BLOCK, status.st_size)


def weigh(parent: int, name: str, *, max_entries: int = MAX_ENTRIES, max_depth: int = MAX_DEPTH) -> Written:
    """Weigh what lies in a folder. Its child may live, and change it meanwhile.

    Args:
        parent: descriptor of the folder that holds it.
        name: the folder; one that can't be opened weighs nothing.
        max_entries: where to stop looking.
        max_depth: the same.
    """
    size = entries = 0
    levels: list[_Listing] = []
    try:
        with suppress(OSError):
            levels.append(_Listing(parent, name))
        while levels:
            entry = levels[-1].next()
            if entry is None:
                levels.pop().close()
                continue
            entries += 1
            if entries > max_entries:
                return Written(size, entries, too_many=True)
            with suppress(OSError):  # gone meanwhile, or a folder that nobody may enter
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    size += size_of(status)
                    continue
                size += status.st_blocks * _BLOCK
                if len(levels) == max_depth:
                    return Written(size, entries, too_many=True)
                levels.append(_Listing(levels[-1].fd, entry.name))
    finally:
        for level in levels:
            level.close()
    return Written(size, entries)


def remove(parent: int, name: str, *, limit_s: float) -> bool:
    """Remove a folder of a child that has ended.

    Args:
        parent: descriptor of the folder that holds it.
        name: the folder, or a file.
        limit_s: what isn't removed by then is left for another time.

    Returns:
        Whether it is gone.

    Raises:
        OSError: something in it can't be removed; all else is gone.
    """
    until = time.monotonic() + limit_s
    try:
        top = _enter(parent, name)
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
        return True
    try:
        while True:
            removed, problem = _remove_round(top, until)
            with suppress(OSError):  # there is something left
                os.rmdir(name, dir_fd=parent)
                return True
            if time.monotonic() > until:
                return False
            if problem is not None and not removed:
                raise problem
    finally:
        os.close(top)


def _remove_round(top: int, until: float) -> tuple[int, OSError | None]:
    """Remove the files and folders of a folder, as far as it can be done; another round finds what was left.

    What its folders hold is moved up into it first. Each is moved once at most, so that all rounds together take as
    long as there are files.

    Returns:
        How much was removed or moved, and why something was not.
    """
    names = (f".up-{secrets.token_hex(8)}-{number}" for number in itertools.count())
    done, problem = 0, None
    moved: deque[str] = deque(maxlen=_REMEMBERED)  # the others are met by the next round
    listing = _Listing(top, ".")
    try:
        while time.monotonic() < until:
            name = moved.pop() if moved else listing.next_name()
            if name is None:
                break
            try:
                emptied, inner_problem = _empty(top, name, names, moved, until)
                os.rmdir(name, dir_fd=top)
            except NotADirectoryError:
                emptied, inner_problem = 0, _unlinked(top, name)
            except FileNotFoundError:
                continue
            except OSError as error:
                problem = error
                continue
            done += emptied + (inner_problem is None)
            problem = inner_problem or problem
    finally:
        listing.close()
    return done, problem


def _empty(top: int, name: str, names: Iterator[str], moved: deque[str], until: float) -> tuple[int, OSError | None]:
    """Remove the files of one folder of `top`, and move its folders to `top`. Returns as `_remove_round`."""
    done, problem = 0, None
    folder = _enter(top, name)
    try:
        listing = _Listing(folder, ".")
    except OSError:
        os.close(folder)
        raise
    try:
        while time.monotonic() < until and (entry := listing.next()) is not None:
            if entry.is_dir(follow_symlinks=False):
                new_name = next(names)
                failed = _moved(folder, entry.name, top, new_name)
                if failed is None:
                    moved.append(new_name)
            else:
                failed = _unlinked(folder, entry.name)
            done += failed is None
            problem = failed or problem
    finally:
        listing.close()
        os.close(folder)
    return done, problem


def _unlinked(folder: int, name: str) -> OSError | None:
    """Remove a file. Returns why it is still there."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    return None


def _moved(folder: int, name: str, top: int, new_name: str) -> OSError | None:
    """Move a folder up. Returns why it is not moved; a disk may be too full for it, until files are gone."""
    try:
        try:
            os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=top)
        except PermissionError:
            os.close(_enter(folder, name))  # only who may write into a folder may move it
            os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=top)
    except OSError as error:
        return error
    return None


def _enter(parent: int, name: str) -> int:
    """Open a folder, also one that a child has closed to its owner."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        pass
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)  # the folder itself, never what a link points to
        return os.open(".", _FOLDER, dir_fd=fd)
    finally:
        os.close(fd)


class _Listing:
    """The entries of one open folder, one after the other."""

    def __init__(self, parent: int, name: str) -> None:
        self.fd = os.open(name, _FOLDER, dir_fd=parent)
        try:
            self._entries = os.scandir(self.fd)
        except OSError:
            os.close(self.fd)
            raise

    def next(self) -> os.DirEntry[str] | None:
        """The next one; None at the end, which an error is too."""
        try:
            return next(self._entries, None)
        except OSError:
            return None

    def next_name(self) -> str | None:
        """The name of the next one."""
        entry = self.next()
        return None if entry is None else entry.name

    def close(self) -> None:
        self._entries.close()
        os.close(self.fd)
