"""Owns what `pared worker` needs to know of this machine: the GPUs that are named, and the workers that run here."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from pared.gpus import Gpu
from pared.state.session import Sessions
from pared.state.tables import WorkerHeartbeat
from pared.state.workers import living


def chosen_gpus(choice: str, visible: Sequence[Gpu]) -> list[Gpu]:
    """Those that `--gpus` names. `all` may be none: a worker then says itself what it makes of that.

    Args:
        choice: `all`, or numbers such as `0,2`, counted among the visible ones.
        visible: the GPUs that this process may see.

    Raises:
        ValueError: it names what is not there; the text says so.
    """
    if choice == "all":
        return list(visible)
    numbers = [part.strip() for part in choice.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{choice} is neither all nor numbers: write all or 0,2")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{choice} names a GPU twice: each has one worker")
    if absent := [number for number in numbers if int(number) >= len(visible)]:
        names = ", ".join(f"{index}: {gpu.name}" for index, gpu in enumerate(visible)) or "none"
        raise ValueError(f"there is no GPU {absent[0]} here; visible: {names}")
    return [visible[int(number)] for number in numbers]


def local_workers(sessions: Sessions) -> list[WorkerHeartbeat]:
    """The living workers of this host (of this container)."""
    with sessions() as session:
        return [row for row in living(session) if row.name.startswith(f"{socket.gethostname()}:")]
