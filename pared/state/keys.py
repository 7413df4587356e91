"""Owns API keys: made once and shown once, kept as a SHA-256, each of an owner and for what its scopes name."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import structlog
from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pared.errors import Conflict, NotFound, Unauthorized
from pared.state.audit import COMMAND_LINE, Actor, record
from pared.state.owners import add_owner, cancel_all
from pared.state.plain_rows import PlainQueryByKeys
from pared.state.session import Sessions
from pared.state.tables import ApiKey, Job, Owner, db_now, new_id

PREFIX = "pared_"
LAST_USE_S = 60.0
"""A key's last use is written again once what is written is so many seconds old."""

Scope = Literal["read", "submit", "admin", "metrics"]
"""`read`: look and download; `submit`: upload, post, cancel and delete; `admin`: owners, keys and the audit log;
`metrics`: how the whole service does, in numbers."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
USUAL_SCOPES: tuple[Scope, ...] = ("read", "submit")

log = structlog.get_logger()


@dataclass(frozen=True)
class Caller:
    """Whom a request acts for, and what its key allows."""

    owner: str
    key_id: str | None
    scopes: frozenset[str]


@dataclass(frozen=True)
class KnownKey:
    """A key that works."""

    caller: Caller
    used_lately: bool
    """Whether its last use needs not be written down."""


@dataclass(frozen=True)
class NewKey:
    """A key that was just made, with its secret, which cannot be shown again."""

    key: ApiKey
    secret: str


def create_key(sessions: Sessions, name: str) -> str:
    """Make an owner with one key, both of this name. Returns the key's secret, which cannot be shown again."""
    with sessions.begin() as session:
        owner = add_owner(session, name, COMMAND_LINE)
        return _make(session, owner.id, name, USUAL_SCOPES, None, COMMAND_LINE).secret


def add_key(
    sessions: Sessions,
    owner_id: str,
    name: str,
    *,
    scopes: Collection[Scope] = USUAL_SCOPES,
    valid_s: float | None = None,
    actor: Actor = COMMAND_LINE,
) -> NewKey:
    """Make one more key of an owner.

    Args:
        valid_s: how long it works; None: until it is revoked.

    Raises:
        NotFound: there is no such owner.
        Conflict: the owner is `local`, who comes without a key.
    """
    with sessions.begin() as session:
        if session.get(Owner, owner_id) is None:
            raise NotFound(f"There is no owner {owner_id}.")
        return _make(session, owner_id, name, scopes, valid_s, actor)


def list_keys(sessions: Sessions, owner_id: str | None = None, *, all_: bool = False) -> Sequence[ApiKey]:
    """The keys that work, oldest first.

    Args:
        owner_id: only those of this owner.
        all_: also those that were revoked, have expired, or whose owner is disabled.
    """
    query = select(ApiKey).join(Owner).order_by(ApiKey.id)
    if not all_:
        query = query.where(_works())
    if owner_id is not None:
        query = query.where(ApiKey.owner_id == owner_id)
    with sessions() as session:
        return session.scalars(query).all()


def rotate_key(
    sessions: Sessions, key_id: str, *, old_works_s: float = 0.0, actor: Actor = COMMAND_LINE
) -> NewKey | None:
    """Replace a key by a new one of the same owner, name, scopes and time to live; nothing of the owner's is lost.

    Args:
        old_works_s: how long the old one goes on working, for those who have yet to be given the new one.

    Returns:
        The new key; None: there is no such key that works.
    """
    with sessions.begin() as session:
        old = session.scalar(select(ApiKey).join(Owner).where(ApiKey.id == key_id, _works()).with_for_update(of=ApiKey))
        if old is None:
            return None
        now = session.scalar(select(db_now())) or 0.0
        valid_s = None if old.expires_at is None else old.expires_at - old.created_at
        made = _make(session, old.owner_id, old.name, [s for s in SCOPES if s in old.scopes.split()], valid_s, actor)
        if old_works_s > 0:
            old.expires_at = min(now + old_works_s, old.expires_at or now + old_works_s)
        else:
            old.revoked_at = now
        record(session, actor, "key.rotate", key_id, {"new_key": made.key.id, "old_works_s": old_works_s})
    return made


def revoke_key(sessions: Sessions, key_id: str, *, cancel_jobs: bool = False, actor: Actor = COMMAND_LINE) -> bool:
    """Stop a key from working; what follows jobs by it is cut off within seconds.

    Args:
        cancel_jobs: also cancel what waits and runs of the jobs that were submitted with it.

    Returns:
        Whether it worked until now; False: there is no such key, or it was revoked before.
    """
    with sessions.begin() as session:
        revoked = session.execute(
            update(ApiKey)
            .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
            .values(revoked_at=db_now())
            .returning(ApiKey.id)
        ).first()
        if revoked is None:
            return False
        canceled = cancel_all(session, Job.key_id == key_id) if cancel_jobs else 0
        record(session, actor, "key.revoke", key_id, {"jobs_canceled": canceled} if cancel_jobs else None)
    return True


