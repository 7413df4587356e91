"""What an owner may use, and has used; how long their things are kept; their keys."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from pared.report_page import numbers
from pared.state.keys import list_keys
from pared.state.limits import Limit, usage
from pared.state.owners import LOCAL_OWNER
from pared.state.tables import ApiKey, Owner
from service.dependencies import CallerOf, PartsOf
from service.pages.site import render
from service.pages.words import ago, moment

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class LimitRow:
    """A limit, in words."""

    meaning: str
    of: str
    used: str
    most: str
    share: float | None
    """How much of it is used up, 0 to 1; None: that is not counted, or there is no limit."""


@dataclass(frozen=True)
class KeyRow:
    """A key, in words."""

    name: str
    id: str
    scopes: str
    made: str
    last_used: str
    state: str
    here: bool
    """Whether this browser uses it."""


@router.get("/account")
def account(request: Request, parts: PartsOf, caller: CallerOf) -> Response:
    """The limits and keys of the owner."""
    with parts.sessions() as session:
        rows = [_limit_row(*each) for each in usage(session, caller.owner, parts.settings)]
        owner = session.get(Owner, caller.owner)
    own_days = None if owner is None else owner.retention_days
    keys = list_keys(parts.sessions, caller.owner, all_=True) if caller.owner != LOCAL_OWNER else []
    context = {
        "name": caller.owner if owner is None else owner.name,
        "counted": [row for row in rows if row.used],
        "others": [row for row in rows if not row.used],
        "days": parts.settings.retention_days if own_days is None else own_days,
        "keys": _key_rows(keys, caller.key_id),
        "local": caller.owner == LOCAL_OWNER,
    }
    return render(request, "account.html.j2", context)


def _limit_row(limit: Limit, value: float | None, used: int | None) -> LimitRow:
    share = min(1.0, used / value) if used is not None and value else None
    most = "no limit" if value is None else _amount(value, limit.unit)
    return LimitRow(limit.meaning, limit.of, "" if used is None else _amount(used, limit.unit), most, share)


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return numbers.size(value)
    if unit == "seconds":
        return numbers.seconds(value)
    return f"{value:,g}" + (" a second" if unit == "requests a second" else "")  # what is counted, its meaning says


def _key_rows(keys: Sequence[ApiKey], here: str | None) -> list[KeyRow]:
    now = time.time()
    rows = []
    for key in reversed(keys):
        if key.revoked_at is not None:
            state = f"revoked {moment(key.revoked_at)}"
        elif key.expires_at is not None:
            state = f"{'expired' if key.expires_at <= now else 'works until'} {moment(key.expires_at)}"
        else:
            state = "works until it is revoked"
        scopes = ", ".join(key.scopes.split())
        used = ago(key.last_used_at, now)
        rows.append(KeyRow(key.name, key.id, scopes, moment(key.created_at), used, state, key.id == here))
    return rows
