"""Owns API keys: made once and shown once, kept as a SHA-256."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from sqlalchemy import select, update

from pared.state.session import Sessions
from pared.state.tables import ApiKey, db_now, new_id

PREFIX = "pared_"


def create_key(sessions: Sessions, name: str) -> str:
    """Make a key and return its secret, which cannot be shown again."""
    # 32 random bytes need no slow hash: there is nothing to guess.
    secret = PREFIX + secrets.token_urlsafe(32)
    with sessions.begin() as session:
        session.add(ApiKey(id=new_id("key"), name=name, secret_sha256=_digest(secret)))
    return secret


def list_keys(sessions: Sessions) -> Sequence[ApiKey]:
    """The keys that work, oldest first."""
    with sessions() as session:
        return session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)).order_by(ApiKey.id)).all()


def revoke_key(sessions: Sessions, key_id: str) -> bool:
    """Stop a key from working. False: there is no such key, or it was revoked before."""
    with sessions.begin() as session:
        return bool(
            session.execute(
                update(ApiKey)
                .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
                .values(revoked_at=db_now())
                .returning(ApiKey.id)
            ).first()
        )


def key_of(sessions: Sessions, secret: str) -> str | None:
    """The id of the key with this secret, which is the owner of what it makes; None if no key works with it."""
    with sessions() as session:
        return session.scalar(
            select(ApiKey.id).where(ApiKey.secret_sha256 == _digest(secret), ApiKey.revoked_at.is_(None))
        )


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
