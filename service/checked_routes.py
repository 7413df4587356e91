"""Owns that whoever asks a route of the API is known, and that all they ask for means something, before it answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from service.dependencies import caller_of
from service.problems import only_known_parameters


class CheckedRoute(APIRoute):
    """A route that is answered to callers who are known.

    Where all routes of a router depended on it by `Depends`, it would take a tenth of a millisecond more each time.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's own handler, behind the checks."""
        handler = super().get_route_handler()

        async def checked(request: Request) -> Response:
            await self.check(request)
            return await handler(request)

        return checked

    async def check(self, request: Request) -> None:
        """Raise what is wrong with the caller or with what they ask."""
        await caller_of(request)
        only_known_parameters(request)


class PlainRoute(CheckedRoute):
    """One whose endpoint takes the request and what stands in the path, as text: FastAPI has nothing to find out.

    For what is asked for many times a second; most of its time would go into finding that out. It stands among the
    app's own routes, not in a router that is included.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; errors are the app's to answer."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive, send)
        await self.check(request)
        response: Response = await self.endpoint(request, **scope["path_params"])
        await response(scope, receive, send)
