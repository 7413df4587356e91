"""Owns how errors are answered: RFC 9457 problem documents, with a pointer to each bad field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args

import pydantic
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from pared.errors import NotReady, OverLimit, ParedError, TooManyRequests, Unauthorized, Unavailable, ValidationError
from pared.state.session import database_problem
from service.pages import site

RETRY_AFTER_S = 2
MAX_ERRORS = 20
"""Bad fields that one problem names; a last entry says how many there are beside them."""
MAX_SUGGESTIONS = 5
"""Unknown fields of one request to which a known name is looked for; it takes a millisecond each."""
_NAME_CHARACTERS = 64
"""Of a name that somebody may have misspelt."""
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
    field_errors = []
    suggestions = 0
    for error in errors[:MAX_ERRORS]:
        pointer = _pointer(error["loc"], body, may_lack_it=error["type"] in ("missing", "advice"))
        if error["type"].startswith("union_tag_"):
            pointer += "/" + str(error["ctx"]["discriminator"]).strip("'")
        suggestions += error["type"] == "extra_forbidden"
        detail = _advice(error, model if suggestions <= MAX_SUGGESTIONS else None)
        field_errors.append({"pointer": pointer, "detail": detail})
    return _validation_error(field_errors, len(errors))


async def only_known_parameters(request: Request) -> None:
    """A dependency that refuses query parameters which the route does not have: a misspelt one would do nothing."""
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
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


def _pointer(location: Sequence[str | int], body: Any, *, may_lack_it: bool) -> str:
    """The JSON pointer of a pydantic location, without the union tags in it; the body may lack the field itself."""
    parts: list[str] = []
    here = body
    for index, step in enumerate(location):
        if isinstance(here, dict) and step in here:
            here = here[step]
        elif isinstance(here, list) and step in range(len(here)):
            here = here[int(step)]
        elif not (may_lack_it and index == len(location) - 1):
            continue
        parts.append(str(step).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{part}" for part in parts)


def _advice(error: Mapping[str, Any], model: type[pydantic.BaseModel] | None) -> str:
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return _unknown_field(str(error["loc"][-1]), _model_at(error["loc"][:-1], model))
    if kind in {"greater_than", "less_than", "greater_than_equal", "less_than_equal", "finite_number"}:
        bounds = _bounds(_model_at(error["loc"][:-1], model), str(error["loc"][-1]))
        if bounds:
            return f"must be {bounds}"
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return "must be an object"
    if kind == "union_tag_invalid":
        return f"must be one of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return "is required"
    if kind == "string_pattern_mismatch" and context["pattern"].startswith("^mdl_"):
        return "must be the id of an uploaded model (mdl_ and 26 letters and digits)"
    if kind == "string_pattern_mismatch" and error["loc"][-1] == "after":
        return "must be the next_cursor of the page before"
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    text = re.sub(r"^(Value error, |Input )?should ", "must ", re.sub(r"^Input should ", "must ", error["msg"]))
    return text[0].lower() + text[1:]


def _unknown_field(name: str, model: type[pydantic.BaseModel] | None) -> str:
    if model is None:
        return "is not a known field"
    close = difflib.get_close_matches(name[:_NAME_CHARACTERS], model.model_fields, n=1)
    if close:
        return f"is not a known field; did you mean {close[0]}?"
    return f"is not a known field; there are {', '.join(model.model_fields)}"


def _model_at(location: Sequence[str | int], model: type[pydantic.BaseModel] | None) -> type[pydantic.BaseModel] | None:
    """The spec class that a location lies in, starting from the job's."""
    inner: dict[str, type[pydantic.BaseModel]] = {}
    for step in location:
        if step in inner:
            model = inner[str(step)]  # the tag of a union's member is its name
        elif model and step in model.model_fields:
            inner = {part.__name__: part for part in _models_in(model.model_fields[str(step)].annotation)}
            model = next(iter(inner.values())) if len(inner) == 1 else None
    return model


def _models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _bounds(model: type[pydantic.BaseModel] | None, name: str) -> str | None:
    field = model.model_fields.get(name) if model else None
    if field is None:
        return None
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    parts = [
        f"{word} {_number(getattr(rule, attribute))}"
        for rule in field.metadata
        for attribute, word in words.items()
        if getattr(rule, attribute, None) is not None
    ]
    return " and ".join(parts) or None


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


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
        {"pointer": "".join(f"/{part}" for part in one["loc"]), "detail": _advice(one, None)}
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
