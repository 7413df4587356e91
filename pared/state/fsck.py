"""Owns checking that rows and objects fit: every digest, rows without objects, objects without rows; and repairs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from pared.errors import CorruptObject
from pared.state.objects import ObjectStore, content_key
from pared.state.partial_uploads import PartialUploads, unnamed_files
from pared.state.retention import referenced
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.tables import Artifact, Dataset, Job, Model, PartialUpload
from pared.statuses import ENDED

Problem = Literal["damaged", "missing", "unnamed", "partial", "database"]
_ADVICE = {
    "upload": "upload the file again, which mends it",
    "artifact": "submit the job again, or restore a backup",
    "preview": "upload the data set again",
    "checkpoint": "nothing: the job goes on from the checkpoint before, or from its start",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it must be."""

    problem: Problem
    what: str
    """The key of an object, or what else it is about."""
    detail: str
    """What it belongs to, and what to do."""
    repaired: bool = False


@dataclass
class Checked:
    """What was looked at and found."""

    objects: int = 0
    object_bytes: int = 0
    waiting: int = 0
    """Objects that no row names yet, or any more, and that are too young to be collected."""
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class _Named:
    kind: Literal["upload", "artifact", "preview", "checkpoint"]
    row_id: str
    sha256: str | None


def check(
    sessions: Sessions,
    store: ObjectStore,
    settings: Settings,
    *,
    repair: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Checked:
    """Read every object and compare it with its row. The service may run meanwhile.

    Args:
        repair: put damaged and missing objects back where the same bytes are stored under another key, drop a damaged
            preview, and remove objects and halves of uploads that no row names.
        progress: called with the bytes read so far.
    """
    checked = Checked()
    _check_database(sessions, checked)
    named = dict(_all_named(sessions))
    young = set(store.list_older_than(-1.0)) - set(store.list_older_than(settings.keep_unreferenced_s))
    good: dict[str, str] = {}  # digest -> key
    damaged: list[str] = []
    seen: set[str] = set()
    for key in store.list_older_than(-1.0):
        try:
            digest, size = _digest(store, key)
        except CorruptObject:  # collected since it was listed
            continue
        seen.add(key)
        checked.objects, checked.object_bytes = checked.objects + 1, checked.object_bytes + size
        if progress:
            progress(checked.object_bytes)
        expected = key.rpartition("/")[2] if key.startswith("sha256/") else None
        expected = named[key].sha256 if expected is None and key in named else expected
        if expected in (None, digest):
            good.setdefault(digest, key)
            if key not in named and not _is_named(sessions, key):
                _unnamed(store, settings, checked, key, repair=repair, young=key in young)
        else:
            damaged.append(key)
    for key in damaged:
        _mend(sessions, store, checked, key, named.get(key), "damaged", good, repair=repair)
    for key in set(named) - seen:
        if not store.exists(key) and _is_named(sessions, key):
            _mend(sessions, store, checked, key, named[key], "missing", good, repair=repair)
    _check_partial(sessions, store, settings, checked, repair=repair)
    return checked


def _check_database(sessions: Sessions, checked: Checked) -> None:
    with sessions() as session:
        if session.get_bind().dialect.name != "sqlite":
            return  # PostgreSQL has its own checks
        for (line,) in session.execute(text("pragma integrity_check")):
            if line != "ok":
                checked.findings.append(Finding("database", "integrity", f"{line}; restore a backup"))
        for row in session.execute(text("pragma foreign_key_check")):
            checked.findings.append(Finding("database", str(row[0]), f"row {row[1]} points to no row of {row[2]}"))


def _all_named(sessions: Sessions) -> Iterator[tuple[str, _Named]]:
    """The objects that rows name."""
    with sessions() as session:
        for table in (Model, Dataset):
            rows = session.execute(select(table.id, table.sha256).where(table.deleted_at.is_(None)))
            for row_id, sha256 in rows:
                yield content_key(sha256), _Named("upload", row_id, sha256)
        for row_id, job_id, name, key, sha256 in session.execute(
            select(Artifact.id, Artifact.job_id, Artifact.name, Artifact.object_key, Artifact.sha256)
        ):
            yield key, _Named("artifact", f"{name} of {job_id} ({row_id})", sha256)
        previews = select(Dataset.id, Dataset.preview_key, Dataset.preview_sha256)
        for row_id, shown_key, shown_sha256 in session.execute(previews.where(Dataset.deleted_at.is_(None))):
            if shown_key:
                yield shown_key, _Named("preview", row_id, shown_sha256)
        kept = (
            (Job.checkpoint_key, Job.checkpoint_sha256),
            (Job.previous_checkpoint_key, Job.previous_checkpoint_sha256),
        )
        for kept_key, kept_sha256 in kept:
            found = select(Job.id, kept_key, kept_sha256).where(Job.status.not_in(ENDED))
            for row_id, checkpoint, its_sha256 in session.execute(found):
                if checkpoint:
                    yield checkpoint, _Named("checkpoint", row_id, its_sha256)


def _is_named(sessions: Sessions, key: str) -> bool:
    """Whether a row names the object now: rows come and go while objects are read."""
    with sessions() as session:
        return key in referenced(session, [key])


def _unnamed(store: ObjectStore, settings: Settings, checked: Checked, key: str, *, repair: bool, young: bool) -> None:
    if young:
        checked.waiting += 1
        return
    gone = repair and store.delete(key, unless_newer_than_s=settings.keep_unreferenced_s)
    checked.findings.append(Finding("unnamed", key, "no row names it; `pared gc` removes it", repaired=gone))


def _mend(
    sessions: Sessions,
    store: ObjectStore,
    checked: Checked,
    key: str,
    named: _Named | None,
    problem: Problem,
    good: dict[str, str],
    *,
    repair: bool,
) -> None:
    """Put an object back from another one with its bytes, or do without it where that can be."""
    if named is None:
        gone = repair and store.delete(key)
        checked.findings.append(Finding(problem, key, "no row names it; it can go", repaired=gone))
        return
    twin = good.get(named.sha256 or "")
    repaired = False
    if repair and twin is not None:
        store.put(store.read(twin), key=key)
        repaired = _digest(store, key)[0] == named.sha256
    elif repair and named.kind == "preview":
        with sessions.begin() as session:
            _drop_preview(session, named.row_id, key)
        store.delete(key)
        repaired = True
    advice = f"the same bytes are stored as {twin}" if twin is not None else _ADVICE[named.kind]
    checked.findings.append(Finding(problem, key, f"{named.kind} {named.row_id}: {advice}", repaired=repaired))


def _drop_preview(session: Session, dataset_id: str, key: str) -> None:
    session.execute(
        update(Dataset)
        .where(Dataset.id == dataset_id, Dataset.preview_key == key)
        .values(preview_key=None, preview_sha256=None, preview_bytes=None)
    )


def _check_partial(
    sessions: Sessions, store: ObjectStore, settings: Settings, checked: Checked, *, repair: bool
) -> None:
    """Uploads in pieces: their bytes are there as far as their rows say."""
    uploads = PartialUploads(sessions, store, settings)
    with sessions() as session:
        rows = session.execute(
            select(PartialUpload.id, PartialUpload.received_bytes).where(PartialUpload.result_id.is_(None))
        ).all()
    for upload_id, received in rows:
        path = uploads.path(upload_id)
        if path.is_file() and path.stat().st_size >= received:
            continue
        with sessions() as session:
            done = session.scalar(select(PartialUpload.result_id).where(PartialUpload.id == upload_id))
        if done is not None:
            continue
        if repair:
            with sessions.begin() as session:
                session.execute(delete(PartialUpload).where(PartialUpload.id == upload_id))
            path.unlink(missing_ok=True)
        detail = (
            f"of an unfinished upload {received:,} bytes were acknowledged and are not there; its client begins again"
        )
        checked.findings.append(Finding("partial", upload_id, detail, repaired=repair))
    for path in unnamed_files(sessions, store, settings.keep_unreferenced_s):
        if repair:
            path.unlink(missing_ok=True)
        checked.findings.append(Finding("partial", path.name, "no row names it; it can go", repaired=repair))


def _digest(store: ObjectStore, key: str) -> tuple[str, int]:
    sha256, size = hashlib.sha256(), 0
    for chunk in store.read(key):
        sha256.update(chunk)
        size += len(chunk)
    return sha256.hexdigest(), size
