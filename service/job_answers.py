"""Owns jobs as JSON: what a poll and a list send. A row that is as it was last time is not made into JSON again."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from sqlalchemy import Row, Select, Text, bindparam, cast, select
from sqlalchemy.orm import Session

from pared.job_types import LISTED
from pared.state.session import Sessions
from pared.state.tables import Job
from pared.statuses import JobStatus
from service.etags import weak_tag
from service.job_views import views_of

_TEXTS = (
    Job.id,
    Job.owner,
    Job.type,
    Job.status,
    Job.stage,
    Job.device,
    Job.sandbox,
    Job.attempt,
    Job.created_at,
    Job.started_at,
    Job.finished_at,
    Job.pinned_at,
)
_JSON = (Job.spec, Job.progress, Job.error, Job.outcome)
SHOWN: Select[*tuple[Any, ...]] = select(*_TEXTS, *(cast(column, Text).label(column.key) for column in _JSON)).where(
    Job.type.in_([each.name for each in LISTED])
)
"""What is shown of jobs. JSON comes as the text that it is stored as: it is read only where the row is another."""
_BY_ID = SHOWN.where(Job.id.in_(bindparam("ids", expanding=True)))
_ONE = SHOWN.where(Job.id == bindparam("id"))
_KEPT, _KEPT_BYTES = 2048, 8192


@dataclass(frozen=True)
class JobAnswer:
    """One job as it is sent."""

    status: JobStatus
    content: bytes
    """A `JobView` as JSON."""
    tag: str
    """Its ETag."""


class JobAnswers:
    """The answers of one process. All methods may be called by several threads at once."""

    def __init__(self, sessions: Sessions) -> None:
        """Args: sessions: of the database with the jobs."""
        self._sessions = sessions
        self._kept: OrderedDict[str, tuple[Row[Any], JobAnswer]] = OrderedDict()
        self._lock = Lock()

    def read(self, asked: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], JobAnswer]:
        """The jobs that there are of these, each asked for by its owner and id."""
        ids = [job_id for _, job_id in asked]
        with self._sessions() as session:
            query = (_ONE, {"id": ids[0]}) if len(ids) == 1 else (_BY_ID, {"ids": ids})
            rows = [row for row in session.execute(*query).all() if (row.owner, row.id) in asked]
            answers = self.of_rows(session, rows)
        return {(row.owner, row.id): answer for row, answer in zip(rows, answers, strict=True)}

    def of_rows(self, session: Session, rows: Sequence[Row[Any]]) -> list[JobAnswer]:
        """The answers of rows that `SHOWN` selects, in their order."""
        answers = {row.id: self._known(row) for row in rows}
        of_owners: dict[str, list[Job]] = {}
        for row in rows:
            if answers[row.id] is None:
                of_owners.setdefault(row.owner, []).append(_job_of(row))
        for jobs in of_owners.values():
            for view in views_of(session, jobs):
                content = view.model_dump_json(by_alias=True).encode()
                answers[view.id] = JobAnswer(view.status, content, weak_tag(content))
        made = [answer for row in rows if (answer := answers[row.id]) is not None]
        self._keep(rows, made)
        return made

    def _known(self, row: Row[Any]) -> JobAnswer | None:
        with self._lock:
            kept = self._kept.get(row.id)
            if kept is None or kept[0] != row:
                return None
            self._kept.move_to_end(row.id)
            return kept[1]

    def _keep(self, rows: Sequence[Row[Any]], answers: Sequence[JobAnswer]) -> None:
        with self._lock:
            for row, answer in zip(rows, answers, strict=True):
                # The place in line of a queued job changes with other rows; that of an ended one has files, which stay.
                if row.status != "queued" and len(answer.content) <= _KEPT_BYTES:
                    self._kept[row.id] = row, answer
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)


def _job_of(row: Row[Any]) -> Job:
    values = row._asdict()
    for column in _JSON:
        values[column.key] = json.loads(values[column.key] or "null")
    return Job(**values)