class Callers:
    """Who comes with which secret, looked up for many at once. All methods may be called by several threads at once."""

    def __init__(self, sessions: Sessions) -> None:
        """Args: sessions: of the database with the keys."""
        shown = (ApiKey.secret_sha256, ApiKey.id, ApiKey.owner_id, ApiKey.scopes, ApiKey.revoked_at)
        more = (ApiKey.expires_at, ApiKey.last_used_at, Owner.disabled_at, db_now().label("now"))
        self._keys = PlainQueryByKeys(sessions, select(*shown, *more).join(Owner), ApiKey.__table__.c.secret_sha256)

    def read(self, secrets: Collection[str]) -> Mapping[str, KnownKey | Unauthorized]:
        """Secret -> its key; or, where none works with it, an error whose detail says why."""
        digests = {_digest(secret): secret for secret in secrets}
        known: dict[str, KnownKey | Unauthorized] = {}
        rows = self._keys.read(digests)
        for digest, key_id, owner, scopes, revoked_at, expires_at, last_used_at, disabled_at, now in rows:
            if revoked_at is not None:
                continue
            if expires_at is not None and expires_at <= now:
                refused = "has expired. Whoever runs this server makes another with `pared keys add`."
            elif disabled_at is not None:
                refused = "belongs to an owner whom whoever runs this server has disabled."
            else:
                caller = Caller(owner, key_id, frozenset(scopes.split()))
                used_lately = last_used_at is not None and last_used_at >= now - LAST_USE_S
                known[digests[digest]] = KnownKey(caller, used_lately)
                continue
            known[digests[digest]] = Unauthorized(f"This API key {refused}")
        unknown = Unauthorized("This API key is unknown or was revoked.")
        return {secret: known.get(secret, unknown) for secret in secrets}


def caller_of(sessions: Sessions, secret: str) -> Caller:
    """Whom this secret's key acts for. Its last use is written down, at most once a minute.

    Raises:
        Unauthorized: no key works with it; the detail says why.
    """
    known = Callers(sessions).read([secret])[secret]
    if isinstance(known, Unauthorized):
        raise known
    if not known.used_lately:
        write_last_use(sessions, known.caller.key_id)
    return known.caller


def write_last_use(sessions: Sessions, key_id: str | None) -> None:
    """Write down that a key is used now, unless that was done a moment ago."""
    old = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < db_now() - LAST_USE_S)
    try:
        with sessions.begin() as session:
            session.execute(update(ApiKey).where(ApiKey.id == key_id, old).values(last_used_at=db_now()))
    except DBAPIError as error:
        # What is asked for may well be answered without it.
        log.warning("last_use_not_written", key=key_id, reason=str(error))


def working(session: Session, key_ids: Collection[str]) -> set[str]:
    """Those of these keys that work now."""
    return set(session.scalars(select(ApiKey.id).join(Owner).where(ApiKey.id.in_(key_ids), _works())))


def any_works(session: Session) -> bool:
    """Whether there is a key that works."""
    return session.scalar(select(ApiKey.id).join(Owner).where(_works()).limit(1)) is not None


def several_owners(session: Session) -> bool:
    """Whether at least two owners have keys that work."""
    return len(session.scalars(select(ApiKey.owner_id).join(Owner).where(_works()).distinct().limit(2)).all()) > 1


def key_counts(session: Session) -> dict[str, int]:
    """Owner -> how many of their keys work."""
    counted = select(ApiKey.owner_id, func.count()).join(Owner).where(_works()).group_by(ApiKey.owner_id)
    return dict(session.execute(counted).all())


def _works() -> ColumnElement[bool]:
    """WHERE clause over keys joined with their owners."""
    lasts = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > db_now())
    return and_(ApiKey.revoked_at.is_(None), lasts, Owner.disabled_at.is_(None))


def _make(
    session: Session, owner_id: str, name: str, scopes: Collection[Scope], valid_s: float | None, actor: Actor
) -> NewKey:
    if not owner_id.startswith("own_"):
        raise Conflict("What is made without keys belongs to no key. Make an owner with `pared owners add NAME`.")
    # 32 random bytes need no slow hash: there is nothing to guess.
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        id=new_id("key"),
        owner_id=owner_id,
        name=name,
        secret_sha256=_digest(secret),
        scopes=" ".join(scope for scope in SCOPES if scope in scopes),
        expires_at=None if valid_s is None else db_now() + valid_s,
    )
    session.add(key)
    session.flush()
    session.refresh(key)
    record(session, actor, "key.create", key.id, {"owner": owner_id, "name": name, "scopes": key.scopes.split()})
    return NewKey(key, secret)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
