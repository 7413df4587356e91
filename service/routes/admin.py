"""Owners, keys and the audit log, for keys with the scope `admin`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field
from sqlalchemy import select

from pared.errors import NotFound
from pared.state.audit import entries
from pared.state.keys import USUAL_SCOPES, NewKey, Scope, add_key, key_counts, revoke_key, rotate_key
from pared.state.owners import LOCAL_OWNER, create_owner, disable_owner, enable_owner
from pared.state.tables import ApiKey, AuditEntry, Owner
from service.checked_routes import CheckedRoute
from service.dependencies import ADMIN_PATH, ActorOf, PartsOf, check_id
from service.openapi import answers, page
from service.pagination import After, Limit, json_page
from service.schemas import Page, timestamp, timestamp_or_none

router = APIRouter(prefix=ADMIN_PATH.rstrip("/"), tags=["administration"], route_class=CheckedRoute)

OWNER_ID = "own_01K9Q5V7M3W8Z2X4Y6A0B1C2D3"
KEY_ID = "key_01K9Q5V7M3W8Z2X4Y6A0B1C2D3"
EXAMPLE_OWNER = {
    "id": OWNER_ID,
    "name": "ann",
    "created_at": "2026-01-15T09:00:00.000Z",
    "disabled_at": None,
    "retention_days": None,
    "keys": 2,
}
EXAMPLE_KEY = {
    "id": KEY_ID,
    "owner": OWNER_ID,
    "name": "laptop",
    "scopes": ["read", "submit"],
    "created_at": "2026-01-15T09:00:00.000Z",
    "expires_at": None,
    "last_used_at": "2026-01-15T09:30:00.000Z",
    "revoked_at": None,
}
EXAMPLE_NEW_KEY = EXAMPLE_KEY | {"last_used_at": None, "secret": "pared_…"}
EXAMPLE_ENTRY = {
    "id": "812",
    "at": "2026-01-15T09:40:00.000Z",
    "actor": OWNER_ID,
    "key": KEY_ID,
    "action": "POST /v1/jobs",
    "subject": "job_01K9Q5X8C3F6H9K2M5P8S1V4Y7",
    "detail": {"status": 202},
    "request_id": "6f1c0e9a2b7d4e58",
}
DAY_S = 86_400.0

Name = Annotated[
    str, Query(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$", description="A name to tell it by.")
]
CancelJobs = Annotated[bool, Query(description="Also cancel what waits and runs.")]


class OwnerView(BaseModel):
    """An owner of models, data sets and jobs."""

    id: str
    name: str
    created_at: str | None
    disabled_at: str | None
    retention_days: float | None = Field(
        description="How many days their ended jobs and unused uploads are kept; 0: for ever; null: as the service's "
        "setting says."
    )
    keys: int = Field(description="How many of their keys work.")


class KeyView(BaseModel):
    """A key, without its secret."""

    id: str
    owner: str
    name: str
    scopes: list[Scope]
    created_at: str | None
    expires_at: str | None
    last_used_at: str | None = Field(description="To the minute.")
    revoked_at: str | None


class NewKeyView(KeyView):
    """A key that was just made."""

    secret: str = Field(description="Shown this once.")


class EntryView(BaseModel):
    """Something that somebody did."""

    id: str
    at: str | None
    actor: str = Field(description="An owner's id, or `command line`.")
    key: str | None
    action: str = Field(description="What was done, or the request's method and route.")
    subject: str | None = Field(description="What it was done to.")
    detail: dict[str, Any] | None
    request_id: str | None


@router.get(
    "/owners",
    response_model=Page[OwnerView],
    summary="List owners",
    description="Newest first. `local`, the last one, owns what is made without a key.",
    responses=answers(200, page(EXAMPLE_OWNER)),
)
def get_owners(parts: PartsOf, after: After = None, limit: Limit = 20) -> Response:
    """A page of owners."""
    with parts.sessions() as session:
        counts = key_counts(session)

        def views(owners: Sequence[Owner]) -> list[OwnerView]:
            return [_owner_view(owner, counts.get(owner.id, 0)) for owner in owners]

        return json_page(session, select(Owner), Owner.id, after, limit, views)


@router.post(
    "/owners",
    status_code=201,
    response_model=OwnerView,
    summary="Make an owner",
    description="Without a key: make one with `POST /v1/admin/owners/{owner_id}/keys`.",
    responses=answers(201, EXAMPLE_OWNER | {"keys": 0}),
)
def post_owner(parts: PartsOf, actor: ActorOf, name: Name) -> OwnerView:
    """Make one."""
    return _owner_view(create_owner(parts.sessions, name, actor), 0)


@router.post(
    "/owners/{owner_id}/disable",
    status_code=204,
    summary="Disable an owner",
    description="All their keys stop working, and streams that they hold open end within seconds. Their things stay.",
    responses=answers(204, None, 404, 409),
)
def post_disable(parts: PartsOf, actor: ActorOf, owner_id: str, cancel_jobs: CancelJobs = False) -> None:
    """Disable."""
    _check_owner_id(owner_id)
    if disable_owner(parts.sessions, owner_id, cancel_jobs=cancel_jobs, actor=actor) is None:
        raise NotFound(f"There is no owner {owner_id}.")


@router.post(
    "/owners/{owner_id}/enable",
    status_code=204,
    summary="Enable an owner",
    description="Their keys work again, but for those that were revoked or have expired.",
    responses=answers(204, None, 404),
)
def post_enable(parts: PartsOf, actor: ActorOf, owner_id: str) -> None:
    """Enable."""
    _check_owner_id(owner_id)
    if not enable_owner(parts.sessions, owner_id, actor):
        raise NotFound(f"There is no owner {owner_id}.")


@router.get(
    "/owners/{owner_id}/keys",
    response_model=Page[KeyView],
    summary="List an owner's keys",
    description="Newest first, also those that were revoked or have expired.",
    responses=answers(200, page(EXAMPLE_KEY), 404),
)
def get_keys(parts: PartsOf, owner_id: str, after: After = None, limit: Limit = 20) -> Response:
    """A page of one owner's keys."""
    _check_owner_id(owner_id)
    with parts.sessions() as session:
        if session.get(Owner, owner_id) is None:
            raise NotFound(f"There is no owner {owner_id}.")
        query = select(ApiKey).where(ApiKey.owner_id == owner_id)
        return json_page(session, query, ApiKey.id, after, limit, lambda keys: [KeyView(**_key(key)) for key in keys])


