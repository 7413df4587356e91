"""Owns the rows of the pages' lists of uploads, and the few latest jobs that stand beside other things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Query
from sqlalchemy import Select
from sqlalchemy.orm import Session, defer

from pared.state.jobs import jobs_of
from pared.state.references import mentions
from pared.state.tables import Dataset, Job, Model, first_job_id
from pared.state.uploads import owned_uploads
from pared.statuses import UploadStatus
from service.job_views import views_of
from service.schemas import JobView, UploadView, dataset_view, model_view

Upload = TypeVar("Upload", Model, Dataset)
View = TypeVar("View", bound=UploadView)

ROWS = 25
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


def _view(row: Model | Dataset) -> UploadView:
    return model_view(row, inspection=False) if isinstance(row, Model) else dataset_view(row, inspection=False)


def latest_jobs(session: Session, owner: str, most: int) -> list[JobView]:
    """The owner's newest jobs."""
    return _newest(session, jobs_of(owner), most)


def jobs_naming(session: Session, owner: str, upload_id: str, created_at: float | None, most: int) -> list[JobView]:
    """The newest of the owner's jobs that an upload is named in.

    Args:
        created_at: when it came: only later jobs are looked through. None: it is part of pared.
    """
    query = jobs_of(owner).where(mentions(upload_id))
    if created_at is not None:
        query = query.where(Job.id > first_job_id(created_at - _SKEW_S))
    return _newest(session, query, most)


def _newest(session: Session, query: Select[Job], most: int) -> list[JobView]:
    return views_of(session, session.scalars(query.order_by(Job.id.desc()).limit(most)).all())
