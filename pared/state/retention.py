"""Owns what goes with time: jobs and uploads past their age, what broke off, and objects that no row names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast as typing_cast

from sqlalchemy import ColumnElement, Text, and_, cast, delete, false, func, not_, or_, select
from sqlalchemy.orm import Session

from pared.job_types import JOB_TYPES
from pared.state.failpoints import failpoint
from pared.state.inspections import reject_orphans
from pared.state.jobs import find_job
from pared.state.objects import ObjectStore, content_key
from pared.state.partial_uploads import PartialUploads
from pared.state.references import mentions, table_of
from pared.state.session import Sessions, batches
from pared.state.settings import Settings
from pared.state.tables import (
    Artifact,
    Dataset,
    IdempotencyKey,
    Job,
    Model,
    Owner,
    WebhookDelivery,
    WorkerHeartbeat,
    db_now,
)
from pared.statuses import ENDED, HELD

IDEMPOTENCY_S = 86_400.0
FORGET_WORKER_S = 3_600.0
DAY_S = 86_400.0
DELIVERY_S = 30 * DAY_S
"""Deliveries to webhooks go after so long, or with their job."""
_UPLOAD = re.compile(r"(?:mdl|dst)_[0-9A-Z]{26}")


@dataclass
class Collected:
    """What went, or would go."""

    jobs: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    partial_uploads: int = 0
    objects: int = 0
    object_bytes: int = 0


class _LookedOnly(Exception):
    """Ends a transaction without its changes."""


def collect(sessions: Sessions, store: ObjectStore, settings: Settings, *, dry_run: bool = False) -> Collected:
    """Delete what is past its age, what dead processes left, and objects that nobody needs.

    Args:
        dry_run: only say what would go; nothing is changed.
    """
    collected = Collected()
    unnamed = _uploads_no_job_names(sessions, settings)
    listing: Iterable[str] = store.list_older_than(settings.keep_unreferenced_s)
    if dry_run:
        keys = list(listing)  # before the transaction: a service that runs waits for it
        sizes: dict[str, int] = {}
        try:
            with sessions.begin() as session:
                _collect_rows(session, settings, collected, unnamed)
                for some in batches(keys):
                    sizes |= _sizes(store, set(some) - referenced(session, some))
                raise _LookedOnly  # noqa: TRY301 - rolls back
        except _LookedOnly:
            collected.objects, collected.object_bytes = len(sizes), sum(sizes.values())
            collected.partial_uploads = PartialUploads(sessions, store, settings).expire(dry_run=True)
        return collected
    with sessions.begin() as session:
        _collect_rows(session, settings, collected, unnamed)
    collected.partial_uploads = PartialUploads(sessions, store, settings).expire()
    store.drop_abandoned(settings.keep_unreferenced_s)
    for some in batches(listing):
        with sessions() as session:
            kept = referenced(session, some)
        failpoint("sweep.listed")
        for key, size in _sizes(store, set(some) - kept).items():
            # It may have been uploaded again since it was listed: that renewed its age.
            if store.delete(key, unless_newer_than_s=settings.keep_unreferenced_s):
                collected.objects, collected.object_bytes = collected.objects + 1, collected.object_bytes + size
    return collected


def set_pinned(sessions: Sessions, owner: str, job_id: str, *, pinned: bool) -> Job:
    """Have a job kept whatever its age, or no longer. Raises NotFound."""
    with sessions.begin() as session:
        job = find_job(session, owner, job_id)
        if (job.pinned_at is not None) != pinned:
            job.pinned_at = session.scalar(select(db_now())) if pinned else None
        return job


def referenced(session: Session, keys: Sequence[str]) -> set[str]:
    """Those of the objects that a row names."""
    digests = [key.rpartition("/")[2] for key in keys if key.startswith("sha256/")]
    kept = set(session.scalars(select(Artifact.object_key).where(Artifact.object_key.in_(keys))))
    for table in (Model, Dataset):
        rows = session.scalars(select(table.sha256).where(table.sha256.in_(digests), table.deleted_at.is_(None)))
        kept |= {content_key(sha256) for sha256 in rows}
    previews = select(Dataset.preview_key).where(Dataset.preview_key.in_(keys), Dataset.deleted_at.is_(None))
    kept |= {key for key in session.scalars(previews) if key}
    checkpoints = session.execute(
        select(Job.checkpoint_key, Job.previous_checkpoint_key).where(
            Job.status.not_in(ENDED), or_(Job.checkpoint_key.in_(keys), Job.previous_checkpoint_key.in_(keys))
        )
    )
    return kept | {key for row in checkpoints for key in row if key}


def _collect_rows(session: Session, settings: Settings, collected: Collected, unnamed: Sequence[str]) -> None:
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < db_now() - IDEMPOTENCY_S))
    session.execute(delete(WorkerHeartbeat).where(WorkerHeartbeat.seen_at < db_now() - FORGET_WORKER_S))
    for job_type in JOB_TYPES:
        if job_type.kept_s is not None:
            # One that no worker ever took is of no use to whoever waited for it.
            old = Job.created_at < db_now() - job_type.kept_s
            session.execute(delete(Job).where(Job.type == job_type.name, Job.status.not_in(HELD), old))
    reject_orphans(session)
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.created_at < db_now() - DELIVERY_S))
    if _anything_goes(session, settings):
        gone = session.scalars(delete(Job).where(_past_its_age(settings)).returning(Job.id)).all()
        collected.jobs += sorted(gone)
        for upload_id in unnamed:
            if _delete_unless_named(session, upload_id):
                collected.uploads.append(upload_id)


def _anything_goes(session: Session, settings: Settings) -> bool:
    """Whether any owner's things are kept for some time alone."""
    limited = select(Owner.id).where(Owner.retention_days > 0).limit(1)
    return bool(settings.retention_days) or session.scalar(limited) is not None


