"""Owns accounts: whose things are whose, apart from the keys they come with; making, finding and disabling them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from pared.errors import Conflict, NotFound
from pared.state import lifecycle
from pared.state.audit import COMMAND_LINE, Actor, record
from pared.state.session import Sessions
from pared.state.tables import Job, Owner, db_now, new_id
from pared.statuses import ENDED

LOCAL_OWNER = "local"
"""Whose things are made without a key, where none is needed. Its row is made by the migration."""


def create_owner(sessions: Sessions, name: str, actor: Actor = COMMAND_LINE) -> Owner:
    """Make an owner, who has no key yet."""
    with sessions.begin() as session:
        return add_owner(session, name, actor)


def add_owner(session: Session, name: str, actor: Actor) -> Owner:
    """As `create_owner`, in the caller's transaction."""
    owner = Owner(id=new_id("own"), name=name)
    session.add(owner)
    session.flush()
    record(session, actor, "owner.create", owner.id, {"name": name})
    session.refresh(owner)
    return owner


def list_owners(session: Session) -> Sequence[Owner]:
    """Every owner, oldest first, disabled ones too."""
    return session.scalars(select(Owner).order_by(Owner.created_at, Owner.id)).all()


def find_owner(session: Session, name_or_id: str) -> Owner:
    """The owner with this id, or the only one with this name.

    Raises:
        NotFound: there is none.
        Conflict: several have this name.
    """
    rows = session.scalars(select(Owner).where(or_(Owner.id == name_or_id, Owner.name == name_or_id)).limit(2)).all()
    if not rows:
        raise NotFound(f"There is no owner {name_or_id}; `pared owners ls` lists them.")
    if len(rows) > 1:
        raise Conflict(f"Several owners are called {name_or_id}. Use the id that `pared owners ls` prints.")
    return rows[0]


def disable_owner(
    sessions: Sessions, owner_id: str, *, cancel_jobs: bool = False, actor: Actor = COMMAND_LINE
) -> int | None:
    """Stop all keys of an owner from working, until `enable_owner`. What the owner made stays.

    Args:
        cancel_jobs: cancel what waits and runs for the owner; otherwise jobs go on.

    Returns:
        How many jobs were canceled, or asked to stop; None: there is no such owner.

    Raises:
        Conflict: it is the owner of what is made without keys.
    """
    if owner_id == LOCAL_OWNER:
        raise Conflict(
            "What is made without keys cannot be disabled; set PARED_REQUIRE_KEYS=1 to ask everybody for one."
        )
    with sessions.begin() as session:
        owner = _locked(session, owner_id)
        if owner is None:
            return None
        if owner.disabled_at is None:
            owner.disabled_at = session.scalar(select(db_now()))
        canceled = cancel_all(session, Job.owner == owner_id) if cancel_jobs else 0
        record(session, actor, "owner.disable", owner_id, {"jobs_canceled": canceled} if cancel_jobs else None)
    return canceled


def enable_owner(sessions: Sessions, owner_id: str, actor: Actor = COMMAND_LINE) -> bool:
    """Let the keys of a disabled owner work again. False: there is no such owner."""
    with sessions.begin() as session:
        owner = _locked(session, owner_id)
        if owner is None:
            return False
        owner.disabled_at = None
        record(session, actor, "owner.enable", owner_id)
    return True


def set_retention(sessions: Sessions, owner_id: str, days: float | None, actor: Actor = COMMAND_LINE) -> bool:
    """Say for how long an owner's ended jobs and unused uploads are kept.

    Args:
        days: 0: for ever; None: as long as the service's setting says.

    Returns:
        Whether there is such an owner.
    """
    with sessions.begin() as session:
        owner = _locked(session, owner_id)
        if owner is None:
            return False
        owner.retention_days = days
        record(session, actor, "owner.retain", owner_id, {"days": days})
    return True


def cancel_all(session: Session, whose: ColumnElement[bool]) -> int:
    """Cancel every unfinished job that the clause is true of. Returns how many."""
    jobs = session.scalars(select(Job.id).where(whose, Job.status.not_in(ENDED)).order_by(Job.id)).all()
    return sum(lifecycle.cancel(session, job_id) for job_id in jobs)


def _locked(session: Session, owner_id: str) -> Owner | None:
    return session.scalar(select(Owner).where(Owner.id == owner_id).with_for_update())
