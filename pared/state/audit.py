"""Owns the audit log: who did what to which thing, without secrets; a row is added in the transaction of the act."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from pared.state.session import Sessions
from pared.state.tables import AuditEntry


@dataclass(frozen=True)
class Actor:
    """Who acts: an owner, with which key, in which HTTP request."""

    owner: str
    key_id: str | None = None
    request_id: str | None = None


COMMAND_LINE = Actor("command line")
"""Whoever may open the database on the server's own machine."""


@dataclass(frozen=True, eq=False)
class Act:
    """What somebody did, for the log: the arguments of `record`."""

    actor: Actor
    action: str
    subject: str | None
    detail: dict[str, Any] | None


def record_all(sessions: Sessions, acts: Collection[Act]) -> dict[Act, None]:
    """Write down acts in a transaction of their own."""
    with sessions.begin() as session:
        for act in acts:
            record(session, act.actor, act.action, act.subject, act.detail)
    return {}


def record(
    session: Session, actor: Actor, action: str, subject: str | None = None, detail: dict[str, Any] | None = None
) -> None:
    """Write down an act, in the caller's transaction.

    Args:
        action: what was done: `key.revoke`, or a request's method and route.
        subject: the id of what it was done to.
        detail: what else there is to know; never a secret.
    """
    session.add(
        AuditEntry(
            actor=actor.owner,
            key_id=actor.key_id,
            action=action[:80],
            subject=subject and subject[:80],
            detail=detail,
            request_id=actor.request_id,
        )
    )


def entries(
    session: Session, *, before: int | None = None, actor: str | None = None, limit: int = 100
) -> Sequence[AuditEntry]:
    """The newest entries first.

    Args:
        before: only those older than the one with this id.
        actor: only those of this owner.
    """
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    if actor is not None:
        query = query.where(AuditEntry.actor == actor)
    return session.scalars(query).all()
