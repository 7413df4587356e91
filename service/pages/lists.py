"""Owns the rows of the pages' lists of uploads, and the few latest jobs that stand beside other things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Query
from sqlalchemy import Select, select
from sqlalchemy.orm import Session, defer

from pared.state.jobs import jobs_of
from pared.state.references import mentions
from pared.state.tables import Dataset, Job, Model, first_job_id
from pared.state.uploads import owned_uploads
from pared.statuses import UploadStatus
from service.dependencies import Parts
from service.job_views import views_of
from service.schemas import JobView, UploadView, dataset_view, model_view

Upload = TypeVar("Upload", Model, Dataset)
View = TypeVar("View", bound=UploadView)

ROWS = 25
LOOKED_THROUGH = 1_000
"""Jobs, the newest, in which the page of an upload looks for its own; the list of jobs can look through all."""
_SKEW_S = 3600.0
"""How far the clock that ids are made by may be from the database's."""
Text = Annotated[str, Query(max_length=200)]
"""What a name is to contain."""
Status = UploadStatus | Literal[""]
"""The state to show; empty, as the form sends it, for any."""


@dataclass(frozen=True)
class Listed(Generic[View]):
    """One page of a list; `after` begins the next one, if there is one."""

    rows: list[View]
    after: str | None


def printed(text: str) -> str:
    """A text to look for, without the characters that no name holds and PostgreSQL does not take."""
    return "".join(character for character in text if character.isprintable()).strip()


def uploads(
    session: Session,
    owner: str,
    table: type[Upload],
    *,
    q: str = "",
    status: UploadStatus | None = None,
    after: str | None = None,
    most: int = ROWS,
) -> Listed[Any]:
    """The owner's models or data sets, newest first.

    Args:
        q: what their names contain, in upper or lower case.
        status: theirs.
        after: the id of the last row of the page before.
        most: rows on a page.
    """
    query = owned_uploads(owner, table).options(defer(table.inspection, raiseload=True))
    if q:
        query = query.where(table.filename.icontains(q, autoescape=True))
    if status:
        query = query.where(table.status == status)
    if after:
        query = query.where(table.id < after)
    found = list(session.scalars(query.order_by(table.id.desc()).limit(most + 1)))
    rows = [_view(row) for row in found[:most]]
    return Listed(rows, rows[-1].id if len(found) > most else None)


def context_of(
    parts: Parts, owner: str, table: type[Upload], q: str, status: UploadStatus | None, after: str | None
) -> dict[str, Any]:
    """What the templates of both lists of uploads name."""
    text = printed(q)
    with parts.sessions() as session:
        listed = uploads(session, owner, table, q=text, status=status, after=after)
    return {
        "listed": listed,
        "q": text,
        "status": status or "",
        "first_page": after is None,
        "scripts": ["upload"],
        "most_bytes": parts.settings.max_upload_bytes,
    }


def _view(row: Model | Dataset) -> UploadView:
    return model_view(row, inspection=False) if isinstance(row, Model) else dataset_view(row, inspection=False)


def latest_jobs(session: Session, owner: str, most: int) -> list[JobView]:
    """The owner's newest jobs."""
    return _newest(session, jobs_of(owner), most)


@dataclass(frozen=True)
class Naming:
    """The newest jobs that an upload is named in."""

    rows: list[JobView]
    older: bool
    """Whether there are jobs, too old to be looked through here, that may name it, too."""
    looked_through: int = LOOKED_THROUGH


def jobs_naming(session: Session, owner: str, upload_id: str, created_at: float | None, most: int) -> Naming:
    """The newest of the owner's jobs that an upload is named in, among the newest `LOOKED_THROUGH`.

    Args:
        created_at: when it came: only later jobs are looked through. None: it is part of pared.
    """
    since = "" if created_at is None else first_job_id(created_at - _SKEW_S)
    # Their specs say it, which no index knows: reading those of all jobs would take longer with each.
    ids = select(Job.id).where(Job.owner == owner).order_by(Job.id.desc())
    oldest = session.scalar(ids.offset(LOOKED_THROUGH - 1).limit(1)) or ""
    query = jobs_of(owner).where(mentions(upload_id), Job.id >= max(since, oldest))
    return Naming(_newest(session, query, most), older=oldest > since)


def _newest(session: Session, query: Select[Job], most: int) -> list[JobView]:
    return views_of(session, session.scalars(query.order_by(Job.id.desc()).limit(most)).all())
