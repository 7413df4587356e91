"""Owns the API's thread that sends notices to webhooks; whoever does not answer holds up nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter

import structlog

from pared.state import tracing
from pared.state.deliveries import Claimed, Outcome, claim, due, settle
from pared.state.failpoints import failpoint
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.tracing import Span
from service.receivers import TIME_LIMIT_S, Receivers

POLL_S = 1.0
AT_ONCE, OF_OWNER, OF_WEBHOOK = 64, 16, 4
"""Attempts that one process makes at once: in all, to one owner's webhooks, to one of them. To one that failed last
time it is one."""
STOP_S = 2.0
"""Attempts that are under way when the thread is stopped may take so long; others send the rest again later."""

log = structlog.get_logger()


class WebhookSender(threading.Thread):
    """One thread with an event loop: an attempt that waits takes up no thread."""

    def __init__(self, sessions: Sessions, settings: Settings, *, time_limit_s: float = TIME_LIMIT_S) -> None:
        """Args: time_limit_s: of one attempt."""
        super().__init__(name="webhooks", daemon=True)
        self._sessions = sessions
        self._receivers = Receivers(allow_private=settings.allow_private_webhooks, time_limit_s=time_limit_s)
        self._open: Counter[tuple[str, str]] = Counter()  # (owner, webhook) -> attempts under way
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._stopped = threading.Event()

    def wake(self) -> None:
        """Look at once for what is owed. Returns at once; may be called by any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._woken.set)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopped.set()
        self.wake()
        self.join(timeout=10)

    def run(self) -> None:
        """Send what is due, when asked and every second."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        while not self._stopped.is_set():
            self._woken.clear()
            try:
                claimed = await asyncio.to_thread(self._claim, Counter(self._open))
            except Exception:
                log.warning("webhooks_not_read", exc_info=True)
                claimed = []
            for each in claimed:
                self._open[each.owner, each.webhook_id] += 1
                task = asyncio.create_task(self._deliver(each))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._woken.wait()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)
            for task in tasks:
                task.cancel()

    def _claim(self, under_way: Counter[tuple[str, str]]) -> list[Claimed]:
        """What can be sent now, beside what is being sent."""
        with self._sessions() as session:
            waiting = list(due(session))
        random.shuffle(waiting)  # none is always the last, where not all have room
        claimed: list[Claimed] = []
        for webhook_id, owner, failing in waiting:
            of_owner = sum(count for (whose, _), count in under_way.items() if whose == owner)
            most = min(
                (1 if failing else OF_WEBHOOK) - under_way[owner, webhook_id],
                OF_OWNER - of_owner,
                AT_ONCE - under_way.total(),
            )
            if most > 0:
                with self._sessions.begin() as session:
                    taken = claim(session, webhook_id, most)
                under_way[owner, webhook_id] += len(taken)
                claimed += taken
        if claimed:
            failpoint("webhook.claimed")
        return claimed

    async def _deliver(self, claimed: Claimed) -> None:
        span = _span(claimed)
        try:
            outcome = await self._receivers.send(claimed)
            _end(span, outcome)
            failpoint("webhook.sent")
            status = await asyncio.to_thread(self._settle, claimed, outcome)
            log.info(
                "webhook_attempt",
                delivery=claimed.id,
                webhook=claimed.webhook_id,
                owner=claimed.owner,
                attempt=claimed.attempts,
                status=status,
                answer=outcome.status,
                problem=outcome.problem,
            )
        except Exception:
            # The claim runs out, and it is sent again.
            log.warning("webhook_not_settled", delivery=claimed.id, exc_info=True)
        finally:
            self._open[claimed.owner, claimed.webhook_id] -= 1
            self._woken.set()

    def _settle(self, claimed: Claimed, outcome: Outcome) -> str | None:
        with self._sessions.begin() as session:
            return settle(session, claimed, outcome)


def _span(claimed: Claimed) -> Span:
    attributes: dict[str, str | int] = {
        "pared.job.id": claimed.job_id or "",
        "pared.owner.id": claimed.owner,
        "pared.webhook.id": claimed.webhook_id,
        "pared.delivery.id": claimed.id,
        "pared.attempt": claimed.attempts,
        "http.request.method": "POST",
    }
    return tracing.begin("webhook", claimed.traceparent, attributes, kind="CLIENT")


def _end(span: Span, outcome: Outcome) -> None:
    if outcome.status is not None:
        span.note({"http.response.status_code": outcome.status})
    if outcome.problem is not None:
        span.fail("not-delivered" if outcome.status is None else str(outcome.status))
    span.end()
