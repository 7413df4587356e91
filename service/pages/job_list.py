"""The list of jobs: which jobs are asked for, and what is told of each."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from pared.errors import ValidationError
from pared.job_types import LISTED
from pared.report_page import texts
from pared.specs.uploads import BUILTIN_DATASETS
from pared.state.jobs import jobs_of
from pared.state.references import mentions
from pared.state.session import Sessions
from pared.state.tables import Dataset, Job, Model
from pared.statuses import ENDED, JobStatus
from service.pages.job_page import STAGES, heading_of, named_by
from service.pages.words import STATUSES, TONES, ago, moment

ROWS = 25
MOST_CHOICES = 50
"""Models, and data sets, that can be chosen among, the newest; the page of one leads to its jobs, too."""
_MOST_FILES = 200
"""Uploads, the newest, whose names are looked through for a text."""
_VERDICT = 160
_ID = re.compile(r"(?:mdl|dst|job)_[0-9A-Z]{26}")


@dataclass(frozen=True)
class Filters:
    """What the form of the list asks for; an empty text: anything."""

    status: str = ""
    type: str = ""
    model: str = ""
    dataset: str = ""
    text: str = ""

    def check(self) -> None:
        """Raise ValidationError for what the form cannot have sent."""
        for name, known in (("status", get_args(JobStatus)), ("type", [each.name for each in LISTED])):
            if getattr(self, name) not in ("", *known):
                raise ValidationError(f"`{name}` is one of {', '.join(known)}.")
        for name in ("model", "dataset"):
            if getattr(self, name) not in ("", *BUILTIN_DATASETS) and not _ID.fullmatch(getattr(self, name)):
                raise ValidationError(f"`{name}` is the id of a {'model' if name == 'model' else 'data set'}.")
        if not self.text.isprintable():
            raise ValidationError("The text that is looked for has characters that no name has.")

    def query(self, **more: str | None) -> str:
        """The part of a URL that asks for these jobs."""
        chosen = {each.name: getattr(self, each.name) for each in fields(self)} | more
        return urlencode({name: value for name, value in chosen.items() if value})


@dataclass(frozen=True)
class JobRow:
    """A job of the list."""

    id: str
    heading: str
    state: str
    tone: str
    outcome: str
    when: str
    at: str


def context_of(sessions: Sessions, owner: str, filters: Filters, after: str | None) -> dict[str, Any]:
    """What the template of the list names."""
    context = rows_of(sessions, owner, filters, after)
    with sessions() as session:
        choices = {table: _choices(session, owner, table) for table in (Model, Dataset)}
    query = filters.query(after=after)
    return context | {
        "filters": filters,
        "statuses": STATUSES,
        "types": [(each.name, each.name) for each in LISTED],
        "models": _with(choices[Model], filters.model),
        "datasets": _with([(each, each) for each in BUILTIN_DATASETS] + choices[Dataset], filters.dataset),
        "live": f"/jobs/live?{query}".rstrip("?"),
    }


def rows_of(sessions: Sessions, owner: str, filters: Filters, after: str | None) -> dict[str, Any]:
    """What the part of the template names that follows its jobs."""
    filters.check()
    with sessions() as session:
        query = jobs_of(owner).where(*_asked_for(session, owner, filters))
        if after:
            query = query.where(Job.id < after)
        jobs = session.scalars(query.order_by(Job.id.desc()).limit(ROWS + 1)).all()
        shown = jobs[:ROWS]
        named = named_by(session, owner, shown)
        verdicts = _verdicts(session, shown)
    now = time.time()
    more = len(jobs) > ROWS
    return {
        "rows": [
            JobRow(
                job.id,
                heading_of(job.type, named[job.id]),
                STATUSES[job.status],
                TONES.get(job.status, ""),
                _outcome(job, verdicts),
                ago(job.created_at, now),
                moment(job.created_at),
            )
            for job in shown
        ],
        "filtered": filters != Filters(),
        "ended": all(job.status in ENDED for job in shown),
        "older": f"/jobs?{filters.query(after=shown[-1].id)}" if more else "",
        "newest": f"/jobs?{filters.query()}".rstrip("?") if after else "",
    }


def _asked_for(session: Session, owner: str, filters: Filters) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    if filters.status:
        where.append(Job.status == filters.status)
    if filters.type:
        where.append(Job.type == filters.type)
    where += [mentions(named) for named in (filters.model, filters.dataset) if named]
    if filters.text:
        uploads = [
            found
            for table in (Model, Dataset)
            for found in session.scalars(
                select(table.id)
                .where(table.owner == owner, table.filename.icontains(filters.text, autoescape=True))
                .order_by(table.id.desc())
                .limit(_MOST_FILES)
            )
        ]
        where.append(
            or_(
                Job.id == filters.text,
                Job.error["code"].as_string() == filters.text,
                *(Job.spec[field].as_string().in_(uploads) for field in ("model", "teacher", "student", "dataset")),
            )
        )
    return where


def _verdicts(session: Session, jobs: Sequence[Job]) -> dict[str, str | None]:
    """Of those that have succeeded; reports are not read whole for it."""
    ids = [job.id for job in jobs if job.status == "succeeded"]
    return dict(session.execute(select(Job.id, Job.report["verdict"].as_string()).where(Job.id.in_(ids))).all())


def _choices(session: Session, owner: str, table: type[Model | Dataset]) -> list[tuple[str, str]]:
    there = (table.owner == owner, table.deleted_at.is_(None))
    rows = session.execute(select(table.id, table.filename).where(*there).order_by(table.id.desc()).limit(MOST_CHOICES))
    return [(row.id, texts.name(row.filename)) for row in rows]


def _with(choices: list[tuple[str, str]], chosen: str) -> list[tuple[str, str]]:
    """The choices, with the one that is chosen, which may be old."""
    return choices if not chosen or chosen in dict(choices) else [(chosen, chosen), *choices]


def _outcome(job: Job, verdicts: Mapping[str, str | None]) -> str:
    if job.status == "succeeded":
        return texts.sentence(verdicts.get(job.id), _VERDICT)
    if job.status == "failed" and job.error:
        return texts.sentence(f"{job.error.get('title')}: {job.error.get('detail')}", _VERDICT)
    if job.status == "running":
        stage = STAGES.get(job.stage or "", "")
        return f"{(job.progress or {}).get('fraction', 0.0):.0%} {stage}".replace("%", "\N{NO-BREAK SPACE}%")
    return ""
