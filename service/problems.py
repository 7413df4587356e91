"""Owns how errors are answered: RFC 9457 problem documents, with a pointer to each bad field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import pydantic
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from pared.errors import NotReady, OverLimit, ParedError, TooManyRequests, Unauthorized, Unavailable, ValidationError
from pared.specs.advice import MAX_ERRORS, advice_on, advised
from pared.state.session import database_problem
from service.pages import site

RETRY_AFTER_S = 2
_TEXT_CHARACTERS = 2000
"""Of one pointer, and of what is said there."""

log = structlog.get_logger()

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def install(app: FastAPI) -> None:
    """Answer every error of this app with a problem document."""
    app.add_exception_handler(ParedError, _named)
    app.add_exception_handler(SQLAlchemyError, _database)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _http)


def problem(request_id: str, error: ParedError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response for a named error."""
    more = dict(headers or {})
    if isinstance(error, OverLimit):
        more.setdefault("Retry-After", str(error.retry_after_s))
    if isinstance(error, NotReady | Unavailable | TooManyRequests):
        more.setdefault("Retry-After", str(RETRY_AFTER_S))
    if isinstance(error, Unauthorized):
        more["WWW-Authenticate"] = "Bearer"
    return document({**error.problem(), "request_id": request_id}, more)


def answer(request: Request, error: ParedError) -> Response:
    """The response for a named error: a page for whoever looks at pages, and otherwise a problem document."""
    if site.wants_page(request):
        return site.problem_page(request, {**error.problem(), "request_id": request.state.request_id}, error)
    return problem(request.state.request_id, error)


def document(members: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A problem document from its members; `status` is also the response's."""
    return JSONResponse(members, members["status"], dict(headers or {}), media_type="application/problem+json")


def invalid(errors: Sequence[Mapping[str, Any]], body: Any, models: Mapping[str, type[pydantic.BaseModel]]) -> Any:
    """A ValidationError from pydantic's errors about a tagged union of specs.

    Args:
        errors: `pydantic.ValidationError.errors()`.
        body: the JSON that was validated; it tells field names from the tags that pydantic mixes in.
        models: tag -> spec, to name bounds and near misses.
    """
    tag = body.get("type") if isinstance(body, dict) else None
    model = models.get(tag) if isinstance(tag, str) else None
    return _validation_error(advised(errors, body, model), len(errors))


def only_known_parameters(request: Request, known: Sequence[str]) -> None:
    """Refuse query parameters that the route does not have: a misspelt one would do nothing. Raises ValidationError."""
    if not request.scope["query_string"]:
        return
    there = f"there are {', '.join(known)}" if known else "there are none here"
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in known]
    if unknown:
        raise _validation_error(
            [
                {"pointer": f"/query/{name}", "detail": f"is not a known parameter; {there}"}
                for name in unknown[:MAX_ERRORS]
            ],
            len(unknown),
        )


def _validation_error(first: list[dict[str, str]], total: int) -> ValidationError:
    """The error for so many bad fields, of which the first are told, cut to a length that people read."""
    shown = [{name: _shortened(text) for name, text in error.items()} for error in first]
    more = f" (and {total - 1:,} more)" if total > 1 else ""
    summary = f"{shown[0]['pointer'] or 'The body'} {shown[0]['detail']}{more}"
    if total > len(shown):
        shown.append({"pointer": "", "detail": f"and {total - len(shown):,} more; mend these first"})
    return ValidationError(summary, errors=shown)


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_CHARACTERS else f"{text[:_TEXT_CHARACTERS]}…"


async def _named(request: Request, error: Exception) -> Response:
    assert isinstance(error, ParedError)  # noqa: S101 - what the handler is registered for
    if error.status >= 500:
        log.error("problem", code=error.code, detail=error.detail, request_id=request.state.request_id)
    return answer(request, error)


async def _database(request: Request, error: Exception) -> Response:
    return answer(request, database_problem(error))


async def _parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what the handler is registered for
    errors = error.errors()
    first = [
        {"pointer": "".join(f"/{part}" for part in one["loc"]), "detail": advice_on(one, None)}
        for one in errors[:MAX_ERRORS]
    ]
    return answer(request, _validation_error(first, len(errors)))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what the handler is registered for
    title = HTTPStatus(error.status_code).phrase
    detail = {
        404: f"There is nothing at {_shortened(request.url.path)}. The routes are described at /docs.",
        405: f"{request.method} is not possible at {_shortened(request.url.path)}. The routes are described at /docs.",
    }.get(error.status_code, str(error.detail))
    members = {
        "type": f"/problems/{title.lower().replace(' ', '-')}",
        "title": title,
        "status": error.status_code,
        "detail": detail,
        "request_id": request.state.request_id,
    }
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(method for method in _METHODS if _is_route(request, method))
    return site.problem_page(request, members) if site.wants_page(request) else document(members, headers)


def _is_route(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)
