"""Owns what the processes of one job have in common: memory that all of them map, and pipes to and from the first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_SLOT_BYTES = 4 << 20
"""What one of them puts there at once; more goes in pieces."""


@contextmanager
def exchange(count: int) -> Iterator[list[list[int]]]:
    """The descriptors that each of so many processes is to have, as `pared.compression.ranks` takes them.

    One alone has none. Otherwise first the memory; then for the first process a pipe's end to read from and one to
    write to for each of the others, for the others one pair. They are closed here at the end of the block: then a
    process that has one of them hears when the one at its other end has ended.
    """
    if count == 1:
        yield [[]]
        return
    with ExitStack() as held:
        memory = os.memfd_create("pared-ranks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        held.callback(os.close, memory)
        os.ftruncate(memory, 2 * count * _SLOT_BYTES)
        # No process can grow it, to keep more there than is counted as a job's memory, or cut it under the others.
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        ends = [[memory] for _ in range(count)]
        for other in range(1, count):
            for reader, writer in ((0, other), (other, 0)):
                reading, writing = os.pipe()
                held.callback(os.close, reading)
                held.callback(os.close, writing)
                ends[reader].append(reading)
                ends[writer].append(writing)
        # Each pipe to the first was appended before that from it; the others have theirs the other way round.
        yield [ends[0], *([memory, reading, writing] for memory, writing, reading in ends[1:])]
