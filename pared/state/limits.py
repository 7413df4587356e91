"""Owns the limits that people meet: one table of them, and the checks of those that are counted in the database.

A check stands in the transaction that admits, behind a lock on the owner's row: two requests at once cannot both
take the last place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from pared.errors import OverLimit
from pared.job_types import BY_SPEC, LISTED
from pared.specs import PlanSpec
from pared.state.keys import several_owners
from pared.state.settings import Settings
from pared.state.tables import Dataset, Job, Model, PartialUpload, Webhook, db_now
from pared.state.workers import living
from pared.statuses import ENDED, HELD

PLAN = BY_SPEC[PlanSpec].name
_POSTED = Job.type.in_([each.name for each in LISTED])

Used = Callable[[Session, str, Settings], int]
"""How much of a limit an owner has used up."""


LimitOf = Literal["owner", "request", "upload", "job", "API process"]


@dataclass(frozen=True)
class Limit:
    """One limit."""

    name: str
    setting: str
    """The field of `Settings`."""
    of: LimitOf
    """What the number is for, each by itself."""
    unit: Literal[
        "jobs",
        "plans",
        "uploads",
        "bytes",
        "requests a second",
        "streams",
        "webhooks",
        "seconds",
        "connections",
        "attempts",
    ]
    meaning: str
    used: Used | None = None
    """None: it is not counted in the database."""
    may_be_off: bool = True
    """Whether 0 is no limit."""
    if_unset: Callable[[Session], int] | None = None
    """The number where the setting leaves it open."""

    def value(self, session: Session, settings: Settings) -> float | None:
        """The number; None: there is no limit."""
        number: float | None = getattr(settings, self.setting)
        if number is None and self.if_unset is not None:
            number = self.if_unset(session)
        return None if self.may_be_off and not number else number


def _count(*where: ColumnElement[bool]) -> Callable[[Session, str, Settings], int]:
    def used(session: Session, owner: str, settings: Settings) -> int:
        return session.scalar(select(func.count()).select_from(Job).where(Job.owner == owner, *where)) or 0

    return used


def _inspecting(session: Session, owner: str, settings: Settings) -> int:
    return sum(
        session.scalar(select(func.count()).where(table.owner == owner, table.status == "inspecting", _is_there(table)))
        or 0
        for table in (Model, Dataset)
    )


def _is_there(table: type[Model | Dataset]) -> ColumnElement[bool]:
    return table.deleted_at.is_(None)


def _stored(session: Session, owner: str, settings: Settings) -> int:
    """Uploads that are there, or are on their way in pieces, and results."""
    results = select(func.sum(Job.result_bytes)).where(Job.owner == owner)
    uploads = [
        select(func.sum(table.size_bytes)).where(table.owner == owner, _is_there(table)) for table in (Model, Dataset)
    ]
    # One that is sealed is counted as the upload that it becomes.
    pieces = select(func.sum(PartialUpload.size_bytes)).where(*_on_their_way(owner), PartialUpload.digest.is_(None))
    return sum(int(session.scalar(query) or 0) for query in (results, pieces, *uploads))


def _on_their_way(owner: str) -> tuple[ColumnElement[bool], ...]:
    """WHERE clauses: uploads in pieces that are not finished."""
    return (
        PartialUpload.owner == owner,
        PartialUpload.result_id.is_(None),
        PartialUpload.expires_at >= db_now(),
    )


def _unfinished(session: Session, owner: str, settings: Settings) -> int:
    return session.scalar(select(func.count()).select_from(PartialUpload).where(*_on_their_way(owner))) or 0


def _webhooks(session: Session, owner: str, settings: Settings) -> int:
    return session.scalar(select(func.count()).select_from(Webhook).where(Webhook.owner == owner)) or 0


def _deleted(session: Session, owner: str, settings: Settings) -> int:
    """Uploads that were deleted, and whose bytes are still there until they are collected."""
    return sum(
        int(
            session.scalar(
                select(func.sum(table.size_bytes)).where(
                    table.owner == owner, table.deleted_at > db_now() - settings.keep_unreferenced_s
                )
            )
            or 0
        )
        for table in (Model, Dataset)
    )


def most_running(session: Session, settings: Settings, devices: Sequence[str]) -> tuple[int, Sequence[str] | None]:
    """How many jobs of one owner may run at once beside the one that a worker of these devices would begin.

    Where the setting leaves it open and several owners have keys, one of several workers with the same devices is
    always left to whoever comes next: a job that runs for days is not stopped for another owner's.

    Returns:
        The number, 0 for any, and the names of the workers whose jobs count; None: those of all.
    """
    if settings.max_running_jobs is not None:
        return settings.max_running_jobs, None
    names = _workers_by_kind(session).get(frozenset(devices), []) if several_owners(session) else []
    return max(len(names) - 1, 0), names


def _but_one_of_each_kind(session: Session) -> int:
    if not several_owners(session):
        return 0
    kinds = [len(names) for names in _workers_by_kind(session).values()]
    return sum(max(count - 1, 1) for count in kinds)


def _workers_by_kind(session: Session) -> dict[frozenset[str], list[str]]:
    """The devices that living workers take jobs for -> those workers' names."""
    kinds: dict[frozenset[str], list[str]] = {}
    for worker in living(session):
        if worker.devices:
            kinds.setdefault(frozenset(worker.devices), []).append(worker.name)
    return kinds


