"""Owns storing what a running child reports: progress, events and checkpoints, fenced, a few times a second.

A thread of its own, so that neither a slow database nor a large checkpoint delays the monitor of the child.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from pared.errors import StorageFull, Unavailable
from pared.state import lifecycle
from pared.state.events import EventKind
from pared.state.failpoints import failpoint
from pared.state.logs import thread_with_context
from pared.state.objects import CHUNK_BYTES, ObjectStore, Stored
from pared.state.session import Sessions
from worker.lease import Lease, LeaseLost

FLUSH_S = 0.5
MAX_LOGS = 2_000
MAX_METRICS = 50_000
MAX_STAGES = 1_000
MAX_PROGRESS = 5_000
_PROGRESS_EVENT_STEP = 0.005

log = structlog.get_logger()


class Recorder:
    """Writes for one attempt at one job until `close`."""

    def __init__(
        self,
        sessions: Sessions,
        store: ObjectStore,
        lease: Lease,
        folder: Path,
        checkpoints: list[tuple[str, str]],
        *,
        checkpoint_bytes: int,
    ) -> None:
        """Start the thread.

        Args:
            sessions: of the process.
            store: for checkpoints.
            lease: on the job.
            folder: where the child leaves its checkpoints.
            checkpoints: (key, sha256) of those of earlier attempts, newest first; at most two.
            checkpoint_bytes: no larger one is kept; 0: none is.
        """
        self._sessions, self._store, self._lease, self._folder = sessions, store, lease, folder
        self._checkpoint_bytes = checkpoint_bytes
        self.checkpoints = checkpoints
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._values: dict[str, Any] = {}
        self._events: deque[tuple[EventKind, dict[str, Any]]] = deque()
        self._left = {"log": MAX_LOGS, "metric": MAX_METRICS, "status": MAX_STAGES, "progress": MAX_PROGRESS}
        self._checkpoint: int | None = None
        self._eta = _Eta()
        self._last_event: tuple[float, int | None] = (-1.0, None)
        self._thread = thread_with_context(self._run, "recorder")
        self._thread.start()

    def stage(self, name: str) -> None:
        """A stage begins."""
        with self._lock:
            self._values["stage"] = name
            self._event("status", {"status": "running", "stage": name})

    def progress(self, fraction: float, epoch: int | None, epochs: int | None) -> None:
        """The progress of the job. The row always shows the newest; each visible step becomes an event."""
        progress = {"fraction": fraction, "epoch": epoch, "epochs": epochs, "eta_s": self._eta(fraction)}
        with self._lock:
            self._values["progress"] = progress
            if abs(fraction - self._last_event[0]) >= _PROGRESS_EVENT_STEP or epoch != self._last_event[1]:
                self._last_event = (fraction, epoch)
                self._event("progress", progress)

    def metric(self, name: str, value: float | None, step: int, phase: str) -> None:
        """One point of a curve."""
        with self._lock:
            self._event("metric", {"name": name, "value": value, "step": step, "phase": phase})

    def log(self, text: str) -> None:
        """A line for whoever follows the job."""
        with self._lock:
            self._event("log", {"text": text})

    def checkpoint(self, step: int) -> None:
        """`checkpoints/{step}` is whole. When several wait, only the newest is kept."""
        if not self._checkpoint_bytes:
            _drop(self._folder / str(step))
            return
        with self._lock:
            passed, self._checkpoint = self._checkpoint, step
        if passed is not None:
            _drop(self._folder / str(passed))

    def close(self, *, keep_checkpoint: bool) -> None:
        """Write what is left and stop; returns early when the lease is lost.

        Args:
            keep_checkpoint: also finish storing the last checkpoint, for another attempt to go on from.
        """
        if not keep_checkpoint:
            with self._lock:
                self._checkpoint = None
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _event(self, kind: EventKind, data: dict[str, Any]) -> None:
        """Append an event, or, once there are too many of its kind, a line that says so; the caller holds the lock."""
        self._left[kind] -= 1
        if self._left[kind] > 0:
            self._events.append((kind, data))
        elif self._left[kind] == 0:
            self._events.append(("log", {"text": f"Too many {kind} lines; no more are kept."}))

    def _run(self) -> None:
        try:
            while not self._closing:
                self._write()
                self._wake.wait(FLUSH_S)
            self._write()
        except LeaseLost:
            self._lease.lose()
        except Exception:
            # A job of which nothing is written down any more had better be another attempt's.
            log.exception("recorder_failed", job=self._lease.job_id)
            self._lease.lose()

    def _write(self) -> None:
        with self._lock:
            values, self._values = self._values, {}
            events = list(self._events)
            self._events.clear()
            step, self._checkpoint = self._checkpoint, None
        if values or events:
            self._lease.write(lambda: self._advance(values, events))
        if step is not None:
            self._keep(step)

    def _advance(self, values: dict[str, Any], events: list[tuple[EventKind, dict[str, Any]]]) -> None:
        with self._sessions.begin() as session:
            if not lifecycle.advance(session, self._lease.job_id, self._lease.fence, values, events):
                raise LeaseLost

    def _keep(self, step: int) -> None:
        key = f"checkpoints/{self._lease.job_id}/{self._lease.fence}/{step}"
        path = self._folder / str(step)
        try:
            stored = store_file(self._store, path, key, most_bytes=self._checkpoint_bytes)
        except (StorageFull, Unavailable, OSError, UntrustworthyFile) as error:
            # The job goes on; an attempt after this one would start from the checkpoint before.
            log.warning("checkpoint_not_kept", job=self._lease.job_id, step=step, reason=str(error))
            return
        finally:
            _drop(path)
        failpoint("checkpoint.stored")
        checkpoints = [(stored.key, stored.sha256), *self.checkpoints]
        values: dict[str, Any] = {
            "checkpoint_key": stored.key,
            "checkpoint_sha256": stored.sha256,
            "checkpoint_step": step,
            "previous_checkpoint_key": checkpoints[1][0] if len(checkpoints) > 1 else None,
            "previous_checkpoint_sha256": checkpoints[1][1] if len(checkpoints) > 1 else None,
        }
        self._lease.write(lambda: self._advance(values, []))
        failpoint("checkpoint.recorded")
        # Only now does no row name the older ones.
        self.checkpoints = checkpoints[:2]
        for old, _ in checkpoints[2:]:
            discard(self._store, old)


class UntrustworthyFile(Exception):
    """What the child left under this name is not a plain file of its own."""


def store_file(store: ObjectStore, path: Path, key: str, *, most_bytes: int) -> Stored:
    """Upload a file that the child wrote.

    Args:
        store: where to.
        path: the file, in the child's folder; its child may live.
        key: what it is stored under.
        most_bytes: no larger file is copied.

    Raises:
        UntrustworthyFile: it is a link, a device, a file that has another name elsewhere too, or too large.
        StorageFull: the store has no room.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UntrustworthyFile(f"{path.name} cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise UntrustworthyFile(f"{path.name} is not a plain file")
        if status.st_size > most_bytes:
            raise UntrustworthyFile(f"{path.name} is larger than all that a job may write")
        store.check_room(status.st_size)
        return store.put(_chunks(fd, status.st_size), key=key)
    finally:
        os.close(fd)


def _drop(path: Path) -> None:
    """The child may have put anything under this name, a folder too; it goes with the scratch folder."""
    with suppress(OSError):
        path.unlink()


def discard(store: ObjectStore, key: str) -> None:
    """Delete an object that no row names any more; what fails now is left to the collector."""
    try:
        store.delete(key)
    except (OSError, Unavailable) as error:
        log.warning("object_not_deleted", key=key, reason=str(error))


def _chunks(fd: int, size: int) -> Iterator[bytes]:
    # No further than its size at the start: a living child may still append.
    while size > 0 and (chunk := os.read(fd, min(CHUNK_BYTES, size))):
        size -= len(chunk)
        yield chunk


class _Eta:
    """Seconds left, from the pace since this attempt's first progress."""

    def __init__(self) -> None:
        self._start: tuple[float, float] | None = None

    def __call__(self, fraction: float) -> float | None:
        now = time.monotonic()
        if self._start is None:
            self._start = (now, fraction)
        started_at, first = self._start
        if fraction <= first or now - started_at < 1.0:
            return None
        return round((now - started_at) / (fraction - first) * (1 - fraction), 1)
