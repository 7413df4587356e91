"""Owns starting the processes of one attempt: the one that runs the job, and those that train along with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker import sandbox
from worker.exchange import exchange
from worker.forkserver import Child, ForkServer

_PATIENCE = 0.8
"""How long the first process waits for another, as a share of how long the worker waits for a word of the first."""


def start(
    children: ForkServer, folder: Path, request: dict[str, Any], count: int, stall_s: float, stop: Callable[[], bool]
) -> list[Child]:
    """The processes, the one that reports first; none where `stop` came first.

    Args:
        folder: the job's scratch folder, in which each further process has its own.
        request: as `ForkServer.child` takes it.
        count: of the processes.
        stall_s: how long the worker waits for a word of the first one.

    Raises:
        OSError: one could not be started; then none runs.
    """
    started: list[Child] = []
    try:
        with exchange(count) as ends:
            for rank, shared in enumerate(ends):
                own = folder if rank == 0 else _make_folder(folder, rank, children.confinement.uid)
                ranks = {"rank": rank, "count": count, "limit_s": _PATIENCE * stall_s}
                child = children.child(own, request | {"ranks": ranks}, stop, shared)
                if child is None:
                    break
                started.append(child)
    finally:
        if len(started) < count:
            for child in started:
                child.kill()
    return started if len(started) == count else []


def folders(folder: Path, count: int) -> list[Path]:
    """In which the processes write."""
    return [folder, *(folder / f"rank-{rank}" for rank in range(1, count))]


def _make_folder(folder: Path, rank: int, uid: int | None) -> Path:
    """The scratch folder of a further process: all its own but for `in`, which is that of the first."""
    own = folders(folder, rank + 1)[rank]
    own.mkdir()
    sandbox.make_scratch(own, uid)
    (own / "in").rmdir()
    os.symlink("../in", own / "in")
    return own
