"""Owns the bytes: uploads, checkpoints and artifacts, stored whole and under their SHA-256 or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pared.errors import CorruptObject, StorageFull
from pared.full_disk import NO_ROOM
from pared.state.failpoints import failpoint
from pared.state.places import Bucket
from pared.state.settings import Settings

CHUNK_BYTES = 1 << 20
READ_BYTES = 2 << 20
"""Of an object at a time: a download of half of that at a time took twice the processor time."""
WRITE_BACK_BYTES = 8 << 20
"""After so many bytes of an object the kernel is told to put them on disk, while more of it comes."""
# No segment starts with a dot, so neither `..` nor the store's own folder can be named.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_FULL = "The server's disk is full. Delete models you no longer need, or try again later."
MISSING = "The stored bytes are missing. Upload the file again."


@dataclass(frozen=True)
class Stored:
    """What was stored: the bytes are on disk when one of these exists."""

    key: str
    sha256: str
    size_bytes: int


class ObjectWriter(Protocol):
    """Takes one object piece by piece. Nothing is visible before `commit`."""

    size_bytes: int

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes. Raises StorageFull."""

    def commit(self, key: str | None = None) -> Stored:
        """Make the object durable and visible; without a key it is stored under its content."""

    def abort(self) -> None:
        """Forget what was written. Harmless after `commit`."""


class ObjectStore(ABC):
    """Bytes under keys that this server made; a user's file name is never part of one.

    Files arrive in a local folder, and are then published as objects. All that asks another machine may raise
    Unavailable.
    """

    _durable: bool
    """Whether a file that is published must be on disk first."""

    def __init__(self, incoming: Path, partial_folder: Path) -> None:
        """Args: incoming: where objects are written first; made if missing. partial_folder: likewise."""
        self._incoming, self.partial_folder = incoming, partial_folder
        """Where files wait that become objects by `adopt`."""
        incoming.mkdir(parents=True, exist_ok=True)
        partial_folder.mkdir(exist_ok=True)

    def put(self, chunks: Iterable[bytes], *, key: str | None = None) -> Stored:
        """Store a stream. Without a key it goes under its content, and the same bytes are kept once."""
        writer = self.writer()
        try:
            for chunk in chunks:
                writer.write(chunk)
            return writer.commit(key)
        finally:
            writer.abort()

    def writer(self) -> ObjectWriter:
        """For a producer that cannot hand over an iterable."""
        return FileWriter(self._incoming, self.publish, durable=self._durable)

    def fetch(self, key: str, path: Path) -> str:
        """Copy the object to a new local file and return the SHA-256 of what was copied."""
        digest = hashlib.sha256()
        with no_room_is_named(), path.open("xb") as out:
            for chunk in self.read(key):
                digest.update(chunk)
                out.write(chunk)
        return digest.hexdigest()

    def check_room(self, size_bytes: int) -> None:
        """Raise StorageFull where so many bytes would not fit; nothing is reserved."""
        if self.free_bytes() < size_bytes:
            raise StorageFull(_FULL)

    def free_bytes(self) -> int:
        """Room on the disk that files arrive on."""
        disk = os.statvfs(self._incoming)
        return disk.f_bavail * disk.f_frsize

    def drop_abandoned(self, seconds: float) -> int:
        """Remove what writers that died left behind, if untouched for so long. Returns how many."""
        limit, dropped = time.time() - seconds, 0
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    path.unlink()
                    dropped += 1
        return dropped

    @abstractmethod
    def check(self) -> None:
        """Raise Unavailable where the machine that has the objects does not answer."""

    @abstractmethod
    def read(
        self, key: str, start: int = 0, end: int | None = None, piece_bytes: int = READ_BYTES
    ) -> Generator[bytes, None, None]:
        """The bytes from `start` up to, not including, `end`. Raises CorruptObject when the object is gone.

        Args:
            piece_bytes: read at a time where that is the reader's to choose.
        """

    @abstractmethod
    def size(self, key: str) -> int:
        """Size in bytes. Raises CorruptObject when the object is gone."""

    @abstractmethod
    def version(self, key: str) -> str:
        """A token that changes whenever the stored object was written to."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether the object is there."""

    @abstractmethod
    def delete(self, key: str, *, unless_newer_than_s: float | None = None) -> bool:
        """Remove the object, unless it was put again within the last so many seconds. True: it is gone."""

    @abstractmethod
    def list_older_than(self, seconds: float) -> Iterator[str]:
        """Keys of objects whose last put is longer ago."""

    @abstractmethod
    def publish(self, temporary: Path, key: str) -> None:
        """Move a finished file under its key, durably. An object already there is replaced in one step."""

    @abstractmethod
    def adopt(self, path: Path, sha256: str) -> Stored:
        """Store a file of `partial_folder` under its content; it stays where it is.

        Args:
            path: a file on disk that nobody writes to any more.
            sha256: its digest, which is not checked.
        """

    @abstractmethod
    def adopt_object(self, key: str, sha256: str) -> Stored:
        """Store an object under its content too. Args: sha256: its digest, which was checked."""

    @abstractmethod
    def renew(self, key: str) -> bool:
        """Make the object as young as one that was just put. False: it is gone."""

    def download_url(self, key: str) -> str | None:
        """A URL at which this object can be had for some minutes without pared; None: there is none."""
        return None