def _since(table: type[Job | Model | Dataset], settings: Settings) -> ColumnElement[float]:
    """What is older than this time is past its age, by the owner's own retention or the service's; null: nothing is."""
    own = select(Owner.retention_days).where(Owner.id == table.owner).scalar_subquery()
    return db_now() - func.nullif(func.coalesce(own, settings.retention_days), 0.0) * DAY_S


def _past_its_age(settings: Settings) -> ColumnElement[bool]:
    """WHERE clause: the job ended so long ago, and is not pinned."""
    return and_(Job.status.in_(ENDED), Job.finished_at < _since(Job, settings), Job.pinned_at.is_(None))


def _uploads_no_job_names(sessions: Sessions, settings: Settings) -> list[str]:
    """Old uploads that no job names but those that are past their age themselves."""
    with sessions.in_transaction() as session:
        if not _anything_goes(session, settings):
            return []
        candidates: set[str] = set()
        for table in (Model, Dataset):
            old = (table.deleted_at.is_(None), table.status != "inspecting", table.created_at < _since(table, settings))
            candidates |= set(session.scalars(select(table.id).where(*old)))
        if candidates:
            stays = not_(func.coalesce(_past_its_age(settings), false()))  # null where nothing limits its age
            specs = select(cast(Job.spec, Text)).where(stays)
            for spec in session.scalars(specs.execution_options(yield_per=1000)):
                candidates -= set(_UPLOAD.findall(spec))
    return sorted(candidates)


def _delete_unless_named(session: Session, upload_id: str) -> bool:
    table = table_of(upload_id)
    # Locked against `check_references`: a job that is being submitted now is seen here, or sees the row gone.
    live = select(table).where(table.id == upload_id, table.deleted_at.is_(None)).with_for_update()
    upload = typing_cast("Model | Dataset | None", session.scalar(live))
    if upload is None or session.scalar(select(Job.id).where(mentions(upload_id)).limit(1)) is not None:
        return False
    upload.deleted_at = session.scalar(select(db_now()))
    session.flush()
    return True


def _sizes(store: ObjectStore, keys: Iterable[str]) -> dict[str, int]:
    return {key: store.size(key) for key in keys if store.exists(key)}
