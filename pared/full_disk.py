"""Tells a disk without room from other errors, in which libraries hide it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The numbers of the errors of a full disk, or of one of which somebody has used up their share."""
NO_ROOM = FULL | {errno.EFBIG}
"""These, and that of a file which would have become larger than it may."""
_TEXTS = ("No space left on device", "(os error 28)", "database or disk is full")
_UNNAMED = ("inline_container", "PytorchStreamWriter", "requested and", "No usable temporary directory")
"""In what torch, numpy and tempfile say of a file that could not be written, whatever the reason."""
_LITTLE = 1 << 20  # bytes: a disk that has fewer left is full


def no_room(error: BaseException, folder: Path) -> int | None:
    """ENOSPC or EDQUOT where a disk was full, EFBIG where a file would have become larger than it may; else None.

    Args:
        folder: on the disk that was written to, as it is now, for the errors that do not give their reason.
    """
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in NO_ROOM:
            return each.errno
        text = str(each)
        if any(said in text for said in _TEXTS):
            return errno.ENOSPC
        if any(said in text for said in _UNNAMED) and _left(folder) < _LITTLE:
            return errno.ENOSPC
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _left(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