def open_store(settings: Settings) -> ObjectStore:
    """The store of these settings; its folder is made if it is missing."""
    place = settings.objects_place
    if isinstance(place, Bucket):
        from pared.state.buckets import BucketStore  # of an extra, which others do without

        return BucketStore(place, settings.staging_dir)
    return DirectoryStore(place)


def content_key(sha256: str) -> str:
    """The key of an object stored under its content."""
    return f"sha256/{sha256[:2]}/{sha256}"


def check_key(key: str) -> str:
    """The key. Raises ValueError for anything that is not one this server could have made."""
    if len(key) > 255 or not _KEY.fullmatch(key):
        raise ValueError(f"not an object key: {key!r}")
    return key


class DirectoryStore(ObjectStore):
    """Objects as files of one local or shared directory."""

    _durable = True

    def __init__(self, root: Path) -> None:
        """Args: root: the directory; made if missing."""
        super().__init__(root / ".incoming", root / ".partial")
        self.root = root

    def check(self) -> None:
        """No other machine is asked."""

    def read(
        self, key: str, start: int = 0, end: int | None = None, piece_bytes: int = READ_BYTES
    ) -> Generator[bytes, None, None]:
        with self._open(key) as fd:
            size = os.fstat(fd).st_size
            stop = size if end is None else min(end, size)
            while start < stop and (chunk := os.pread(fd, min(piece_bytes, stop - start), start)):
                yield chunk
                start += len(chunk)

    def size(self, key: str) -> int:
        with self._open(key) as fd:
            return os.fstat(fd).st_size

    def version(self, key: str) -> str:
        with self._open(key) as fd:
            status = os.fstat(fd)
            return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def delete(self, key: str, *, unless_newer_than_s: float | None = None) -> bool:
        path = self.path(key)
        # Alone against every commit: an object that was just put again under this key must stay.
        with self._lock(fcntl.LOCK_EX):
            try:
                if unless_newer_than_s is not None and time.time() - path.stat().st_mtime < unless_newer_than_s:
                    return False
                path.unlink()
            except FileNotFoundError:
                return True
            with suppress(OSError):  # the first folder that is not empty ends it
                for folder in path.parents:
                    if folder == self.root:
                        break
                    folder.rmdir()
        return True

    def list_older_than(self, seconds: float) -> Iterator[str]:
        limit = time.time() - seconds
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = Path(folder, name)
                with suppress(FileNotFoundError):
                    if not name.startswith(".") and path.stat().st_mtime < limit:
                        yield path.relative_to(self.root).as_posix()

    def adopt(self, path: Path, sha256: str) -> Stored:
        key, size_bytes = content_key(sha256), path.stat().st_size
        temporary = self._incoming / f"adopted-{secrets.token_hex(8)}"
        with no_room_is_named():
            temporary.hardlink_to(path)
            self.publish(temporary, key)
        # A rename between two names of one file does nothing.
        temporary.unlink(missing_ok=True)
        return Stored(key, sha256, size_bytes)

    def adopt_object(self, key: str, sha256: str) -> Stored:
        return self.adopt(self.path(key), sha256)

    def renew(self, key: str) -> bool:
        with self._lock(fcntl.LOCK_SH):
            try:
                os.utime(self.path(key))
            except FileNotFoundError:
                return False
        return True

    def without_deletions(self) -> AbstractContextManager[None]:
        """While it is held, objects come but none goes: `delete` waits."""
        return self._lock(fcntl.LOCK_SH)

    def path(self, key: str) -> Path:
        """Where an object lies, or would lie. Raises ValueError for what is no key."""
        return self.root / check_key(key)

    def publish(self, temporary: Path, key: str) -> None:
        path = self.path(key)
        # Other committers may pass; only `delete` is kept out, so that it cannot take away the folder.
        with self._lock(fcntl.LOCK_SH):
            for folder in reversed(path.parents):
                if folder.is_relative_to(self.root) and not folder.exists():
                    folder.mkdir(exist_ok=True)
                    sync_folder(folder.parent)
            # Also when the same bytes are there: that renews their age and heals a damaged copy.
            os.utime(temporary)
            temporary.replace(path)
            sync_folder(path.parent)

    @contextmanager
    def _open(self, key: str) -> Iterator[int]:
        try:
            fd = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise CorruptObject(MISSING) from None
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        fd = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)


