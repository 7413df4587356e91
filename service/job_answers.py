"""Owns jobs as JSON: what a poll and a list send. A row that is as it was last time is not made into JSON again."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

from sqlalchemy import Row, Select, Text, bindparam, cast, select
from sqlalchemy.orm import Session

from pared.job_types import LISTED, ListedName
from pared.state.session import Sessions
from pared.state.tables import Job
from pared.statuses import JobStatus
from service.etags import weak_tag
from service.job_views import views_of
from service.pagination import page_of

_PLAIN = (
    "id",
    "owner",
    "type",
    "status",
    "stage",
    "device",
    "sandbox",
    "attempt",
    "created_at",
    "started_at",
    "finished_at",
    "pinned_at",
)
_JSON = ("spec", "progress", "error", "outcome")
_JOBS = Job.__table__.c
_SHOWN: Select[*tuple[Any, ...]] = select(
    *(_JOBS[name] for name in _PLAIN), *(cast(_JOBS[name], Text).label(name) for name in _JSON)
).where(_JOBS.type.in_([each.name for each in LISTED]))
"""What is shown of jobs, as plain rows. JSON comes as the text that is stored: it is read only where it is another."""
_BY_ID = _SHOWN.where(_JOBS.id.in_(bindparam("ids", expanding=True)))
_ONE = _SHOWN.where(_JOBS.id == bindparam("id"))
_SELECTIONS = {
    "status": _JOBS.status == bindparam("status"),
    "type": _JOBS.type == bindparam("type"),
    "after": _JOBS.id < bindparam("after"),
}
_KEPT, _KEPT_BYTES = 2048, 8192


@dataclass(frozen=True)
class JobAnswer:
    """One job as it is sent."""

    status: JobStatus
    content: bytes
    """A `JobView` as JSON."""
    tag: str
    """Its ETag."""


@dataclass(frozen=True)
class JobsPage:
    """Which of an owner's jobs a page shows."""

    owner: str
    status: JobStatus | None
    type: ListedName | None
    after: str | None
    """Those behind the one with this id; None: the newest."""
    limit: int


class JobAnswers:
    """The answers of one process. All methods may be called by several threads at once."""

    def __init__(self, sessions: Sessions) -> None:
        """Args: sessions: of the database with the jobs."""
        self._sessions = sessions
        self._kept: OrderedDict[str, tuple[tuple[Any, ...], JobAnswer]] = OrderedDict()
        self._lock = Lock()

    def read(self, asked: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], JobAnswer]:
        """The jobs that there are of these, each asked for by its owner and id."""
        ids = [job_id for _, job_id in asked]
        with self._sessions() as session:
            query = (_ONE, {"id": ids[0]}) if len(ids) == 1 else (_BY_ID, {"ids": ids})
            rows = [row for row in session.execute(*query).all() if (row.owner, row.id) in asked]
            answers = self._of_rows(session, rows)
        return {(row.owner, row.id): answer for row, answer in zip(rows, answers, strict=True)}

    def pages(self, asked: Collection[JobsPage]) -> Mapping[JobsPage, bytes]:
        """Pages of jobs as JSON."""
        with self._sessions() as session:
            return {page: self._page(session, page) for page in asked}

    def _page(self, session: Session, page: JobsPage) -> bytes:
        given = {"status": page.status, "type": page.type}

        def fetch(after: str | None, most: int) -> Sequence[Row[Any]]:
            chosen = {name: value for name, value in (given | {"after": after}).items() if value is not None}
            return session.execute(_list_of(tuple(chosen)), {"owner": page.owner, "most": most, **chosen}).all()

        def contents(rows: Sequence[Row[Any]]) -> Iterable[tuple[str, bytes]]:
            answers = self._of_rows(session, rows)
            return [(row.id, answer.content) for row, answer in zip(rows, answers, strict=True)]

        return page_of(fetch, page.after, page.limit, contents)

    def _of_rows(self, session: Session, rows: Sequence[Row[Any]]) -> list[JobAnswer]:
        """The answers of rows that `_SHOWN` selects, in their order."""
        values = {row.id: tuple(row) for row in rows}
        with self._lock:
            kept = {key: self._kept.get(key) for key in values}
        answers = {key: known[1] for key, known in kept.items() if known is not None and known[0] == values[key]}
        made = []
        of_owners: dict[str, list[Job]] = {}
        for row in rows:
            if row.id not in answers:
                made.append(row.id)
                of_owners.setdefault(row.owner, []).append(_job_of(row))
        for jobs in of_owners.values():
            for view in views_of(session, jobs):
                content = view.model_dump_json(by_alias=True).encode()
                answers[view.id] = JobAnswer(view.status, content, weak_tag(content))
        with self._lock:
            for key in made:
                # The place in line of a queued job changes with other rows; the files of an ended one stay as they are.
                if answers[key].status != "queued" and len(answers[key].content) <= _KEPT_BYTES:
                    self._kept[key] = values[key], answers[key]
                    self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return [answers[row.id] for row in rows]


@lru_cache(maxsize=8)  # to build it takes longer than to run it
def _list_of(selections: tuple[str, ...]) -> Select[*tuple[Any, ...]]:
    where = [_SELECTIONS[name] for name in selections]
    query = _SHOWN.where(_JOBS.owner == bindparam("owner"), *where)
    return query.order_by(_JOBS.id.desc()).limit(bindparam("most"))


def _job_of(row: Row[Any]) -> Job:
    values = row._asdict()
    for name in _JSON:
        values[name] = json.loads(values[name] or "null")
    return Job(**values)