JOBS_WAITING = Limit(
    "jobs_waiting",
    "max_waiting_jobs",
    "owner",
    "jobs",
    "Jobs that wait for a worker.",
    _count(_POSTED, Job.status == "queued"),
)
JOBS_RUNNING = Limit(
    "jobs_running",
    "max_running_jobs",
    "owner",
    "jobs",
    "Jobs that run at once; others wait.",
    _count(_POSTED, Job.status.in_(HELD)),
    if_unset=_but_one_of_each_kind,
)
PLANS_WAITING = Limit(
    "plans_waiting",
    "max_waiting_plans",
    "owner",
    "plans",
    "Plans that are not made yet.",
    _count(Job.type == PLAN, Job.status.not_in(ENDED)),
)
UPLOADS_INSPECTING = Limit(
    "uploads_inspecting",
    "max_inspecting_uploads",
    "owner",
    "uploads",
    "Uploads that are not inspected yet.",
    _inspecting,
)
UPLOADS_UNFINISHED = Limit(
    "uploads_unfinished",
    "max_unfinished_uploads",
    "owner",
    "uploads",
    "Uploads in pieces that are not finished.",
    _unfinished,
)
BYTES_STORED = Limit(
    "bytes_stored",
    "max_stored_bytes",
    "owner",
    "bytes",
    "Uploads and results together. Deleted uploads may take up so much again until their bytes are collected.",
    _stored,
)
WEBHOOKS = Limit("webhooks", "max_webhooks", "owner", "webhooks", "Webhooks that are there at once.", _webhooks)
REQUESTS = Limit(
    "requests_per_second",
    "max_requests_per_s",
    "owner",
    "requests a second",
    "Requests to one API process on average; those of twenty seconds may come at once.",
)
STREAMS = Limit(
    "streams", "max_streams", "owner", "streams", "Event streams and long polls that one API process holds open."
)
LIMITS = (
    JOBS_WAITING,
    JOBS_RUNNING,
    PLANS_WAITING,
    UPLOADS_INSPECTING,
    UPLOADS_UNFINISHED,
    BYTES_STORED,
    WEBHOOKS,
    REQUESTS,
    STREAMS,
    Limit("upload_bytes", "max_upload_bytes", "upload", "bytes", "The largest upload.", may_be_off=False),
    Limit(
        "body_bytes",
        "max_json_bytes",
        "request",
        "bytes",
        "The largest body of a request that is not an upload.",
        may_be_off=False,
    ),
    Limit(
        "job_seconds",
        "job_time_s",
        "job",
        "seconds",
        "How long a job runs that sets no time_limit_s.",
        may_be_off=False,
    ),
    Limit("plan_seconds", "plan_time_s", "job", "seconds", "How long a plan may take.", may_be_off=False),
    Limit(
        "inspection_seconds", "inspect_time_s", "job", "seconds", "How long an inspection may take.", may_be_off=False
    ),
    Limit("job_memory_bytes", "memory_bytes", "job", "bytes", "Most memory of a job.", may_be_off=False),
    Limit(
        "inspection_memory_bytes",
        "inspect_memory_bytes",
        "job",
        "bytes",
        "Most memory of a model's inspection, and eight times its file on top.",
        may_be_off=False,
    ),
    Limit("silent_seconds", "stall_s", "job", "seconds", "How long a job may go on and say nothing.", may_be_off=False),
    Limit("crashes", "max_attempts", "job", "attempts", "Attempts that may crash.", may_be_off=False),
    Limit(
        "lost_attempts",
        "max_lost_attempts",
        "job",
        "attempts",
        "Attempts that may be lost with their worker, or for want of room.",
        may_be_off=False,
    ),
    Limit(
        "unfinished_upload_seconds",
        "keep_unreferenced_s",
        "upload",
        "seconds",
        "How long an upload in pieces is kept after its last byte.",
        may_be_off=False,
    ),
    Limit(
        "header_bytes",
        "max_header_bytes",
        "request",
        "bytes",
        "The request line and all headers together.",
        may_be_off=False,
    ),
    Limit("header_seconds", "header_time_s", "request", "seconds", "In which all headers come.", may_be_off=False),
    Limit(
        "body_seconds",
        "body_time_s",
        "request",
        "seconds",
        "Over each such time a body brings 500 bytes a second on average.",
        may_be_off=False,
    ),
    Limit(
        "answer_seconds",
        "answer_time_s",
        "request",
        "seconds",
        "Over each such time a client takes 500 bytes a second of its answer on average.",
        may_be_off=False,
    ),
    Limit(
        "connections",
        "max_connections",
        "API process",
        "connections",
        "Open connections, or fewer where it may not open so many files.",
        may_be_off=False,
    ),
    Limit(
        "open_streams",
        "max_open_streams",
        "API process",
        "streams",
        "Event streams and long polls of all owners together.",
        may_be_off=False,
    ),
)
"""Every limit that `GET /v1/limits` and `pared limits` show."""