class FileWriter:
    """One object on its way into a store, by way of a temporary file."""

    def __init__(self, folder: Path, publish: Callable[[Path, str], None], *, durable: bool) -> None:
        """Args: folder: where the file goes; publish: makes an object of it; durable: put it on disk before that."""
        self._publish, self._durable = publish, durable
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self._on_its_way = 0  # bytes that the kernel has begun to put on disk
        with no_room_is_named():
            self._fd, name = tempfile.mkstemp(dir=folder)
        os.fchmod(self._fd, 0o644)
        self._path = Path(name)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        self._digest.update(view)
        self.size_bytes += len(view)
        with no_room_is_named():
            while view:
                view = view[os.write(self._fd, view) :]
        if self._durable and self.size_bytes - self._on_its_way >= WRITE_BACK_BYTES:
            self._write_back()

    def _write_back(self) -> None:
        """Have what is written so far put on disk, so that `commit` waits for little. Waits for nothing itself."""
        if sys.platform == "linux":  # which begins to write what is not on disk, and keeps it in memory meanwhile
            written = self.size_bytes - self._on_its_way
            os.posix_fadvise(self._fd, self._on_its_way, written, os.POSIX_FADV_DONTNEED)
        self._on_its_way = self.size_bytes

    def commit(self, key: str | None = None) -> Stored:
        sha256 = self._digest.hexdigest()
        key = key or content_key(sha256)
        with no_room_is_named():
            if self._durable:
                os.fsync(self._fd)
            failpoint("object.written")
            self._publish(self._path, key)
        failpoint("object.published")
        os.close(self._fd)
        self._fd = -1
        return Stored(key, sha256, self.size_bytes)

    def abort(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._path.unlink(missing_ok=True)


@contextmanager
def no_room_is_named() -> Iterator[None]:
    """Around what writes: a full disk becomes StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageFull(_FULL) from error
        raise


def sync_folder(folder: Path) -> None:
    """Put on disk which files a folder has."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
