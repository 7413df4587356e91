"""Owns that every request which changes something is in the audit log before its sender knows of its success."""

from __future__ import annotations

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pared.state.audit import Act, Actor
from pared.state.keys import Caller
from service.batches import Batches
from service.dependencies import ADMIN_PATH

_LOOKS = {"GET", "HEAD", "OPTIONS"}
_ALSO_LOOKS = {"/jobs/new/preview"}
"""Paths to which a form is posted that is only looked at."""

log = structlog.get_logger()


class AuditMiddleware:
    """Adds an entry for each request with another method than GET that did something, or was refused for its scope.

    What an administrator did is written down in the act's own transaction, and not here.
    """

    def __init__(self, app: ASGIApp, acts: Batches[Act, None]) -> None:
        """Args: acts: writes them down."""
        self.app = app
        self.acts = acts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in _LOOKS or scope["path"] in _ALSO_LOOKS:
            await self.app(scope, receive, send)
            return

        async def send_once_written(message: Message) -> None:
            if message["type"] == "http.response.start":
                caller: Caller | None = scope.get("state", {}).get("caller")
                status = message["status"]
                recorded = scope["path"].startswith(ADMIN_PATH) and status < 400
                headers = Headers(raw=message["headers"])
                # Of an upload in pieces its beginning is told, and the piece that made it whole.
                piece = "upload-offset" in headers and "upload-result" not in headers and "location" not in headers
                if caller is not None and (status < 400 or status == 403) and not recorded and not piece:
                    await self._write(scope, caller, status, headers)
            await send(message)

        await self.app(scope, receive, send_once_written)

    async def _write(self, scope: Scope, caller: Caller, status: int, headers: Headers) -> None:
        made = headers.get("location", "").rpartition("/")[2]
        named = [str(value) for value in scope.get("path_params", {}).values()]
        subject = made or (named[-1] if named else None)
        actor = Actor(caller.owner, caller.key_id, scope["state"].get("request_id"))
        action = f"{scope['method']} {scope['route'].path}"
        try:
            await self.acts.get(Act(actor, action, subject, {"status": status}))
        except SQLAlchemyError:
            # It is done, so the answer must say so.
            log.exception("audit_not_written", action=action, subject=subject, owner=caller.owner)
