"""Owns that whoever asks a route of the API is known, and that all they ask for means something, before it answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from service.dependencies import caller_of
from service.problems import only_known_parameters


class CheckedRoute(APIRoute):
    """A route that is answered to callers who are known.

    Where all routes of a router depended on it by `Depends`, it would take a tenth of a millisecond more each time.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """As FastAPI makes it."""
        super().__init__(*args, **options)
        self.parameters = list(_names(self.dependant.query_params))
        """All that a query may have."""

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
        only_known_parameters(request, self.parameters)


class PlainRoute(CheckedRoute):
    """One whose endpoint takes the request, what stands in the path, as text, and perhaps `query`, a model.

    For what is asked for many times a second: to find out from a signature what an endpoint takes, FastAPI needs more
    time than most answers. It stands among the app's own routes, not in a router that is included.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; errors are the app's to answer."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive, send)
        await self.check(request)
        given = dict(scope["path_params"])
        for parameter in self.dependant.query_params:
            given[parameter.name] = _validated(parameter.field_info.annotation, request)
        response: Response = await self.endpoint(request, **given)
        await response(scope, receive, send)


def _validated(model: Any, request: Request) -> BaseModel:
    try:
        query: BaseModel = model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("query", *one["loc"])} for one in error.errors()]) from error
    return query


def _names(parameters: Iterable[Any]) -> Iterator[str]:
    for parameter in parameters:
        annotation = parameter.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from annotation.model_fields
        else:
            yield parameter.alias
