"""Owns uploads that are sent in pieces: what was acknowledged is on disk, and becomes one model or data set.

Whoever sends bytes takes the next fence of the row. Bytes are written under a lock on the file, and only by the holder
of the newest fence, so that a connection that was thought lost writes nothing over what another one brought.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Select, delete, func, select, true, update
from sqlalchemy.orm import Session

from pared.errors import ChecksumMismatch, Conflict, NotFound, StorageFull
from pared.state.limits import UPLOADS_UNFINISHED, check_bytes, check_room
from pared.state.objects import CHUNK_BYTES, ObjectStore, Stored, content_key, no_room_is_named, sync_folder
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.tables import Artifact, Dataset, Job, Model, PartialUpload, UploadTable, db_now, new_id
from pared.state.turns import lock_owner
from pared.state.uploads import add_dataset, add_model

COMMIT_BYTES = 16 << 20
COMMIT_S = 5.0
"""So many bytes, or so long, after the last time, what arrived is put on disk for good."""
CHECKSUMS = ("sha1", "sha256")


@dataclass(frozen=True)
class Announced:
    """What a client says of a file before it sends it."""

    kind: UploadTable
    filename: str
    size_bytes: int
    metadata: str
    """All of it, as it was sent."""
    sha256: str | None = None
    architecture: Any | None = None
    weights: str | None = None
    prefix: str | None = None


@dataclass(frozen=True)
class Checksum:
    """What a client says the bytes of one piece come to."""

    algorithm: str
    digest: bytes


class PartialUploads:
    """The uploads in pieces of one process."""

    def __init__(self, sessions: Sessions, store: ObjectStore, settings: Settings) -> None:
        """Args: store: where the objects are, on whose disk the pieces wait."""
        self._sessions, self._store = sessions, store
        self._settings, self._keep_s = settings, settings.keep_unreferenced_s

    def create(self, owner: str, announced: Announced, *, request_id: str | None = None) -> PartialUpload:
        """Begin an upload, or find the one that goes on.

        With a digest, an upload of the same file that was begun before is continued, and one whose bytes this owner has
        here already is done at once.

        Raises:
            OverLimit: as many uploads of this owner as may are unfinished, or all take up as much room.
            StorageFull: the disk has less room than the file needs.
        """
        if announced.sha256 is not None:
            earlier = self._earlier(owner, announced)
            if earlier is not None:
                return earlier
            result_id = self._of_kept_bytes(owner, announced, request_id)
            if result_id is not None:
                return self._add(owner, announced, request_id, result_id)
        free = self._store.free_bytes()
        if announced.size_bytes > free:
            raise StorageFull(
                f"The server's disk has room for {free:,} bytes. Delete models you no longer need, or try again later."
            )
        row = self._add(owner, announced, request_id)
        path = self.path(row.id)
        with no_room_is_named():
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            sync_folder(path.parent)
        return row

    def look(self, owner: str, upload_id: str) -> PartialUpload:
        """The upload as it is now. One whose bytes are all there becomes a model or a data set, if it is none yet.

        Raises:
            NotFound: this owner has no such upload, or it expired.
        """
        with self._sessions() as session:
            row = _find(session, owner, upload_id)
        if row.result_id is not None:
            return row
        if row.digest is not None and self.path(row.id).is_file():
            with suppress(Conflict), alone(self.path(row.id)):
                return self.complete(row.id)
        if not self.path(row.id).is_file():
            with self._sessions() as session:
                row = _find(session, owner, upload_id)
            if row.result_id is None:  # the file is lost, as on a machine that only got the rows back
                self._forget(row.id)
        return row

    def receive(self, owner: str, upload_id: str, offset: int, checksum: Checksum | None = None) -> Receiver:
        """Take over an upload to write its next bytes.

        Raises:
            NotFound: as `look`.
            Conflict: the upload is not at this offset.
        """
        row = self.look(owner, upload_id)
        with self._sessions.begin() as session:
            row = _find(session, owner, upload_id, lock=True)
            if row.received_bytes != offset:
                raise Conflict(
                    f"The upload is at byte {row.received_bytes:,}, not at {offset:,}. Ask with HEAD where to go on."
                )
            row.fence += 1
        return Receiver(self, row, checksum)

    def terminate(self, owner: str, upload_id: str) -> None:
        """Forget an upload and its bytes; what it has become stays. Raises NotFound."""
        with self._sessions.begin() as session:
            session.delete(_find(session, owner, upload_id, lock=True))
        self.path(upload_id).unlink(missing_ok=True)

    def expire(self, *, dry_run: bool = False) -> int:
        """Forget uploads whose time is over, and files that no row names. Returns how many uploads.

        Args:
            dry_run: only count them.
        """
        if dry_run:
            over = select(func.count()).where(PartialUpload.expires_at < db_now())
            with self._sessions() as session:
                return session.scalar(over) or 0
        with self._sessions.begin() as session:
            gone = session.execute(
                delete(PartialUpload).where(PartialUpload.expires_at < db_now()).returning(PartialUpload.id)
            )
            expired = [upload_id for (upload_id,) in gone]
        for path in unnamed_files(self._sessions, self._store, self._keep_s):
            path.unlink(missing_ok=True)
        for upload_id in expired:
            self.path(upload_id).unlink(missing_ok=True)
        return len(expired)

    def stored(self, owner: str, sha256: str) -> Stored | None:
        """The object with this digest, if it is a file that this owner sent or a job of theirs made."""
        with self._sessions() as session:
            for key, size_bytes in _owned(session, owner, sha256):
                if self._store.exists(key):
                    return Stored(key, sha256, size_bytes)
        return None

    def _earlier(self, owner: str, announced: Announced) -> PartialUpload | None:
        with self._sessions() as session:
            row = session.scalar(
                _live(owner)
                .where(
                    PartialUpload.sha256 == announced.sha256,
                    PartialUpload.size_bytes == announced.size_bytes,
                    PartialUpload.upload_metadata == announced.metadata,
                    PartialUpload.result_id.is_(None),
                )
                .order_by(PartialUpload.id.desc())
                .limit(1)
            )
        return row if row is not None and self.path(row.id).is_file() else None

    def _of_kept_bytes(self, owner: str, announced: Announced, request_id: str | None) -> str | None:
        """The model or data set made of bytes that are here; None: they are not, or are damaged."""
        stored = self.stored(owner, announced.sha256 or "")
        if stored is None or stored.size_bytes != announced.size_bytes:
            return None
        # Young again before the row is there: nobody collects it between the two.
        if not self._store.renew(stored.key) or stored.sha256 != _digest(self._store.read(stored.key)):
            return None
        if stored.key != content_key(stored.sha256):  # what a job made
            stored = self._store.adopt_object(stored.key, stored.sha256)
        return self._result(owner, announced, stored, request_id)

    def _add(self, owner: str, announced: Announced, request_id: str | None, done: str | None = None) -> PartialUpload:
        with self._sessions.begin() as session:
            if done is None:
                lock_owner(session, owner)
                check_room(session, owner, UPLOADS_UNFINISHED, self._settings)
                check_bytes(session, owner, announced.size_bytes, self._settings)
            row = PartialUpload(
                id=new_id("upl"),
                owner=owner,
                kind=announced.kind,
                filename=announced.filename,
                size_bytes=announced.size_bytes,
                sha256=announced.sha256,
                architecture=announced.architecture,
                weights=announced.weights,
                prefix=announced.prefix,
                upload_metadata=announced.metadata,
                received_bytes=0 if done is None else announced.size_bytes,
                digest=None if done is None else announced.sha256,
                result_id=done,
                request_id=request_id,
                expires_at=db_now() + self._keep_s,
            )
            session.add(row)
            session.flush()
            session.refresh(row)
        return row

    def _result(self, owner: str, announced: Announced | PartialUpload, stored: Stored, request_id: str | None) -> str:
        """The id of the model or data set that the bytes become."""
        if announced.kind == "datasets":
            return add_dataset(
                self._sessions, owner, stored, announced.filename, request_id=request_id, settings=self._settings
            )[0].id
        model, _ = add_model(
            self._sessions,
            owner,
            stored,
            announced.filename,
            announced.architecture,
            weights=announced.weights,
            prefix=announced.prefix,
            request_id=request_id,
            settings=self._settings,
        )
        return model.id

    def complete(self, upload_id: str) -> PartialUpload:
        """Make a model or a data set of a sealed upload, whose file is locked; each step may be done again."""
        with self._sessions() as session:
            row = session.get(PartialUpload, upload_id)
        if row is None or row.digest is None:
            raise NotFound(_NOT_FOUND.format(upload_id))
        if row.result_id is None:
            stored = self._store.adopt(self.path(row.id), row.digest)
            row.result_id = self._result(row.owner, row, stored, row.request_id)
            with self._sessions.begin() as session:
                session.execute(update(PartialUpload).where(PartialUpload.id == row.id).values(result_id=row.result_id))
            self.path(row.id).unlink(missing_ok=True)
        return row

    def keep(self, row: PartialUpload, received_bytes: int, digest: str | None = None) -> None:
        """Say in the row how much is on disk, and seal the upload with its digest once that is all.

        Raises:
            Conflict: another request took the upload over.
        """
        with self._sessions.begin() as session:
            values = {"received_bytes": received_bytes, "digest": digest, "expires_at": db_now() + self._keep_s}
            changed = (
                update(PartialUpload)
                # A digest is of bytes that nobody changes meanwhile; whoever took over finds the upload sealed.
                .where(PartialUpload.id == row.id, true() if digest else PartialUpload.fence == row.fence)
                .values(values)
                .returning(PartialUpload.expires_at)
            )
            expires_at = session.scalar(changed)
        if expires_at is None:
            raise Conflict(_TAKEN_OVER)
        row.received_bytes, row.expires_at = received_bytes, expires_at

    def check_fence(self, row: PartialUpload) -> None:
        """Raise Conflict unless the holder of this row is the one that writes to the upload."""
        with self._sessions() as session:
            now = session.execute(
                select(PartialUpload.fence, PartialUpload.digest).where(PartialUpload.id == row.id)
            ).one_or_none()
        if now is None or now.fence != row.fence or now.digest is not None:
            raise Conflict(_TAKEN_OVER)

    def _forget(self, upload_id: str) -> None:
        with self._sessions.begin() as session:
            session.execute(delete(PartialUpload).where(PartialUpload.id == upload_id))
        raise NotFound(_NOT_FOUND.format(upload_id))

    def path(self, upload_id: str) -> Path:
        """Where the bytes of an upload are."""
        return self._store.partial_folder / upload_id


class Receiver:
    """Writes the bytes of one request to an upload."""

    def __init__(self, uploads: PartialUploads, row: PartialUpload, checksum: Checksum | None) -> None:
        """Args: row: with the fence that this request took; checksum: of all that the request brings."""
        self._uploads, self._row, self._checksum = uploads, row, checksum
        self._piece = hashlib.new(checksum.algorithm, usedforsecurity=False) if checksum else None
        # Of the whole file, where one request brings it: then it need not be read again.
        self._whole = hashlib.sha256() if row.received_bytes == 0 else None
        self._at = row.received_bytes
        self._kept_at, self._kept_time = row.received_bytes, time.monotonic()

    @property
    def left_bytes(self) -> int:
        """How many bytes may still come."""
        return self._row.size_bytes - self._at

    def write(self, batch: Sequence[bytes]) -> None:
        """Add bytes. Raises StorageFull, and Conflict where another request took the upload over."""
        if not any(batch):
            return
        with self._holding() as fd, no_room_is_named():
            for chunk in batch:
                view = memoryview(chunk)
                for digest in (self._piece, self._whole):
                    if digest is not None:
                        digest.update(view)
                while view:
                    written = os.pwrite(fd, view, self._at)
                    self._at, view = self._at + written, view[written:]
            due = self._at - self._kept_at >= COMMIT_BYTES or time.monotonic() - self._kept_time >= COMMIT_S
            if due and self._checksum is None:
                self._keep(fd)

    def finish(self, *, whole: bool) -> PartialUpload:
        """Keep what arrived; with the last byte the upload becomes a model or a data set.

        Args:
            whole: whether all of the request's body arrived.

        Raises:
            ChecksumMismatch: the piece, or the whole file, is not what was announced.
            Conflict: another request took the upload over.
        """
        if self._checksum and self._piece and not (whole and self._piece.digest() == self._checksum.digest):
            raise ChecksumMismatch(
                f"The bytes from {self._kept_at:,} on do not have the {self._checksum.algorithm} that was sent with "
                "them. They were thrown away; send them again."
            )
        if self._row.result_id is not None:
            return self._row
        with self._holding() as fd:
            self._keep(fd)
            if self._at < self._row.size_bytes:
                return self._row
            digest = self._whole.hexdigest() if self._whole else _digest(_chunks(fd))
            if self._row.sha256 in (None, digest):
                self._uploads.keep(self._row, self._at, digest)
                return self._uploads.complete(self._row.id)
        self._uploads.terminate(self._row.owner, self._row.id)
        raise ChecksumMismatch(
            f"The file has the SHA-256 {digest}, and {self._row.sha256} was announced. Send it again from the start."
        )

    def _keep(self, fd: int) -> None:
        """Put on disk what arrived, and then say so in the row; of the last byte only `finish` says it."""
        with no_room_is_named():
            os.fsync(fd)
        if self._at < self._row.size_bytes:
            self._uploads.keep(self._row, self._at)
        self._kept_at, self._kept_time = self._at, time.monotonic()

    @contextmanager
    def _holding(self) -> Iterator[int]:
        """The locked file, if this request is still the one that writes to it."""
        with alone(self._uploads.path(self._row.id)) as fd:
            self._uploads.check_fence(self._row)
            yield fd


_NOT_FOUND = (
    "There is no upload {}. Uploads are kept for some time after their last byte, a day as it comes; begin again."
)
_TAKEN_OVER = "Another request goes on with this upload, or it was deleted. Ask with HEAD where to go on."


def unnamed_files(sessions: Sessions, store: ObjectStore, older_than_s: float) -> list[Path]:
    """Files of uploads of which there is no row any more, or that are done, last written to so long ago."""
    limit = time.time() - older_than_s
    old = []
    for path in store.partial_folder.iterdir():
        try:
            if path.stat().st_mtime < limit:
                old.append(path)
        except FileNotFoundError:
            continue
    with sessions() as session:
        named = set(session.scalars(select(PartialUpload.id).where(PartialUpload.result_id.is_(None))))
    return [path for path in old if path.name not in named]


def _live(owner: str) -> Select[PartialUpload]:
    return select(PartialUpload).where(PartialUpload.owner == owner, PartialUpload.expires_at >= db_now())


def _find(session: Session, owner: str, upload_id: str, *, lock: bool = False) -> PartialUpload:
    query = _live(owner).where(PartialUpload.id == upload_id)
    row: PartialUpload | None = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFound(_NOT_FOUND.format(upload_id))
    return row


def _owned(session: Session, owner: str, sha256: str) -> Iterator[tuple[str, int]]:
    """Key and size of each object with this digest that the owner has."""
    for table in (Model, Dataset):
        for size in session.scalars(
            select(table.size_bytes)
            .where(table.owner == owner, table.sha256 == sha256, table.deleted_at.is_(None))
            .limit(1)
        ):
            yield content_key(sha256), size
    made = select(Artifact.object_key, Artifact.size_bytes).join(Job, Job.id == Artifact.job_id)
    for key, size in session.execute(made.where(Job.owner == owner, Artifact.sha256 == sha256).limit(1)):
        yield key, size


@contextmanager
def alone(path: Path) -> Iterator[int]:
    """The file, open, while no other request writes to it or completes it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Conflict(_TAKEN_OVER) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _chunks(fd: int) -> Iterator[bytes]:
    at = 0
    while chunk := os.pread(fd, CHUNK_BYTES, at):
        yield chunk
        at += len(chunk)


def _digest(chunks: Iterator[bytes]) -> str:
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
    return sha256.hexdigest()
