"""Owns whose turn it is: of owners who wait, the one with the fewest jobs under way, then who was served longest ago.

Jobs that owners post, and the quick ones that the API makes for itself (inspections, plans), are two lanes: an owner's
hours of training are held against none of their inspections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from sqlalchemy import ColumnElement, Select, and_, func, literal_column, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from pared.job_types import BY_NAME, UNLISTED
from pared.state.tables import Job, Owner, db_now
from pared.statuses import HELD

Lane = Literal["jobs", "quick"]

TYPES: dict[Lane, list[str]] = {"jobs": [name for name in BY_NAME if name not in UNLISTED], "quick": [*UNLISTED]}
_QUEUED: ColumnElement[str] = literal_column("'queued'")  # as the index has it: a parameter could be anything
_SERVED = {"jobs": Owner.served_at, "quick": Owner.quick_served_at}


def next_in_turn(
    session: Session, lane: Lane, devices: Sequence[str], *, asked_for: str | None = None, most_held: int = 0
) -> str | None:
    """The id of the job whose turn it is.

    Args:
        devices: what the worker computes on.
        asked_for: only jobs that ask for this device.
        most_held: owners with so many jobs of this lane under way are passed over; 0: none is.
    """
    first: dict[str, str] = {}
    for owner, job_id in session.execute(_first_of_each(lane, devices, asked_for)).all():
        if job_id is not None:
            first[owner] = min(job_id, first.get(owner, job_id))
    if len(first) == 1 and not most_held:
        return next(iter(first.values()))
    under_way = Counter(session.scalars(select(Job.owner).where(Job.status.in_(HELD), Job.type.in_(TYPES[lane]))).all())
    served = {
        owner: at or 0.0 for owner, at in session.execute(select(Owner.id, _SERVED[lane]).where(Owner.id.in_(first)))
    }
    waiting = [owner for owner in first if not most_held or under_way[owner] < most_held]
    if not waiting:
        return None
    return first[min(waiting, key=lambda owner: (under_way[owner], served.get(owner, 0.0), first[owner]))]


def lock_owner(session: Session, owner: str) -> None:
    """Hold the owner's row to the end of the transaction: whoever counts for this owner takes turns."""
    session.execute(select(Owner.id).where(Owner.id == owner).with_for_update())


def lane_of(job_type: str) -> Lane:
    """Where jobs of this type wait."""
    return "quick" if job_type in UNLISTED else "jobs"


def held_below(owner: str, lane: Lane, most_held: int) -> ColumnElement[bool]:
    """WHERE clause: fewer than so many jobs of the owner are under way in this lane."""
    other = aliased(Job)
    held = (
        select(func.count())
        .select_from(other)
        .where(other.status.in_(HELD), other.owner == owner, other.type.in_(TYPES[lane]))
        .scalar_subquery()
    )
    return held < most_held


def note_served(session: Session, owner: str, lane: Lane) -> None:
    """Write down that a job of the owner's is under way from now on."""
    column = "quick_served_at" if lane == "quick" else "served_at"
    session.execute(update(Owner).where(Owner.id == owner).values({column: db_now()}))


def claimable(devices: Sequence[str], job: type[Job] = Job) -> ColumnElement[bool]:
    """WHERE clause: queued and due, for a worker that computes on these devices (`cpu`, `cuda`); without any, none."""
    return and_(
        job.status == "queued",
        job.run_after <= db_now(),
        job.cancel_requested_at.is_(None),
        job.device.in_(["auto", *devices] if devices else []),
        job.type.in_([*BY_NAME]),  # a job that a newer release made waits for a worker of that release
    )


def _first_of_each(lane: Lane, devices: Sequence[str], asked_for: str | None) -> Select[str, str | None]:
    """(owner, id of the first job that may be claimed) for each owner, type and device that waits.

    It steps through the index of queued jobs from one of these to the next, so it costs as much as there are of them,
    however many jobs each has.
    """
    head, later, due = aliased(Job), aliased(Job), aliased(Job)
    start = select(Job.id).where(Job.status == _QUEUED).order_by(Job.owner, Job.type, Job.device, Job.id).limit(1)
    heads = select(start.scalar_subquery().label("id")).cte("heads", recursive=True)
    following = (
        select(later.id)
        .where(
            later.status == _QUEUED,
            tuple_(later.owner, later.type, later.device) > tuple_(head.owner, head.type, head.device),
        )
        .order_by(later.owner, later.type, later.device, later.id)
        .limit(1)
        .scalar_subquery()
    )
    heads = heads.union_all(select(following).select_from(heads.join(head, head.id == heads.c.id)))
    first = (
        select(due.id)
        .where(
            due.status == _QUEUED,
            due.owner == head.owner,
            due.type == head.type,
            due.device == head.device,
            claimable(devices, due),
        )
        .order_by(due.owner, due.type, due.device, due.id)
        .limit(1)
        .scalar_subquery()
    )
    query = select(head.owner, first).select_from(heads.join(head, head.id == heads.c.id))
    query = query.where(head.type.in_(TYPES[lane]))
    return query if asked_for is None else query.where(head.device == asked_for)
