"""Limits: what an owner may use, and has used."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from pared.state.keys import SCOPES
from pared.state.limits import LimitOf, usage
from service.checked_routes import CheckedRoute
from service.dependencies import CallerOf, PartsOf
from service.openapi import answers

router = APIRouter(tags=["limits"], route_class=CheckedRoute)

EXAMPLE = {
    "owner": "own_01K9Q5V7M3W8Z2X4Y6A0B1C2D3",
    "scopes": ["read", "submit"],
    "limits": [
        {
            "name": "jobs_waiting",
            "of": "owner",
            "unit": "jobs",
            "limit": 500,
            "used": 3,
            "setting": "PARED_MAX_WAITING_JOBS",
            "meaning": "Jobs that wait for a worker.",
        }
    ],
}


class LimitView(BaseModel):
    """One limit."""

    name: str = Field(description="As a problem with status 429 names it.")
    of: LimitOf = Field(description="For what the number is, each by itself.")
    unit: str
    limit: float | None = Field(description="Null: there is none.")
    used: int | None = Field(description="How much of it is used up; null where this is not counted.")
    setting: str = Field(description="What whoever runs this server sets.")
    meaning: str


class LimitsView(BaseModel):
    """The limits of an owner."""

    owner: str
    scopes: list[str] = Field(description="What the key that asks may do.")
    limits: list[LimitView]


@router.get(
    "/v1/limits",
    response_model=LimitsView,
    summary="Look at your limits",
    description="Every limit of a request, an upload or a job that whoever runs this server may set, and how much of "
    "each is used up. Beyond one of an owner, requests are answered 429 with its name in `limit`, and with "
    "`Retry-After`.",
    responses=answers(200, EXAMPLE),
)
def get_limits(parts: PartsOf, caller: CallerOf) -> LimitsView:
    """The table."""
    with parts.sessions() as session:
        rows = usage(session, caller.owner, parts.settings)
    views = [
        LimitView(
            name=limit.name,
            of=limit.of,
            unit=limit.unit,
            limit=value,
            used=used,
            setting=f"PARED_{limit.setting.upper()}",
            meaning=limit.meaning,
        )
        for limit, value, used in rows
    ]
    scopes = [scope for scope in SCOPES if scope in caller.scopes]
    return LimitsView(owner=caller.owner, scopes=scopes, limits=views)
