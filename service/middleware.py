"""Owns what every request passes through: its id, its line in the log, and the answer where code fails."""

from __future__ import annotations

import re
import secrets
import time
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pared.errors import Forbidden, ParedError
from pared.state.settings import Settings
from service.problems import problem

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOCAL_NAMES = {"localhost", "127.0.0.1", "::1", "[::1]"}

log = structlog.get_logger()


class RequestMiddleware:
    """The outermost ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Args: settings: whether requests must come with a key, and from where they may come."""
        self.app = app
        self.settings = settings

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
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = request_id
                answer["X-Content-Type-Options"] = "nosniff"
            sent += len(message.get("body", b""))
            await send(message)

        try:
            refusal = _refusal(scope["method"], headers, self.settings)
            if refusal:
                await problem(request_id, refusal)(scope, receive, send_with_id)
            else:
                await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.info("client_left", path=scope["path"], request_id=request_id)
        except Exception:
            log.exception("request_failed", path=scope["path"], request_id=request_id)
            if status:
                raise  # half an answer is out: the server closes the connection, so the client sees it is broken
            error = ParedError(f"This is our fault, not yours. If you report it, give the request id {request_id}.")
            await problem(request_id, error)(scope, receive, send_with_id)
        finally:
            log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((time.perf_counter() - started_at) * 1000, 1),
                bytes=sent,
                request_id=request_id,
            )


def _refusal(method: str, headers: Headers, settings: Settings) -> ParedError | None:
    """The refusal of a request that a page of another site made through the browser of somebody who needs no key."""
    if settings.keys_required:
        return None
    if method not in {"GET", "HEAD", "OPTIONS"} and headers.get("sec-fetch-site") == "cross-site":
        return Forbidden("Another web site made this request. Use this server's own pages, or a client.")
    if settings.loopback:
        name = _host_name(headers.get("host", "localhost"))
        if name not in _LOCAL_NAMES and name != settings.host:
            return Forbidden(
                f"This server answers to localhost, not to {name}. To reach it by another name, set PARED_HOST and "
                "make a key with `pared keys add NAME`."
            )
    return None


def _host_name(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or "localhost"
    except ValueError:
        return header
