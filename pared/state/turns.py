"""Owns whose turn it is: of owners who wait, the one with the fewest jobs under way, then who was served longest ago.

Jobs that owners post, and the quick ones that the API makes for itself (inspections, plans), are two lanes: an owner's
hours of training are held against none of their inspections.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from sqlalchemy import ColumnElement, ScalarSelect, Select, and_, bindparam, func, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from pared.job_types import BY_NAME, UNLISTED
from pared.state.tables import Job, Owner, db_now
from pared.statuses import HELD

Lane = Literal["jobs", "quick"]

TYPES: dict[Lane, list[str]] = {"jobs": [name for name in BY_NAME if name not in UNLISTED], "quick": [*UNLISTED]}
_ANY_QUEUED = select(Job.id).where(Job.status == "queued").limit(1)
_RIVALS = (Job.status == "queued", Job.type.in_(TYPES["jobs"]), Job.device.in_(bindparam("devices", expanding=True)))
_OWN = (*_RIVALS, Job.owner == bindparam("owner"))
_OWN_BELOW = select(func.count()).where(*_OWN, Job.id < bindparam("first"))
_OWN_WITHIN = select(Job.id).where(*_OWN, Job.id.between(bindparam("first"), bindparam("last"))).order_by(Job.id)
_OTHERS_RIVALS = select(func.count()).where(*_RIVALS, Job.owner != bindparam("owner")).group_by(Job.owner)
_SERVED = {"jobs": Owner.served_at, "quick": Owner.quick_served_at}


def anything_waits(session: Session) -> bool:
    """Whether any job is queued, of whatever lane: one look into the index, where `next_in_turn` takes many."""
    return session.scalar(_ANY_QUEUED) is not None


def next_in_turn(
    session: Session,
    lane: Lane,
    devices: Sequence[str],
    *,
    asked_for: str | None = None,
    most_held: int = 0,
    held_by: Sequence[str] | None = None,
) -> str | None:
    """The id of the job whose turn it is.

    Args:
        devices: what the worker computes on.
        asked_for: only jobs that ask for this device.
        most_held: owners with so many jobs of this lane under way are passed over; 0: none is.
        held_by: where only jobs count that these workers hold, their names.
    """
    first: dict[str, str] = {}
    for owner, job_id in session.execute(_first_of_each(lane, tuple(devices), asked_for)).all():
        if job_id is not None:
            first[owner] = min(job_id, first.get(owner, job_id))
    if len(first) == 1 and not most_held:
        return next(iter(first.values()))
    under_way = Counter(session.scalars(select(Job.owner).where(Job.status.in_(HELD), Job.type.in_(TYPES[lane]))).all())
    served = {
        owner: at or 0.0 for owner, at in session.execute(select(Owner.id, _SERVED[lane]).where(Owner.id.in_(first)))
    }
    counted = under_way
    if most_held and held_by is not None:
        held = (Job.status.in_(HELD), Job.type.in_(TYPES[lane]), Job.lease_owner.in_(held_by))
        counted = Counter(session.scalars(select(Job.owner).where(*held)).all())
    waiting = [owner for owner in first if not most_held or counted[owner] < most_held]
    if not waiting:
        return None
    return first[min(waiting, key=lambda owner: (under_way[owner], served.get(owner, 0.0), first[owner]))]


class Line:
    """The places in line of some queued jobs of one owner."""

    def __init__(self, session: Session, jobs: Sequence[Job]) -> None:
        """Read who waits, once for each device that these jobs ask for."""
        asked: dict[str, list[Job]] = {}
        for job in jobs:
            asked.setdefault(job.device, []).append(job)
        self._waiting = {device: _Waiting(session, device, of_device) for device, of_device in asked.items()}

    def place_of(self, job: Job) -> int:
        """When its turn comes if nothing else is posted, 1 for the next, among the jobs for the same device.

        Of each other owner as many may come before it as of its own.
        """
        waiting = self._waiting[job.device]
        before = waiting.below + bisect_right(waiting.within, job.id)
        return before + sum(min(count, before) for count in waiting.others)


class _Waiting:
    """Who waits for a device, as far as it matters to the places of some jobs of one owner."""

    def __init__(self, session: Session, device: str, jobs: Sequence[Job]) -> None:
        ids = [job.id for job in jobs]
        devices = list({device, "auto"})
        given = {"owner": jobs[0].owner, "devices": devices, "first": min(ids)}
        self.below = session.scalar(_OWN_BELOW, given) or 0
        """Jobs of the owner that come before the first of these."""
        self.within = session.scalars(_OWN_WITHIN, given | {"last": max(ids)}).all()
        """The ids of those between the first and the last of these, in order. There may be thousands behind them."""
        self.others = session.scalars(_OTHERS_RIVALS, {"owner": jobs[0].owner, "devices": devices}).all()
        """How many each other owner has."""


def lock_owner(session: Session, owner: str) -> None:
    """Hold the owner's row to the end of the transaction: whoever counts for this owner takes turns."""
    session.execute(select(Owner.id).where(Owner.id == owner).with_for_update())


