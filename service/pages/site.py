"""Owns what all pages share: the templates, the style, the policy, and who looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment

from pared.error_help import error_help
from pared.errors import ParedError, Unauthorized
from pared.report_page import STYLE, environment, numbers
from pared.state.keys import Caller
from pared.version import __version__
from service.accept import prefers
from service.dependencies import KEY_COOKIE
from service.pages.inspected import format_name
from service.pages.words import with_code

router = APIRouter(include_in_schema=False)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "manifest-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # under `no-referrer` a form's own POST would say that it comes from nowhere
}
_HERE = Path(__file__).parent
_SIGN_IN = "/sign-in"


def render(
    request: Request,
    template: str,
    context: Mapping[str, Any] | None = None,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> HTMLResponse:
    """A page, or a part of one.

    Args:
        template: a file in `templates`. One whose name begins with `_` is a part, which the script puts into its page.
        context: what the template names, beside what all have: `caller`, `signed_in`, `path` and `version`.
    """
    caller: Caller | None = getattr(request.state, "caller", None)
    common = {
        "caller": caller,
        "signed_in": KEY_COOKIE in request.cookies,
        "path": request.url.path,
        "version": __version__,
    }
    body = _environment().get_template(template).render(common | dict(context or {}))
    return HTMLResponse(body, status, _HEADERS | dict(headers or {}))


def see_other(path: str, **parameters: str) -> RedirectResponse:
    """Send the browser to another page once a form has done its work, so that a reload does not repeat it."""
    return RedirectResponse(path + (f"?{urlencode(parameters)}" if parameters else ""), HTTPStatus.SEE_OTHER)


def wants_page(request: Request) -> bool:
    """Whether an error of this request is for a person: it is not one of the API, and a page is asked for."""
    of_api = request.url.path.startswith("/v1/")
    return not of_api and prefers(request, "text/html", "application/problem+json")


def problem_page(request: Request, members: Mapping[str, Any], error: ParedError | None = None) -> Response:
    """The page that says what is wrong; whoever needs a key is sent to where it is asked for."""
    if isinstance(error, Unauthorized) and request.method == "GET":
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"{_SIGN_IN}?next={quote(here, safe='')}", HTTPStatus.SEE_OTHER)
    explained = error_help().get(str(members["type"]).removeprefix("/problems/"))
    return render(request, "problem.html.j2", {"problem": members, "explained": explained}, status=members["status"])


@router.get("/style.css")
async def style() -> Response:
    """The style of all pages: that of the report, and what only pages have."""
    return Response(_style(), media_type="text/css", headers={"Cache-Control": "public, max-age=31536000, immutable"})


@cache
def _style() -> str:
    return STYLE + (_HERE / "pages.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    filled = environment(_HERE / "templates")
    filled.filters |= {"size": numbers.size, "thousands": numbers.count, "format_name": format_name}
    filled.globals |= {"with_code": with_code, "error_help": error_help}
    return filled
