"""Owns objects in the bucket of an S3-compatible server, so that machines share nothing but that and the database.

Who deletes an object and who puts it again at the same time may be on two machines, and the server takes both in any
order. So whoever deletes what others may put leaves a mark first and looks at the object's age afterwards; whoever has
put waits until no mark is there, and puts again if the object is gone.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import obstore
import structlog
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import S3Store

from pared.errors import CorruptObject, Unavailable
from pared.state.objects import MISSING, READ_BYTES, ObjectStore, Stored, check_key, content_key
from pared.state.places import Bucket

PART_BYTES = 16 << 20
PARTS_AT_ONCE = 4
"""An upload holds so many parts in memory."""
PIECE_BYTES = 4 << 20
"""A download asks for so many bytes at a time, and holds three such pieces: its client may be slow as it likes."""
MARK_S = 120.0
"""A mark this old is of a process that died: its own delete would have been over long before."""
URL_S = 300
_MOST_PARTS = 9_000  # S3 takes 10,000
_LOOK_AGAIN_S = 0.2
_SHARED = "sha256/"  # what begins so, several may put
_DELETING, _RENEWED = ".deleting", ".renewed"  # no key of an object begins with a dot

log = structlog.get_logger()


class BucketStore(ObjectStore):
    """Objects of one bucket; files arrive in a folder of this machine's."""

    _durable = False  # what is acknowledged is in the bucket

    def __init__(self, bucket: Bucket, staging: Path) -> None:
        """Args: staging: where files wait that go into the bucket; made if missing."""
        super().__init__(staging / "incoming", staging / "partial")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self._bucket = S3Store(
            bucket.name,
            prefix=bucket.prefix or None,
            client_options={
                "connect_timeout": timedelta(seconds=5),
                "timeout": timedelta(seconds=60),  # of one part or piece
                "allow_http": endpoint is not None and endpoint.startswith("http://"),
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=10)},
        )

    def put(self, chunks: Iterable[bytes], *, key: str | None = None) -> Stored:
        if key is None:
            return super().put(chunks)
        # Nobody else puts or deletes what has a key of its own, and it needs no file on the way.
        counted = _Counted(chunks)
        self._upload(counted, check_key(key))
        return Stored(key, counted.digest.hexdigest(), counted.size_bytes)

    def check_room(self, size_bytes: int) -> None:
        """A bucket does not tell how much room it has."""

    def check(self) -> None:
        with _answering(), suppress(FileNotFoundError):
            obstore.head(self._bucket, ".ready")

    def read(
        self, key: str, start: int = 0, end: int | None = None, piece_bytes: int = READ_BYTES
    ) -> Generator[bytes, None, None]:
        # In pieces of its own size: each is a request to another machine.
        about = self._head(key)
        stop = about["size"] if end is None else min(end, about["size"])

        def piece(at: int) -> bytes:
            wanted = (at, min(at + PIECE_BYTES, stop))
            try:
                with _answering():
                    got = obstore.get(self._bucket, key, options={"range": wanted, "if_match": about["e_tag"]}).bytes()
            except FileNotFoundError:
                raise CorruptObject(MISSING) from None
            except PreconditionError:
                raise Unavailable("The stored bytes were replaced while they were read. Try again.") from None
            if len(got) != wanted[1] - wanted[0]:
                raise CorruptObject("The object store sent fewer bytes than it has of this object. Try again.")
            return bytes(got)

        if start >= stop:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as ahead:
            coming = ahead.submit(piece, start)
            for at in range(start, stop, PIECE_BYTES):
                got = coming.result()
                if at + PIECE_BYTES < stop:
                    coming = ahead.submit(piece, at + PIECE_BYTES)
                yield got

    def size(self, key: str) -> int:
        return self._head(key)["size"]

    def version(self, key: str) -> str:
        about = self._head(key)
        return f"{about['e_tag']}-{about['last_modified'].timestamp()}-{about['size']}"

    def exists(self, key: str) -> bool:
        return self._modified(key) is not None

    def delete(self, key: str, *, unless_newer_than_s: float | None = None) -> bool:
        if unless_newer_than_s is None and not key.startswith(_SHARED):
            self._remove(check_key(key))  # of one attempt at a job, which alone puts it
            return True
        mark = f"{_DELETING}/{check_key(key)}/{secrets.token_hex(8)}"
        with _answering():
            obstore.put(self._bucket, mark, b"")
            try:
                # By the server's own clock.
                now, began = self._modified(mark) or time.time(), time.monotonic()
                put_at = self._modified(key)
                if put_at is None:
                    return True
                renewed_at = self._modified(f"{_RENEWED}/{key}") or put_at
                if unless_newer_than_s is not None and now - max(put_at, renewed_at) < unless_newer_than_s:
                    return False
                if time.monotonic() - began > MARK_S / 4:
                    raise Unavailable("The object store is too slow to delete anything safely.")
                obstore.delete(self._bucket, key)
            finally:
                obstore.delete(self._bucket, mark)
        return True

    def list_older_than(self, seconds: float) -> Iterator[str]:
        limit = time.time() - seconds
        renewed = {path for path, put_at in self._listed(_RENEWED) if put_at >= limit}
        for path, put_at in self._listed():
            if not path.startswith(".") and put_at < limit and f"{_RENEWED}/{path}" not in renewed:
                yield path

    def drop_abandoned(self, seconds: float) -> int:
        dropped, limit = super().drop_abandoned(seconds), time.time() - seconds
        for marks, before in ((_DELETING, min(limit, time.time() - MARK_S)), (_RENEWED, limit)):
            for path, put_at in self._listed(marks):
                if put_at < before:
                    self._remove(path)
                    dropped += 1
        return dropped

    def publish(self, temporary: Path, key: str) -> None:
        self._put_file(temporary, key)
        temporary.unlink()

    def adopt(self, path: Path, sha256: str) -> Stored:
        self._put_file(path, content_key(sha256))
        return Stored(content_key(sha256), sha256, path.stat().st_size)

    def adopt_object(self, key: str, sha256: str) -> Stored:
        stored = self.put(self.read(key))
        if stored.sha256 != sha256:
            raise CorruptObject("The stored bytes are damaged. Upload the file again.")
        return stored

    def renew(self, key: str) -> bool:
        with _answering():
            obstore.put(self._bucket, f"{_RENEWED}/{check_key(key)}", b"")
        return self._is_there_to_stay(key)

    def download_url(self, key: str) -> str | None:
        with _answering():
            return obstore.sign(self._bucket, "GET", key, timedelta(seconds=URL_S))

    def _put_file(self, path: Path, key: str) -> None:
        while True:
            self._upload(path, check_key(key))
            if self._is_there_to_stay(key):
                return

    def _upload(self, file: Path | Iterable[bytes], key: str) -> None:
        size = file.stat().st_size if isinstance(file, Path) else 0
        try:
            with _answering():
                obstore.put(
                    self._bucket,
                    key,
                    file,
                    chunk_size=max(PART_BYTES, size // _MOST_PARTS),
                    max_concurrency=PARTS_AT_ONCE,
                )
        except FileNotFoundError as error:
            raise Unavailable("The object store has no such bucket.") from error

    def _is_there_to_stay(self, key: str) -> bool:
        """Whether an object that was just put is there, once nobody deletes it who did not see that it is young."""
        until = time.monotonic() + MARK_S
        # Whoever leaves a mark from now on sees how young the object is.
        marks = self._marks(key)
        while marks and time.monotonic() < until:
            time.sleep(_LOOK_AGAIN_S)
            marks &= self._marks(key)
        for mark in marks:
            self._remove(mark)
        return self.exists(key)

    def _marks(self, key: str) -> set[str]:
        return {path for path, _ in self._listed(f"{_DELETING}/{key}")}

    def _head(self, key: str) -> obstore.ObjectMeta:
        try:
            with _answering():
                return obstore.head(self._bucket, check_key(key))
        except FileNotFoundError:
            raise CorruptObject(MISSING) from None

    def _modified(self, path: str) -> float | None:
        """When the server last took this; None: it is not there."""
        try:
            with _answering():
                return obstore.head(self._bucket, path)["last_modified"].timestamp()
        except FileNotFoundError:
            return None

    def _listed(self, below: str = "") -> Iterator[tuple[str, float]]:
        """Paths, and when the server last took each."""
        with _answering():
            for batch in obstore.list(self._bucket, below or None):
                for about in batch:
                    yield about["path"], about["last_modified"].timestamp()

    def _remove(self, path: str) -> None:
        with _answering():
            obstore.delete(self._bucket, path)


class _Counted:
    """Counts and hashes what passes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self.digest, self.size_bytes = hashlib.sha256(), 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.digest.update(chunk)
            self.size_bytes += len(chunk)
            yield chunk


@contextmanager
def _answering() -> Iterator[None]:
    """Around what asks the server: that it does not answer, or refuses, becomes Unavailable."""
    try:
        yield
    except PreconditionError:
        raise
    except BaseError as error:
        # The first line names the request and the answer; neither has a secret.
        log.warning("object_store_failed", reason=str(error).partition("\n")[0])
        raise Unavailable(
            "The object store does not answer, or refuses. Try again soon; the server's log says why."
        ) from error
