"""Signing in with an API key, and out again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from pared.errors import Unauthorized
from pared.state import keys
from service.dependencies import KEY_COOKIE, PartsOf
from service.pages.site import render, see_other

router = APIRouter(include_in_schema=False)

_Next = Annotated[str, Query(max_length=2000)]


@router.get("/sign-in")
async def sign_in_page(request: Request, parts: PartsOf, next: _Next = "/") -> Response:  # noqa: A002 - the name people expect
    """The form that asks for a key; it says why the browser's own works no more."""
    problem, own = None, request.cookies.get(KEY_COOKIE)
    if own is not None:
        try:
            await run_in_threadpool(keys.caller_of, parts.sessions, own)
        except Unauthorized as error:
            problem = f"{error.detail} Sign in with another one: you come back to the page where you were."
    context = {"next": _own_path(next), "problem": problem, "signed_in": own is not None and problem is None}
    return render(request, "sign_in.html.j2", context)


@router.post("/sign-in")
async def sign_in(
    request: Request,
    parts: PartsOf,
    key: Annotated[str, Form(max_length=500)] = "",
    next: Annotated[str, Form(max_length=2000)] = "/",  # noqa: A002
) -> Response:
    """Keep a key that works in a cookie until the browser ends."""
    try:
        await run_in_threadpool(keys.caller_of, parts.sessions, key.strip())
    except Unauthorized as error:
        return render(request, "sign_in.html.j2", {"next": _own_path(next), "problem": error.detail}, status=401)
    response = see_other(_own_path(next))
    # Who makes the header up has a cookie that only HTTPS carries, and harms nobody else.
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    response.set_cookie(KEY_COOKIE, key.strip(), secure=secure, httponly=True, samesite="strict", path="/")
    return response


@router.post("/sign-out")
async def sign_out() -> Response:
    """Forget the key."""
    response = see_other("/sign-in")
    response.delete_cookie(KEY_COOKIE, httponly=True, samesite="strict", path="/")
    return response


def _own_path(path: str) -> str:
    """A path of this server, whatever a link asked for: never that of another one."""
    own = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if own else "/"
