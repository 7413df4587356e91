"""Owns the teachers' answers that jobs leave for later ones of the same owner, on this machine's disk, up to a size.

A file is what a child wrote, so that only children read it: one that is damaged, or is of something else, is told there
and made anew. Whatever goes wrong here costs a job time, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog

from pared.version import __version__
from worker.kept_files import KeptFiles
from worker.protocol import ANSWERS_GIVEN, ANSWERS_MADE

log = structlog.get_logger()


def key_of(models: Iterable[tuple[str, str, Mapping[str, Any]]], dataset: str, spec: Mapping[str, Any]) -> str:
    """Where the answers of these teachers to this data set are kept.

    What is in the file says itself what it is of; two jobs with one key that differ otherwise only take turns in it.

    Args:
        models: (role, SHA-256, what was posted with it) of each teacher.
        dataset: SHA-256 of the data set.
        spec: the job's, as JSON.
    """
    parts = [__version__, [list(each) for each in models], dataset, spec.get("preprocess")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class KeptAnswers:
    """The files of one machine, a folder for each owner."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Args: max_bytes: of all owners together; 0 keeps nothing."""
        self._files, self._max_bytes = KeptFiles(folder), max_bytes

    def hand_in(self, owner: str, key: str, scratch: Path) -> bool:
        """Copy what is kept to where a child may read it. False: there is nothing."""
        kept = self._files.path(owner, key)
        if not self._max_bytes:
            return False
        try:
            shutil.copyfile(kept, scratch / ANSWERS_GIVEN)
            os.chmod(scratch / ANSWERS_GIVEN, 0o444)
            os.utime(kept)  # what is used is the last to go
        except OSError as error:
            (scratch / ANSWERS_GIVEN).unlink(missing_ok=True)
            if not isinstance(error, FileNotFoundError):
                log.warning("answers_not_handed_in", reason=str(error))
            return False
        return True

    def take(self, owner: str, key: str, scratch: Path) -> None:
        """Keep what a child has left, if it left a plain file, and make room for it."""
        if not self._max_bytes:
            return
        try:
            fd = os.open(scratch / ANSWERS_MADE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # it left nothing, or nothing that can be opened
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size <= self._max_bytes:
                self._store(self._files.path(owner, key), fd, status.st_size)
        except OSError as error:
            log.warning("answers_not_kept", reason=str(error))
        finally:
            os.close(fd)

    def _store(self, path: Path, made: int, size: int) -> None:
        self._make_room(size, path)
        with self._files.written(path) as file:
            while size > 0 and (chunk := os.read(made, min(size, 1 << 20))):
                file.write(chunk)
                size -= len(chunk)

    def _make_room(self, size: int, path: Path) -> None:
        """Delete those that were used longest ago until so much more fits."""
        kept = [each for each in self._files.by_last_use() if each.path != path]  # which is to be replaced
        total = size + sum(each.size_bytes for each in kept)
        for each in kept:
            if total <= self._max_bytes:
                break
            each.path.unlink(missing_ok=True)
            total -= each.size_bytes
