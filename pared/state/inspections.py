"""Owns what an inspection means to the upload that it was about: it becomes ready, or is rejected with a reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from pared.errors import Conflict, NotFound, NotReady
from pared.job_types import JOB_TYPES
from pared.state.inspection_size import fitted
from pared.state.references import UNINSPECTED, mentions, table_of
from pared.state.tables import Artifact, Dataset, Job, Model, db_now
from pared.statuses import ENDED

_ORPHAN_S = 120.0


PREVIEWS = {"preview.png": "image/png", "preview.json": "application/json"}
"""What an inspection may leave to show a data set's samples: name -> media type."""
MAX_PREVIEW_BYTES = 8 << 20


def files_to_keep(upload_id: str) -> Collection[str]:
    """Names of the files that the inspection of an upload may leave; no row will ever name another."""
    return PREVIEWS if table_of(upload_id) is Dataset else ()


def accept(session: Session, upload_id: str, inspection: dict[str, Any], artifacts: Iterable[Artifact] = ()) -> None:
    """The upload becomes ready, if its inspection is still open. Of the files that were left it keeps a preview."""
    table = table_of(upload_id)
    inspection = fitted(inspection)
    values: dict[str, Any] = {"status": "ready", "inspection": inspection, "format": inspection["format"][:32]}
    if table is Dataset:
        for artifact in artifacts:
            if artifact.name in PREVIEWS and artifact.size_bytes <= MAX_PREVIEW_BYTES:
                values["preview_key"] = artifact.object_key
                values["preview_sha256"] = artifact.sha256
                values["preview_bytes"] = artifact.size_bytes
    session.execute(update(table).where(table.id == upload_id, table.status == "inspecting").values(values))


def preview_of(dataset: Dataset) -> Artifact:
    """The file that shows a data set's samples, as an artifact of no job.

    Raises:
        NotReady: the data set is still being inspected.
        Conflict: it was rejected.
        NotFound: its inspection left none.
    """
    if dataset.status == "inspecting":
        raise NotReady("The data set is being inspected. Wait until it is ready, such as with `Prefer: wait=30` on it.")
    if dataset.status == "rejected":
        raise Conflict(
            f"The data set was rejected, so there is nothing to show: {(dataset.reason or UNINSPECTED)['detail']}"
        )
    key, sha256, size = dataset.preview_key, dataset.preview_sha256, dataset.preview_bytes
    if key is None or sha256 is None or size is None:
        raise NotFound(
            "There is no preview of this data set: it holds texts without a tokenizer.json, or it was inspected by an "
            "older version. Upload it again, texts in a zip with their tokenizer."
        )
    name = key.rpartition("/")[2]
    return Artifact(name=name, media_type=PREVIEWS[name], object_key=key, sha256=sha256, size_bytes=size)


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
