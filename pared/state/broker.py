"""Owns the embedded message queue: kombu's filesystem transport, with messages that appear and vanish in one step.

kombu's own writes into the file that a consumer may already be reading, moves messages through the
system's temporary folder, and keeps bindings in a file that two starting processes can tear. With
direct queues alone none of that is needed: a message is renamed into the folder, with its queue in the
name, and renamed out of it.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from queue import Empty
from time import time, time_ns
from typing import Any

from celery.worker import state
from kombu.transport import filesystem, virtual

_ABANDONED_S = 3_600.0


class _NothingAhead(virtual.QoS):
    """Takes no message while a task runs, for an idle worker is to have it. Celery's own way is for Redis alone."""

    def can_consume(self) -> bool:
        return not state.reserved_requests and bool(super().can_consume())  # type: ignore[no-untyped-call]


class Channel(filesystem.Channel):
    """One folder of message files; `data_folder_in` and `data_folder_out` are the same."""

    supports_fanout = False
    QoS = _NothingAhead

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Makes the queue's folders, so that a fresh data directory needs no set-up step."""
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        for folder in (self.data_folder_in, self.processed_folder, self.control_folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
        _drop_abandoned(Path(self.data_folder_out))

    def _queue_bind(self, *_binding: Any) -> None:
        """Nothing to keep: messages go by the anonymous exchange, straight to the queue they name."""

    def get_table(self, _exchange: str) -> list[Any]:
        """No bindings, as `_queue_bind` keeps none."""
        return []

    def _put(self, queue: str, payload: dict[str, Any], **_options: Any) -> None:  # type: ignore[override]
        folder = Path(self.data_folder_out)
        name = f"{time_ns():020d}_{uuid.uuid4().hex}.{queue}.msg"
        hidden = folder / f".{name}"
        try:
            hidden.write_text(json.dumps(payload))
            hidden.replace(folder / name)
        except OSError:
            hidden.unlink(missing_ok=True)  # a full disk is not to be filled further
            raise

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        folder, taken = Path(self.data_folder_in), Path(self.processed_folder)
        for name in sorted(os.listdir(folder)):  # the name begins with the time: oldest first
            if name.startswith(".") or name.partition(".")[2] != f"{queue}.msg":
                continue
            try:
                mine = (folder / name).rename(taken / name)
            except FileNotFoundError:
                continue  # another consumer was first
            payload: dict[str, Any] = json.loads(mine.read_text())
            mine.unlink()
            return payload
        raise Empty


def _drop_abandoned(folder: Path) -> None:
    """Remove messages that a process died over while it wrote them."""
    for path in folder.glob(".*.msg"):
        with suppress(FileNotFoundError):
            if time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()


class Transport(filesystem.Transport):
    """The transport that `pared.state.queue` names for the embedded default."""

    Channel = Channel