@router.post(
    "/owners/{owner_id}/keys",
    status_code=201,
    response_model=NewKeyView,
    summary="Make a key",
    description="Its secret is in this answer and nowhere else.",
    responses=answers(201, EXAMPLE_NEW_KEY, 404, 409),
)
def post_key(
    response: Response,
    parts: PartsOf,
    actor: ActorOf,
    owner_id: str,
    name: Name,
    scope: Annotated[list[Scope], Query(description="What it is for; may be given several times.")] = [*USUAL_SCOPES],  # noqa: B006 - FastAPI copies it
    valid_days: Annotated[float | None, Query(gt=0, le=36_500, description="How long it works.")] = None,
) -> NewKeyView:
    """Make one more key of an owner."""
    _check_owner_id(owner_id)
    valid_s = None if valid_days is None else valid_days * DAY_S
    return _new_key_view(response, add_key(parts.sessions, owner_id, name, scopes=scope, valid_s=valid_s, actor=actor))


@router.post(
    "/keys/{key_id}/rotate",
    status_code=201,
    response_model=NewKeyView,
    summary="Replace a key",
    description="Makes a key of the same owner, name, scopes and time to live. The old one stops working at once, or "
    "after `old_works_hours`.",
    responses=answers(201, EXAMPLE_NEW_KEY, 404),
)
def post_rotate(
    response: Response,
    parts: PartsOf,
    actor: ActorOf,
    key_id: str,
    old_works_hours: Annotated[float, Query(ge=0, le=8760, description="How long the old key goes on working.")] = 0.0,
) -> NewKeyView:
    """Replace a key that works."""
    check_id(key_id, "key")
    made = rotate_key(parts.sessions, key_id, old_works_s=old_works_hours * 3600, actor=actor)
    if made is None:
        raise NotFound(f"There is no key {key_id} that works.")
    return _new_key_view(response, made)


@router.post(
    "/keys/{key_id}/revoke",
    status_code=204,
    summary="Revoke a key",
    description="It works no more, and streams that it holds open end within seconds. With `cancel_jobs`, what waits "
    "and runs of the jobs that were submitted with it is canceled.",
    responses=answers(204, None, 404),
)
def post_revoke(parts: PartsOf, actor: ActorOf, key_id: str, cancel_jobs: CancelJobs = False) -> None:
    """Revoke."""
    check_id(key_id, "key")
    if not revoke_key(parts.sessions, key_id, cancel_jobs=cancel_jobs, actor=actor):
        raise NotFound(f"There is no key {key_id} that works.")


@router.get(
    "/audit",
    response_model=Page[EntryView],
    summary="Look at the audit log",
    description="Who did what, newest first: each request that changed something, and each change of owners and keys.",
    responses=answers(200, page(EXAMPLE_ENTRY)),
)
def get_audit(
    parts: PartsOf,
    after: Annotated[int | None, Query(ge=1, lt=1 << 31, description="`next_cursor` of the page before.")] = None,
    limit: Limit = 20,
    actor_id: Annotated[
        str | None,
        Query(alias="actor", max_length=30, pattern=r"^[0-9A-Za-z_ ]+$", description="Only what this owner did."),
    ] = None,
) -> Page[EntryView]:
    """A page of entries."""
    with parts.sessions() as session:
        rows = entries(session, before=after, actor=actor_id, limit=limit + 1)
    shown, has_more = [_entry_view(row) for row in rows[:limit]], len(rows) > limit
    return Page[EntryView](data=shown, has_more=has_more, next_cursor=shown[-1].id if has_more else None)


def _check_owner_id(owner_id: str) -> None:
    if owner_id != LOCAL_OWNER:
        check_id(owner_id, "own")


def _owner_view(owner: Owner, keys: int) -> OwnerView:
    return OwnerView(
        id=owner.id,
        name=owner.name,
        created_at=timestamp(owner.created_at),
        disabled_at=timestamp_or_none(owner.disabled_at),
        retention_days=owner.retention_days,
        keys=keys,
    )


def _key(key: ApiKey) -> dict[str, Any]:
    times = {
        name: timestamp_or_none(getattr(key, name))
        for name in ("created_at", "expires_at", "last_used_at", "revoked_at")
    }
    return {"id": key.id, "owner": key.owner_id, "name": key.name, "scopes": key.scopes.split(), **times}


def _new_key_view(response: Response, made: NewKey) -> NewKeyView:
    response.headers["Cache-Control"] = "no-store"
    return NewKeyView(**_key(made.key), secret=made.secret)


def _entry_view(row: AuditEntry) -> EntryView:
    return EntryView(
        id=str(row.id),
        at=timestamp(row.at),
        actor=row.actor,
        key=row.key_id,
        action=row.action,
        subject=row.subject,
        detail=row.detail,
        request_id=row.request_id,
    )
