"""Owns files that a worker keeps on its machine's disk, a folder for each owner; those used longest ago go first."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_PARTIAL = ".part-"


@dataclass(frozen=True, order=True)
class Kept:
    """One of them."""

    used_at: float
    size_bytes: int
    path: Path


class KeptFiles:
    """The files in one folder. Other workers of the machine may have the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, owner: str, key: str) -> Path:
        """Where an owner's file is, or would be."""
        # An owner is an id of this server; hashed, it is a folder's name whatever it may be.
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:32] / key

    def by_last_use(self) -> list[Kept]:
        """All of all owners, the one that was used longest ago first."""
        kept = []
        for file in self._folder.glob("*/*"):
            with suppress(OSError):  # another worker of this machine may have deleted it
                status = file.stat()
                kept.append(Kept(status.st_mtime, status.st_size, file))
        return sorted(kept)

    @contextmanager
    def written(self, path: Path) -> Iterator[IO[bytes]]:
        """A file that stands at the path once the block has ended, and not at all if it fails. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=_PARTIAL)
        try:
            with os.fdopen(fd, "wb") as file:
                yield file
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
