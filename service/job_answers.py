"""Owns jobs as JSON: what a poll and a list send. A row that is as it was last time is not made into JSON again."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

from sqlalchemy import Select, Text, bindparam, cast, select

from pared.job_types import LISTED, ListedName
from pared.state.plain_rows import PlainQuery, PlainQueryByKeys, read_each
from pared.state.session import Sessions, batches
from pared.state.tables import Job
from pared.statuses import JobStatus
from service.etags import weak_tag
from service.job_views import views_of
from service.pagination import first_rows, page_of

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
_COLUMNS = (*_PLAIN, *_JSON)
_ID, _OWNER = _COLUMNS.index("id"), _COLUMNS.index("owner")
_SELECTIONS = {
    "status": _JOBS.status == bindparam("status"),
    "type": _JOBS.type == bindparam("type"),
    "after": _JOBS.id < bindparam("after"),
}
_KEPT, _KEPT_BYTES = 512, 8192
_PAGES_AT_ONCE = 4
"""So many are read together: each row may hold a megabyte."""


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
        self._by_id = PlainQueryByKeys(sessions, _SHOWN, _JOBS.id)
        self._list_of = lru_cache(maxsize=None)(self._make_list_of)
        self._kept: OrderedDict[str, tuple[tuple[Any, ...], JobAnswer]] = OrderedDict()
        self._lock = Lock()

    def read(self, asked: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], JobAnswer]:
        """The jobs that there are of these, each asked for by its owner and id."""
        rows = [row for row in self._by_id.read([key for _, key in asked]) if (row[_OWNER], row[_ID]) in asked]
        return {(row[_OWNER], row[_ID]): answer for row, answer in zip(rows, self._of_rows(rows), strict=True)}

    def pages(self, asked: Collection[JobsPage]) -> Mapping[JobsPage, bytes]:
        """Pages of jobs as JSON."""
        pages: dict[JobsPage, bytes] = {}
        for some in batches(asked, _PAGES_AT_ONCE):
            found = read_each([self._behind(page, page.after, first_rows(page.limit)) for page in some])
            pages |= {page: self._page(page, rows) for page, rows in zip(some, found, strict=True)}
        return pages

    def _behind(self, page: JobsPage, after: str | None, most: int) -> tuple[PlainQuery, dict[str, Any]]:
        given = {"status": page.status, "type": page.type, "after": after}
        chosen = {name: value for name, value in given.items() if value is not None}
        return self._list_of(tuple(chosen)), {"owner": page.owner, "most": most} | chosen

    def _page(self, page: JobsPage, first: Sequence[Sequence[Any]]) -> bytes:
        there = [first]

        def fetch(after: str | None, most: int) -> Sequence[Sequence[Any]]:
            return there.pop() if there else read_each([self._behind(page, after, most)])[0]

        def contents(rows: Sequence[Sequence[Any]]) -> Iterable[tuple[str, bytes]]:
            return [(row[_ID], answer.content) for row, answer in zip(rows, self._of_rows(rows), strict=True)]

        return page_of(fetch, page.after, page.limit, contents)

    def _make_list_of(self, selections: tuple[str, ...]) -> PlainQuery:
        where = [_SELECTIONS[name] for name in selections]
        query = _SHOWN.where(_JOBS.owner == bindparam("owner"), *where)
        query = query.order_by(_JOBS.id.desc()).limit(bindparam("most"))
        return PlainQuery(self._sessions, query, ("owner", "most", *selections))

    def _of_rows(self, rows: Sequence[Sequence[Any]]) -> list[JobAnswer]:
        """The answers of rows that `_SHOWN` selects, in their order."""
        values = {row[_ID]: tuple(row) for row in rows}
        with self._lock:
            kept = {key: self._kept.get(key) for key in values}
        answers = {key: known[1] for key, known in kept.items() if known is not None and known[0] == values[key]}
        if len(answers) == len(values):
            return [answers[key] for key in values]
        made = [key for key in values if key not in answers]
        of_owners: dict[str, list[Job]] = {}
        for key in made:
            of_owners.setdefault(values[key][_OWNER], []).append(_job_of(values[key]))
        with self._sessions() as session:
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
        return [answers[key] for key in values]


def _job_of(row: Sequence[Any]) -> Job:
    values = dict(zip(_COLUMNS, row, strict=True))
    for name in _JSON:
        values[name] = json.loads(values[name] or "null")
    return Job(**values)
