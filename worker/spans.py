"""Owns the spans of one attempt: the attempt itself and, one after the other, what it spends its time on."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from pared.state import job_spans, tracing
from pared.state.session import Sessions
from pared.state.tables import Job
from pared.state.tracing import NO_SPAN, Attributes, Span

_MAX_STAGES = 1_000
"""A child may report more."""
_LEASE_LOST = "lease-lost"


class AttemptSpan:
    """An attempt at a job, from its claim until it leaves this block. May be used by one thread after the other."""

    def __init__(
        self, span: Span = NO_SPAN, common: Attributes | None = None, *, queued: Span = NO_SPAN, began: float = 0.0
    ) -> None:
        """Make it.

        Args:
            common: attributes of the stages too.
            queued: of the time before it. It is sent with the attempt's own, so that of an attempt that is lost with
                its worker both are told once, by whoever finds it lost.
            began: when it was claimed, in Unix time.
        """
        self._span, self._common = span, common
        self._queued, self._began = queued, began
        self._stage = NO_SPAN
        self._left = _MAX_STAGES

    def stage(self, name: str) -> None:
        """What the attempt does from now on; what it did before has ended."""
        self._stage.end()
        self._left -= 1
        self._stage = self._span.begin(name, self._common) if self._left >= 0 else NO_SPAN

    def ended(self, ending: str, error: str | None) -> None:
        """How it ended, by the name of the ending and, where it failed, the code of the error."""
        self._span.note({"pared.ending": ending})
        if error is not None:
            self._fail(error)

    def lost(self) -> None:
        """The job is another attempt's."""
        self._fail(_LEASE_LOST)

    def _fail(self, error: str) -> None:
        self._stage.fail(error)
        self._span.fail(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._fail(kind.__name__)
        self._queued.end(self._began)
        self._stage.end()
        self._span.end()


def begin(sessions: Sessions, job: Job, worker: str) -> AttemptSpan:
    """The attempt at a job that this worker has just claimed, in the trace of the request that made the job."""
    if not tracing.on() or job.traceparent is None:
        return AttemptSpan()
    common = job_spans.attributes_of(job.id, job.type, job.owner, job.attempt)
    span = tracing.begin(job_spans.ATTEMPT, job.traceparent, common | {"pared.worker": worker}, at=job.updated_at)
    at = job_spans.queued_at(sessions, job.id)
    queued = NO_SPAN if at is None else tracing.begin(job_spans.QUEUED, job.traceparent, common, at=at)
    return AttemptSpan(span, common, queued=queued, began=job.updated_at)