RETRY_AFTER_S = {
    "jobs": 30,
    "plans": 2,
    "uploads": 5,
    "bytes": 60,
    "requests a second": 1,
    "streams": 5,
    "webhooks": 60,
}
"""When trying again may help, by what is counted."""


def usage(session: Session, owner: str, settings: Settings) -> list[tuple[Limit, float | None, int | None]]:
    """Each limit with its number and how much of it the owner has used; None: no limit, or nothing to count."""
    return [
        (limit, limit.value(session, settings), limit.used and limit.used(session, owner, settings)) for limit in LIMITS
    ]


def check_room(session: Session, owner: str, limit: Limit, settings: Settings) -> None:
    """Refuse one more of what is counted. The caller has locked the owner. Raises OverLimit."""
    Room(session, owner, limit, settings).take()


class Room:
    """How many more of what is counted there may be. The caller has locked the owner."""

    def __init__(self, session: Session, owner: str, limit: Limit, settings: Settings) -> None:
        """Count what there is."""
        self._limit = limit
        self._most = None if limit.used is None else limit.value(session, settings)
        self._used = 0 if self._most is None or limit.used is None else limit.used(session, owner, settings)

    def take(self) -> None:
        """One more will be there. Raises OverLimit."""
        limit = self._limit
        if self._most is not None and self._used >= self._most:
            raise over(
                limit,
                f"{self._used} of your {limit.unit} {_UNFINISHED[limit.name]}, and no more than {self._most:g} may.",
            )
        self._used += 1


def check_bytes(session: Session, owner: str, more: int, settings: Settings) -> None:
    """Refuse so many more bytes. The caller has locked the owner, or only asks beforehand. Raises OverLimit."""
    _refuse(bytes_left(session, owner, settings), more, settings)


def _refuse(left: int | None, more: int, settings: Settings) -> None:
    if left is not None and more > left:
        most = settings.max_stored_bytes
        raise over(
            BYTES_STORED,
            f"Your uploads and results may take up {most:,} bytes, and {max(left, 0):,} of them are free. Delete "
            "models or data sets; the bytes of deleted ones count apart until they are collected.",
        )


def bytes_left(session: Session, owner: str, settings: Settings) -> int | None:
    """How many more bytes the owner may store; None: any number."""
    most = settings.max_stored_bytes
    if not most:
        return None
    stored = _stored(session, owner, settings)
    return min(most - stored, 2 * most - stored - _deleted(session, owner, settings))


class MuchRoom:
    """Owners who had much room for bytes a moment ago. To add up what one stores takes as long as they have jobs."""

    LOOK_AGAIN_S = 10.0
    MUCH = 0.05
    """Of all that one may store."""
    _MOST_OWNERS = 10_000

    def __init__(self) -> None:
        """Nobody is known."""
        self._until: dict[str, float] = {}

    def check(self, session: Session, owner: str, settings: Settings) -> None:
        """Refuse an owner who has no room at all, as one who submits a job. Raises OverLimit."""
        if time.monotonic() < self._until.get(owner, 0.0):
            return
        left = bytes_left(session, owner, settings)
        _refuse(left, 0, settings)
        if left is None or left > settings.max_stored_bytes * self.MUCH:
            if len(self._until) >= self._MOST_OWNERS:
                self._until.clear()
            self._until[owner] = time.monotonic() + self.LOOK_AGAIN_S


def over(limit: Limit, detail: str) -> OverLimit:
    """The refusal that names a limit."""
    return OverLimit(detail, limit=limit.name, retry_after_s=RETRY_AFTER_S[limit.unit])


_UNFINISHED = {
    JOBS_WAITING.name: "wait for a worker",
    PLANS_WAITING.name: "are not made yet",
    UPLOADS_INSPECTING.name: "are not inspected yet",
    UPLOADS_UNFINISHED.name: "are not finished",
    WEBHOOKS.name: "are there",
}
