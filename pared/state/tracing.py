"""Owns spans: what they hold, and how they get to a collector by OTLP over HTTP. Where none is set nothing is loaded.

A trace leads from the request that makes a job to the job's end, in whichever processes: the job's row keeps the
`traceparent` of the request. Spans hold ids, names of our own, times and codes of errors; never what a client sent.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

import structlog

from pared.state.settings import Settings
from pared.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as RecordedSpan
    from opentelemetry.trace import Tracer

Attributes = Mapping[str, str | int]
Kind = Literal["INTERNAL", "SERVER", "CLIENT"]

PATH = "/v1/traces"
"""Where a collector takes spans, below `PARED_OTLP_URL`."""
MAX_WAITING = 2048
"""Spans that wait to be sent; of more, the oldest are lost."""
SEND_EVERY_S = 1.0
SEND_S = 5.0
"""What sending a batch may take with its retries, in a thread that nobody waits for."""
STOP_S = 2.0
"""How long a process that ends waits for its last spans to be sent."""
_SAY_AGAIN_S = 60.0
_EXTRA = "opentelemetry.exporter.otlp.proto.http"

log = structlog.get_logger()


class Span:
    """Something that takes time. Of one that belongs to no trace, every method does nothing."""

    def __init__(self, recorded: RecordedSpan | None = None) -> None:
        self._recorded = recorded

    @property
    def traceparent(self) -> str | None:
        """What others join the trace by, as W3C writes it, with this span as their parent."""
        context = None if self._recorded is None else self._recorded.get_span_context()
        if context is None or not context.is_valid:  # as where the library's own variables switch it off
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"

    def begin(self, name: str, attributes: Attributes | None = None, *, at: float | None = None) -> Span:
        """A part of it, which begins now or at a Unix time."""
        return begin(name, self.traceparent, attributes, at=at)

    def name(self, name: str) -> None:
        """Give it another name."""
        if self._recorded is not None:
            self._recorded.update_name(name)

    def note(self, attributes: Attributes) -> None:
        """Add attributes."""
        if self._recorded is not None:
            self._recorded.set_attributes(dict(attributes))

    def fail(self, error: str) -> None:
        """Say that it failed, by a code or the name of a type; never in a sentence, which may quote a client."""
        if self._recorded is not None:
            from opentelemetry.trace import StatusCode

            self._recorded.set_attribute("error.type", error)
            self._recorded.set_status(StatusCode.ERROR)

    def end(self, at: float | None = None) -> None:
        """End it, now or at a Unix time."""
        if self._recorded is not None:
            self._recorded.end(_ns(at))


NO_SPAN = Span()
_tracer: Tracer | None = None
_provider: TracerProvider | None = None
_request: ContextVar[Span] = ContextVar("request", default=NO_SPAN)


# -- a process's part -----------------------------------------------------------------------------


def require(settings: Settings) -> None:
    """End the process where spans are wanted and what sends them is not installed."""
    if settings.otlp_url and not _installed():
        raise SystemExit(
            "PARED_OTLP_URL is set, and what sends traces is not installed: pip install 'pared[tracing]', or unset it."
        )


def start(settings: Settings, service: str) -> None:
    """Send spans from now on, if `PARED_OTLP_URL` is set. Not before a fork: a thread sends them.

    Args:
        settings: with the collector's address.
        service: the `service.name` of the spans.
    """
    require(settings)
    if not settings.otlp_url:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    global _tracer, _provider  # noqa: PLW0603 - one for the process
    libraries = logging.getLogger("opentelemetry")
    libraries.handlers[:], libraries.propagate = [_Complaints()], False
    instance = f"{socket.gethostname()}:{os.getpid()}"
    resource = Resource.create(
        {"service.name": service, "service.version": __version__, "service.instance.id": instance}
    )
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=settings.otlp_url.rstrip("/") + PATH, timeout=SEND_S)
    _provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=MAX_WAITING, schedule_delay_millis=1000 * SEND_EVERY_S)
    )
    _tracer = _provider.get_tracer("pared", __version__)


def stop() -> None:
    """Send what is left and no more, within `STOP_S`; what the collector does not take by then is lost."""
    global _tracer, _provider
    provider, _provider, _tracer = _provider, None, None
    if provider is not None:
        # The library would wait half a minute.
        thread = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
        thread.start()
        thread.join(STOP_S)


def on() -> bool:
    """Whether spans are sent."""
    return _tracer is not None


# -- spans ----------------------------------------------------------------------------------------


def begin(
    name: str,
    traceparent: str | None,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "INTERNAL",
    at: float | None = None,
) -> Span:
    """A span in the trace of a `traceparent`, which begins now or at a Unix time; without one it is in no trace."""
    if _tracer is None or traceparent is None:
        return NO_SPAN
    return _begin(_tracer, name, {"traceparent": traceparent}, attributes, kind, at)


def serving(method: str, headers: Mapping[str, str]) -> AbstractContextManager[Span]:
    """The span of a request, in the trace that its client names, or else in a new one.

    Within the block, `note_job` and `traceparent` are about it.
    """
    return nullcontext(NO_SPAN) if _tracer is None else _serving(_tracer, method, headers)


@contextmanager
def _serving(tracer: Tracer, method: str, headers: Mapping[str, str]) -> Iterator[Span]:
    carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
    span = _begin(tracer, method, carrier, {"http.request.method": method}, "SERVER", None)
    token = _request.set(span)
    try:
        yield span
    finally:
        _request.reset(token)
        span.end()


def traceparent() -> str | None:
    """Of the request that is being served."""
    return _request.get().traceparent


def note_job(job_id: str) -> None:
    """Say at the request that is being served which job came of it."""
    _request.get().note({"pared.job.id": job_id})


def trace_id(traceparent: str | None) -> dict[str, str]:
    """The field of log lines by which they are found from a trace; none where no spans are sent."""
    return {"trace_id": traceparent.split("-")[1]} if _tracer is not None and traceparent is not None else {}


def _begin(
    tracer: Tracer,
    name: str,
    carrier: Mapping[str, str],
    attributes: Attributes | None,
    kind: Kind,
    at: float | None,
) -> Span:
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    # An empty context: no other library's spans are to be parents of ours.
    parent = TraceContextTextMapPropagator().extract(carrier, Context())
    recorded = tracer.start_span(name, parent, SpanKind[kind], attributes, start_time=_ns(at))
    return Span(recorded)


def _ns(at: float | None) -> int | None:
    return None if at is None else int(at * 1e9)


def _installed() -> bool:
    try:
        return importlib.util.find_spec(_EXTRA) is not None
    except ModuleNotFoundError:
        return False


class _Complaints(logging.Handler):
    """What the library says of a collector that takes nothing, once a minute, as a line of our log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told_at = -_SAY_AGAIN_S

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() - self._told_at >= _SAY_AGAIN_S:
            self._told_at = time.monotonic()
            log.warning("traces_not_sent", reason=record.getMessage())
