"""Owns which uploads a job names: they are there when it is posted, and stay while it needs them."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import ColumnElement, Text, select
from sqlalchemy import cast as as_type
from sqlalchemy.orm import Session

from pared.errors import Conflict, InvalidArchitecture, NotFound, ParedError
from pared.job_types import BY_NAME, UNLISTED, type_of
from pared.specs import JobSpec, Reference
from pared.specs.running import runs
from pared.specs.uploads import kind_of
from pared.state.tables import Dataset, Job, Model
from pared.statuses import ENDED

UNINSPECTED = ParedError("The inspection ended without a result. Upload the file again.").as_job_error()
"""Why an upload is rejected whose inspection gave no reason."""


def table_of(upload_id: str) -> type[Model | Dataset]:
    """Where an upload's row is."""
    return Model if kind_of(upload_id) == "model" else Dataset


def uploads_of(spec: JobSpec) -> list[Reference]:
    """The uploads that a spec names, without built-in data sets."""
    named = type_of(spec).references(spec.model_dump(mode="json"))
    return [reference for reference in named if reference.is_upload]


def check_references(
    session: Session, owner: str, spec: JobSpec, found: dict[str, Model | Dataset | None] | None = None
) -> None:
    """Every model and data set that a spec names is there, the owner's, and not rejected; what is run, can be.

    Args:
        found: uploads that were looked at earlier in this transaction, by their ids; those of this spec are added.

    Raises:
        NotFound: with a pointer to each that is not there.
        Conflict: with a pointer to each that was rejected.
        InvalidArchitecture: the job runs what is known to be weights alone; with a pointer to where their architecture
            would be said.
    """
    missing: list[dict[str, str]] = []
    rejected: list[dict[str, str]] = []
    alone: list[dict[str, str]] = []
    run = runs(spec)
    found = {} if found is None else found
    for reference in uploads_of(spec):
        if reference.id not in found:
            found[reference.id] = _locked(session, owner, reference.id)
        upload = found[reference.id]
        kind = "model" if reference.kind == "model" else "data set"
        if upload is None:
            detail = f"there is no {kind} {reference.id}; upload it first"
            missing.append({"pointer": reference.pointer, "detail": detail})
        elif upload.status == "rejected":
            detail = f"{kind} {reference.id} was rejected: {(upload.reason or UNINSPECTED)['detail']}"
            rejected.append({"pointer": reference.pointer, "detail": detail})
        elif reference.pointer in run and _holds_weights_alone(upload):
            alone.append(run[reference.pointer].refused(f"{upload.filename} ({upload.id})"))
    if missing:
        raise NotFound("The job names something that is not here.", errors=missing)
    if rejected:
        raise Conflict("The job names an upload that cannot be used.", errors=rejected)
    if alone:
        raise InvalidArchitecture(
            "The job has to run weights alone: give their `architecture`, or upload the whole model.", errors=alone
        )


def _locked(session: Session, owner: str, upload_id: str) -> Model | Dataset | None:
    """The owner's upload, locked until the job is there, so that a delete at the same moment sees the job."""
    table = table_of(upload_id)
    there = (table.id == upload_id, table.owner == owner, table.deleted_at.is_(None))
    return cast("Model | Dataset | None", session.scalar(select(table).where(*there).with_for_update(read=True)))


def _holds_weights_alone(upload: Model | Dataset) -> bool:
    """Whether an inspection that has ended found no architecture, neither given nor known by the weights."""
    inspection = upload.inspection or {}
    layers = inspection.get("layers") or ()  # one too large to be shown has none: then the job's process tells
    kinds = {layer.get("kind") for layer in layers if isinstance(layer, dict)}
    return inspection.get("format") == "state_dict" and "weights" in kinds


def job_using(session: Session, owner: str, upload_id: str) -> str | None:
    """The id of an unfinished job of the owner that names an upload.

    Jobs that the API made for itself keep no upload: the owner could not cancel them.
    """
    rows = session.execute(
        select(Job.id, Job.type, Job.spec)
        .where(Job.owner == owner, Job.type.not_in(UNLISTED), Job.status.not_in(ENDED), mentions(upload_id))
        .order_by(Job.id)
    )
    for job_id, name, spec in rows:
        job_type = BY_NAME.get(name)  # one that only a newer release knows may use it
        if job_type is None or any(reference.id == upload_id for reference in job_type.references(spec)):
            return str(job_id)
    return None


def mentions(upload_id: Any) -> ColumnElement[bool]:
    """WHERE clause: the id stands somewhere in the job's spec."""
    return as_type(Job.spec, Text).contains(upload_id)
