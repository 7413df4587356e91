"""Owns results that are made and find no room in the store: they wait in threads, so that the worker goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import structlog

from pared.state.logs import thread_with_context
from worker.attempt_types import Canceled, Ending, Failed, HandedBack, Worker
from worker.lease import Lease, LeaseLost
from worker.results import NoRoom

TIMEOUT_S = 600.0
"""How long a result waits."""
RETRY_S = 5.0
MAX_WAITING = 4
"""Results that wait beside the work of one worker, each with its scratch folder; with more, the worker waits itself."""

log = structlog.get_logger()

_waiting: set[threading.Thread] = set()
_lock = threading.Lock()


def finish(
    worker: Worker, lease: Lease, save: Callable[[], Ending], record: Callable[[Ending], Ending], held: ExitStack
) -> Ending | None:
    """Save and record a result once there is room, or end the attempt after ten minutes without.

    Args:
        worker: this one.
        lease: on the job.
        save: store the files; returns what the attempt has come to.
        record: end the attempt so.
        held: the lease and the scratch folder; taken over by the thread that waits.

    Returns:
        How it ended; None: a thread waits.

    Raises:
        LeaseLost: the job is no longer this worker's.
        NoRoom: never; it is what is waited out.
    """
    with _lock:
        if len(_waiting) < MAX_WAITING:
            kept = held.pop_all()
            thread = thread_with_context(lambda: _finish_in_thread(worker, lease, save, record, kept), "waiting result")
            _waiting.add(thread)
            thread.start()
            return None
    return record(_saved(worker, lease, save))


def join(timeout_s: float) -> None:
    """Wait for the threads, which end soon after the worker is told to stop."""
    until = time.monotonic() + timeout_s
    with _lock:
        threads = list(_waiting)
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _finish_in_thread(
    worker: Worker, lease: Lease, save: Callable[[], Ending], record: Callable[[Ending], Ending], held: ExitStack
) -> None:
    try:
        with held:
            record(_saved(worker, lease, save))
    except LeaseLost:
        log.warning("lease_lost", job=lease.job_id, fence=lease.fence)
    except Exception:
        # The lease runs out, and the job becomes another attempt's.
        log.exception("waiting_result_failed", job=lease.job_id)
    finally:
        with _lock:
            _waiting.discard(threading.current_thread())


def _saved(worker: Worker, lease: Lease, save: Callable[[], Ending]) -> Ending:
    give_up_at = time.monotonic() + TIMEOUT_S
    while True:
        if lease.lost:
            raise LeaseLost
        if lease.cancel_requested:
            return Canceled()
        if worker.shutdown.requested:
            return HandedBack()
        try:
            return save()
        except NoRoom as error:
            log.warning("result_not_stored", job=lease.job_id, reason=str(error))
            if time.monotonic() > give_up_at:
                return Failed(error.error)
        worker.shutdown.wait(RETRY_S)
