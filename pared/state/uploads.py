"""Owns the rules about uploads: which is a duplicate, what is built in, and when one may be deleted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from pared.errors import Conflict, NotFound
from pared.specs import BUILTIN_DATASETS, InspectSpec
from pared.state import lifecycle
from pared.state.limits import UPLOADS_INSPECTING, bytes_left, check_bytes, check_room
from pared.state.objects import Stored
from pared.state.references import job_using
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.settings import settings as process_settings
from pared.state.tables import Dataset, Model, db_now, new_id
from pared.state.turns import lock_owner

Upload = TypeVar("Upload", Model, Dataset)

_KINDS = {"models": "model", "datasets": "data set"}

BUILTIN_INSPECTION: dict[str, Any] = {
    "format": "builtin",
    "inputs": [{"shape": [1, 8, 8], "dtype": "float32"}],
    "samples": {"all": 1797},
    "splits": "by_seed",
    "target": {"dtype": "int64", "classes": 10},
    "warnings": [],
}
"""What an inspection of `builtin:digits` would show."""


def add_model(
    sessions: Sessions,
    owner: str,
    stored: Stored,
    filename: str,
    architecture: Any | None = None,
    *,
    weights: str | None = None,
    prefix: str | None = None,
    request_id: str | None = None,
    settings: Settings | None = None,
) -> tuple[Model, bool]:
    """Keep an uploaded model, and have it inspected.

    Args:
        stored: the file, which lies in the store already.
        filename: from `display_name`.
        architecture: as posted with the file: a name, or JSON; two uploads with other architectures are two models.
        weights: which state dict of a checkpoint is meant; another one is another model.
        prefix: of the names of the tensors that are meant; as `weights`.
        request_id: the HTTP request that sent the file.
        settings: with the owner's limits; None: those of the process.

    Returns:
        The model, and whether it is new (False: this owner sent the same file under the same name before).

    Raises:
        OverLimit: as many uploads of this owner wait for their inspection as may, or all take up as much room.
    """
    with sessions.begin() as session:
        lock_owner(session, owner)
        for known in _same_file(session, Model, owner, stored, filename):
            if (known.architecture, known.weights, known.prefix) == (architecture, weights, prefix):
                return known, False
        chosen = {"architecture": architecture, "weights": weights, "prefix": prefix}
        model = Model(**_columns(owner, stored, filename), id=new_id("mdl"), **chosen)
        _add(session, model, request_id, settings or process_settings())
        return model, True


def add_dataset(
    sessions: Sessions,
    owner: str,
    stored: Stored,
    filename: str,
    *,
    request_id: str | None = None,
    settings: Settings | None = None,
) -> tuple[Dataset, bool]:
    """Keep an uploaded data set, and have it inspected; as `add_model`."""
    with sessions.begin() as session:
        lock_owner(session, owner)
        for known in _same_file(session, Dataset, owner, stored, filename):
            return known, False
        dataset = Dataset(**_columns(owner, stored, filename), id=new_id("dst"))
        _add(session, dataset, request_id, settings or process_settings())
        return dataset, True


def display_name(filename: str) -> str:
    """The name to show for an upload: the last part of a path, without control characters. Never used as a path."""
    name = re.split(r"[/\\]", filename.encode("utf-8", "replace").decode())[-1]
    return re.sub(r"[\x00-\x1f\x7f]", "", name).strip()[:255] or "upload"


def owned_uploads(owner: str, table: type[Upload]) -> Select[Upload]:
    """The owner's models or data sets that were not deleted."""
    return select(table).where(table.owner == owner, table.deleted_at.is_(None))


def find_upload(session: Session, owner: str, table: type[Upload], upload_id: str) -> Upload:
    """The owner's model or data set. Raises NotFound, also for another owner's and for a deleted one."""
    upload: Upload | None = session.scalar(owned_uploads(owner, table).where(table.id == upload_id))
    if upload is None:
        raise NotFound(f"There is no {_KINDS[table.__tablename__]} {upload_id}.")
    return upload


def delete_upload(sessions: Sessions, owner: str, table: type[Upload], upload_id: str) -> None:
    """Delete a model or a data set. Jobs that used it keep their results.

    Raises:
        NotFound: this owner has no such upload.
        Conflict: an unfinished job uses it, or it is built in.
    """
    if upload_id in BUILTIN_DATASETS:
        raise Conflict(f"{upload_id} is part of pared and cannot be deleted.")
    with sessions.begin() as session:
        # Locked against `check_references`: a job that is being submitted now is seen here, or sees the row gone.
        session.execute(select(table.id).where(table.id == upload_id).with_for_update())
        upload = find_upload(session, owner, table, upload_id)
        job_id = job_using(session, owner, upload_id)
        if job_id is not None:
            raise Conflict(f"Job {job_id} still uses it. Cancel the job or wait until it has ended.")
        upload.deleted_at = session.scalar(select(db_now()))


def _same_file(session: Session, table: type[Upload], owner: str, stored: Stored, filename: str) -> Sequence[Upload]:
    # A rejected one is no answer: whoever sends it again wants it tried again.
    query = owned_uploads(owner, table).where(
        table.sha256 == stored.sha256, table.filename == filename, table.status != "rejected"
    )
    return session.scalars(query).all()


def _columns(owner: str, stored: Stored, filename: str) -> dict[str, Any]:
    return {"owner": owner, "filename": filename, "sha256": stored.sha256, "size_bytes": stored.size_bytes}


def check_upload(sessions: Sessions, owner: str, settings: Settings) -> int | None:
    """Refuse an upload before its bytes come, where it would be refused after them.

    Returns:
        How many bytes the owner may still store; None: any number.

    Raises:
        OverLimit: as `add_model`.
    """
    with sessions() as session:
        check_room(session, owner, UPLOADS_INSPECTING, settings)
        check_bytes(session, owner, 1, settings)
        return bytes_left(session, owner, settings)


def _add(session: Session, upload: Model | Dataset, request_id: str | None, settings: Settings) -> None:
    """The row and the job that inspects the upload, if the owner has room for them."""
    check_room(session, upload.owner, UPLOADS_INSPECTING, settings)
    check_bytes(session, upload.owner, upload.size_bytes, settings)
    session.add(upload)
    architecture = upload.architecture if isinstance(upload, Model) else None
    spec = InspectSpec(type="inspect", subject=upload.id, architecture=architecture)
    lifecycle.create(session, upload.owner, spec, request_id=request_id)
    session.refresh(upload)
