"""How much of a data set is kept in memory, and how much may be unpacked to disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from pared.compression.work import DatasetFile
from pared.errors import StorageFull
from pared.full_disk import NO_ROOM

_HELD = 1 / 4  # of the job's memory: the model, its gradients and the answers need the rest
_UNPACKED = 3  # times the job's memory; it may write four times its memory, and its results lie there too


@dataclass(frozen=True)
class Room:
    """What a job has for its samples, in bytes.

    Attributes:
        held: samples of at most so much are kept in memory; of larger ones a batch is read at a time.
        unpacked: so much may be written to a temporary file, so that it is unpacked or decoded once.
    """

    held: int
    unpacked: int


def room_for(file: DatasetFile) -> Room:
    """The room that the job's memory limit leaves; without a limit, that of the machine."""
    memory = file.memory_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Room(int(memory * _HELD), memory * _UNPACKED)


@contextmanager
def temporary_file() -> Iterator[IO[bytes]]:
    """A new file on disk that has no name, and so is gone with the process. It is left open.

    Raises:
        StorageFull: what is written in the block does not fit.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 - whoever maps it closes it
    try:
        yield file
        file.flush()
    except OSError as error:
        file.close()
        if error.errno in NO_ROOM:
            raise StorageFull(
                "The disk has no room to unpack the data set. Save it unpacked (np.savez instead of "
                "np.savez_compressed), or ask whoever runs this server for more."
            ) from error
        raise
