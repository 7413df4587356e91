"""Owns keeping log files of running processes small: what is full is set aside under a number, the oldest goes."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

KEPT = 4
"""Earlier files of one log, `api.log.1` the newest."""


def begin_anew_if_full(log: Path, most_bytes: int) -> None:
    """Set the content aside and empty the file, if it has so many bytes; its writer must append.

    The file stays the same one, so the process that writes to it needs not know. A line that it writes in between the
    copy and the emptying is lost. Where the disk has no room for the copy, nothing is done.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size < most_bytes:
            return
        for number in range(KEPT, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                _numbered(log, number - 1).replace(_numbered(log, number))
        shutil.copyfile(log, _numbered(log, 1))
        os.truncate(log, 0)


def _numbered(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
