"""Owns what every request passes through: its id, its line in the log, and the answer where code fails."""

from __future__ import annotations

import re
import secrets
import time
from contextlib import AbstractContextManager, nullcontext

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pared.errors import ParedError
from pared.state import tracing
from pared.state.settings import Settings
from pared.state.tracing import NO_SPAN, Span
from service import security_headers
from service.metrics import NO_ROUTE, Metrics, method_of, route_of
from service.origins import refusal
from service.problems import answer

_PATH_CHARACTERS = 500
"""Of a path, in the log."""
_UNTRACED = ("/healthz", "/readyz", "/metrics", "/static/")
"""What paths begin with that machines ask for again and again."""
_SECURITY = [(name.lower().encode(), value.encode()) for name, value in security_headers.DEFAULTS.items()]
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = structlog.get_logger()


class RequestMiddleware:
    """The outermost ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        """Make it.

        Args:
            settings: whether requests must come with a key, and from where they may come.
            metrics: where requests are counted.
        """
        self.app = app
        self.settings = settings
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        header = headers.get("x-request-id", "")
        request_id = header if _REQUEST_ID.fullmatch(header) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started_at, status, sent = time.perf_counter(), 0, 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                given = message.setdefault("headers", [])
                names = {name for name, _ in given}
                given.append((b"x-request-id", request_id.encode()))
                given += [header for header in _SECURITY if header[0] not in names]
            sent += len(message.get("body", b""))
            await send(message)

        with _span(scope, headers) as span:
            try:
                refused = refusal(scope["method"], headers, self.settings)
                if refused:
                    await answer(Request(scope), refused)(scope, receive, send_with_id)
                else:
                    await self.app(scope, receive, send_with_id)
            except ClientDisconnect:
                log.info("client_left", path=scope["path"][:_PATH_CHARACTERS], request_id=request_id)
            except Exception:
                log.exception("request_failed", path=scope["path"][:_PATH_CHARACTERS], request_id=request_id)
                if status:
                    raise  # half an answer is out: the server closes the connection, so the client sees it is broken
                error = ParedError(f"This is our fault, not yours. If you report it, give the request id {request_id}.")
                await answer(Request(scope), error)(scope, receive, send_with_id)
            finally:
                self.metrics.count_request(scope, status, time.perf_counter() - started_at)
                if span is not NO_SPAN:
                    _describe(span, scope, status, request_id)
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"][:_PATH_CHARACTERS],
                    status=status,
                    ms=round((time.perf_counter() - started_at) * 1000, 1),
                    bytes=sent,
                    request_id=request_id,
                    **tracing.trace_id(span.traceparent),
                )


def _span(scope: Scope, headers: Headers) -> AbstractContextManager[Span]:
    if scope["path"].startswith(_UNTRACED):
        return nullcontext(NO_SPAN)
    return tracing.serving(method_of(scope), headers)


def _describe(span: Span, scope: Scope, status: int, request_id: str) -> None:
    """Say what the request was. Neither its path, which may hold a name of a file, nor its query is told."""
    route = route_of(scope)
    if route != NO_ROUTE:
        span.name(f"{method_of(scope)} {route}")
        span.note({"http.route": route})
    span.note({"pared.request.id": request_id})
    caller = scope["state"].get("caller")
    if caller is not None:
        span.note({"pared.owner.id": caller.owner})
    if status:
        span.note({"http.response.status_code": status})
    if status >= 500:
        span.fail(str(status))
