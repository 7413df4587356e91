"""What an owner may use, and has used."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from pared.state.limits import usage
from service.dependencies import CallerOf, PartsOf
from service.pages.site import render

router = APIRouter(include_in_schema=False)


@router.get("/account")
async def account(request: Request, parts: PartsOf, caller: CallerOf) -> Response:
    """The limits of the owner."""

    def read() -> list[tuple[object, float | None, int | None]]:
        with parts.sessions() as session:
            return list(usage(session, caller.owner, parts.settings))

    return render(request, "account.html.j2", {"limits": await run_in_threadpool(read)})
