"""Owns the lease on a job: its renewal by a heartbeat, and knowing for certain when it is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pared.state import lifecycle
from pared.state.logs import thread_with_context
from pared.state.session import Sessions, database_problem

CANCEL_POLL_S = 0.5
RETRY_BACKOFF_S = 1.0

log = structlog.get_logger()
T = TypeVar("T")


class LeaseLost(Exception):
    """The job is no longer this worker's: nothing may be written about it."""


class Lease:
    """The claim on one job, renewed by a thread of its own until the `with` block ends.

    Losing it is a fact of time, not of an answer: when the database is away for longer than the lease,
    `lost` turns true by this machine's own clock, even while the thread still waits for a reply.
    """

    def __init__(
        self, sessions: Sessions, job_id: str, fence: int, *, lease_s: float, heartbeat_s: float, claimed_at: float
    ) -> None:
        """Args: claimed_at: `time.monotonic()` from before the claim was sent."""
        self.job_id, self.fence = job_id, fence
        self._sessions = sessions
        self._lease_s, self._heartbeat_s = lease_s, heartbeat_s
        self._expires_at = claimed_at + lease_s
        self._lost = False
        self._cancel = False
        self._done = threading.Event()
        self._thread = thread_with_context(self._beat, "lease")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    @property
    def lost(self) -> bool:
        """Whether the claim is surely or possibly gone. The child must be dead before anyone else starts one."""
        return self._lost or time.monotonic() > self._expires_at

    @property
    def cancel_requested(self) -> bool:
        """Whether someone asked for the job to be canceled."""
        return self._cancel

    def lose(self) -> None:
        """A fenced write changed no row: another worker, or the sweep, was here."""
        self._lost = True

    def write(self, transaction: Callable[[], T]) -> T:
        """Run a transaction, again while the database is away and the lease lasts.

        Raises:
            LeaseLost: it did not go through in time.
        """
        while not self.lost:
            try:
                return transaction()
            except (DBAPIError, PoolTimeout) as error:
                log.warning("database_away", job=self.job_id, reason=database_problem(error).detail)
                time.sleep(min(RETRY_BACKOFF_S, self._lease_s / 10))
        raise LeaseLost

    def _beat(self) -> None:
        renew_at = time.monotonic() + self._heartbeat_s
        while not self._done.wait(min(CANCEL_POLL_S, self._heartbeat_s)) and not self._lost:
            try:
                if time.monotonic() >= renew_at:
                    self._renew()
                    renew_at = time.monotonic() + self._heartbeat_s
                else:
                    self._check_cancel()
            except (DBAPIError, PoolTimeout) as error:
                log.warning("heartbeat_failed", job=self.job_id, reason=str(error))
                renew_at = time.monotonic()  # at once when it is back

    def _renew(self) -> None:
        # The clock is read before the statement: the database's lease can only end later than ours.
        before = time.monotonic()
        with self._sessions.begin() as session:
            canceling = lifecycle.renew(session, self.job_id, self.fence, self._lease_s)
        if canceling is None:
            self._lost = True
        else:
            self._expires_at = before + self._lease_s
            self._cancel = canceling

    def _check_cancel(self) -> None:
        with self._sessions() as session:
            canceling = lifecycle.cancel_requested(session, self.job_id, self.fence)
        if canceling is None:
            self._lost = True
        else:
            self._cancel = canceling
