"""Ranks of a test: threads of one process, each with its own ends of what processes of a job have in common."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from pared.compression.ranks import Ranks
from worker.exchange import exchange


def together(count: int, run: Callable[[Ranks], Any], limit_s: float = 60.0) -> list[Any]:
    """What a function of a rank returns on each, or the error that it raised there."""
    found: list[Any] = [None] * count
    with exchange(count) as ends:
        kept = [[os.dup(end) for end in of_rank] for of_rank in ends]

    def one(rank: int) -> None:
        try:
            found[rank] = run(Ranks.of(rank, count, kept[rank], threads=1, limit_s=limit_s))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            found[rank] = error
        finally:  # as where its process ends
            for end in kept[rank]:
                os.close(end)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