def lane_of(job_type: str) -> Lane:
    """Where jobs of this type wait."""
    return "quick" if job_type in UNLISTED else "jobs"


def held_below(owner: str, lane: Lane, most_held: int, held_by: Sequence[str] | None = None) -> ColumnElement[bool]:
    """WHERE clause: fewer than so many jobs of the owner are under way in this lane, or with these workers."""
    other = aliased(Job)
    which = [other.status.in_(HELD), other.owner == owner, other.type.in_(TYPES[lane])]
    if held_by is not None:
        which.append(other.lease_owner.in_(held_by))
    held = select(func.count()).select_from(other).where(*which).scalar_subquery()
    return held < most_held


def note_served(session: Session, owner: str, lane: Lane) -> None:
    """Write down that a job of the owner's is under way from now on."""
    column = "quick_served_at" if lane == "quick" else "served_at"
    session.execute(update(Owner).where(Owner.id == owner).values({column: db_now()}))


def claimable(devices: Sequence[str]) -> ColumnElement[bool]:
    """WHERE clause: queued and due, for a worker that computes on these devices (`cpu`, `cuda`); without any, none."""
    return and_(
        Job.status == "queued",
        Job.run_after <= db_now(),
        Job.cancel_requested_at.is_(None),
        Job.device.in_(_served_by(devices)),
        Job.type.in_([*BY_NAME]),  # a job that a newer release made waits for a worker of that release
    )


def _served_by(devices: Sequence[str]) -> list[str]:
    """What jobs may ask for that a worker with these devices takes."""
    return ["auto", *devices] if devices else []


@lru_cache(maxsize=32)  # to build it takes longer than to run it
def _first_of_each(lane: Lane, devices: tuple[str, ...], asked_for: str | None) -> Select[str, str | None]:
    """(owner, id of the first job that may be claimed) for each owner, type and device that waits.

    It steps through the index of queued jobs from one of these to the next, so it costs as much as there are of them,
    however many jobs each has.
    """
    head, due = aliased(Job), aliased(Job)
    heads = select(_first(aliased(Job)).label("id")).cte("heads", recursive=True)
    # Three steps of one column each, for SQLite reads all rows of a group to get past it by three columns at once.
    another_device, another_type, another_owner = aliased(Job), aliased(Job), aliased(Job)
    following = func.coalesce(
        _first(
            another_device,
            another_device.owner == head.owner,
            another_device.type == head.type,
            another_device.device > head.device,
        ),
        _first(another_type, another_type.owner == head.owner, another_type.type > head.type),
        _first(another_owner, another_owner.owner > head.owner),
    )
    heads = heads.union_all(select(following).select_from(heads.join(head, head.id == heads.c.id)))
    # The group's columns are compared together, from both sides: where each equals something, PostgreSQL takes the
    # order for that of the ids alone, and reads all jobs by their primary key until one fits.
    group = tuple_(due.owner, due.type, due.device)
    # Of the head, values: SQLite compares several columns by an index with these alone.
    of_head = tuple_(head.owner.concat(""), head.type.concat(""), head.device.concat(""))
    may_run = _first(
        due,
        group >= of_head,
        group <= of_head,
        # An expression, for SQLite would look for it in another index, and then sort all that waits.
        due.run_after + 0.0 <= db_now(),
        due.cancel_requested_at.is_(None),
    )
    query = select(head.owner, may_run).select_from(heads.join(head, head.id == heads.c.id))
    query = query.where(head.type.in_(TYPES[lane]), head.device.in_(_served_by(devices)))
    return query if asked_for is None else query.where(head.device == asked_for)


def _first(job: type[Job], *where: ColumnElement[bool]) -> ScalarSelect[str]:
    """The id of the first queued job in the order of the index."""
    order = (job.status, job.owner, job.type, job.device, job.id)
    return select(job.id).where(job.status == "queued", *where).order_by(*order).limit(1).scalar_subquery()
