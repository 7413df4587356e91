"""The page of each error, under the path that `type` of its problem document names. Nobody needs a key for them."""

from __future__ import annotations

from itertools import groupby

from fastapi import APIRouter, Request, Response

from pared.error_help import error_help
from pared.errors import NotFound
from service.pages.site import render

router = APIRouter(include_in_schema=False)

_NAME_CHARACTERS = 100
"""Of a name that is unknown, in the page that says so."""


@router.get("/problems")
def problems(request: Request) -> Response:
    """All errors, by where they are met."""
    groups = [(name, list(those)) for name, those in groupby(error_help().values(), key=lambda one: one.group)]
    return render(request, "problems.html.j2", {"groups": groups})


@router.get("/problems/{name}")
def problem(request: Request, name: str) -> Response:
    """What one error means, why it comes, and what to do."""
    found = error_help().get(name)
    if found is None:
        raise NotFound(f"No error is called {name[:_NAME_CHARACTERS]}. All of them are at /problems.")
    return render(request, "problem_help.html.j2", {"problem": found})
