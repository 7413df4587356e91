"""Owns what an inspection means to the upload that it was about: it becomes ready, or is rejected with a reason."""

from __future__ import annotations

from typing import Any

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from pared.job_types import JOB_TYPES
from pared.state.references import UNINSPECTED, mentions, table_of
from pared.state.tables import Dataset, Job, Model, db_now
from pared.statuses import ENDED

_ORPHAN_S = 120.0


def accept(session: Session, upload_id: str, inspection: dict[str, Any]) -> None:
    """The upload becomes ready, if its inspection is still open."""
    table = table_of(upload_id)
    session.execute(
        update(table)
        .where(table.id == upload_id, table.status == "inspecting")
        .values(status="ready", inspection=inspection, format=inspection["format"][:32])
    )


def reject(session: Session, upload_id: str, reason: dict[str, Any] | None) -> None:
    """The upload cannot be used, if its inspection is still open."""
    table = table_of(upload_id)
    session.execute(
        update(table)
        .where(table.id == upload_id, table.status == "inspecting")
        .values(status="rejected", reason=reason or UNINSPECTED)
    )


def reject_orphans(session: Session) -> None:
    """Uploads still `inspecting` though no unfinished inspection is about them; none of our paths leaves one."""
    names = [each.name for each in JOB_TYPES if each.report_goes_to == "upload"]
    for table in (Model, Dataset):
        open_inspection = exists().where(Job.type.in_(names), Job.status.not_in(ENDED), mentions(table.id))
        orphans = session.scalars(
            select(table.id).where(
                table.status == "inspecting", table.created_at < db_now() - _ORPHAN_S, ~open_inspection
            )
        ).all()
        for upload_id in orphans:
            reject(session, upload_id, None)
