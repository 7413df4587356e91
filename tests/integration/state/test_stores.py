"""What every object store must do, of files and of an S3-compatible server's bucket alike."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from pared.errors import CorruptObject
from pared.state.objects import ObjectStore, Stored, content_key, open_store
from pared.state.settings import Settings

ABC = hashlib.sha256(b"abc").hexdigest()
OLD_S = 1.5
"""A bucket tells the time in seconds."""


@pytest.fixture(params=["files", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    url = "" if request.param == "files" else request.getfixturevalue("s3").new_url()
    return open_store(Settings(data_dir=tmp_path, objects_url=url))


def test_the_same_bytes_are_stored_once_under_their_digest(store: ObjectStore):
    assert store.put([b"ab", b"c"]) == store.put([b"abc"]) == Stored(content_key(ABC), ABC, 3)
    assert list(store.list_older_than(-5)) == [content_key(ABC)]


def test_any_range_of_bytes_can_be_read(store: ObjectStore):
    data = os.urandom(5_000_000)
    key = store.put([data[:3_000_000], data[3_000_000:]], key="job_1/2/model.pt").key
    edge = 4 << 20
    for start, end in [
        (0, None),
        (0, 1),
        (edge - 1, edge + 1),
        (edge, None),
        (4_999_999, None),
        (5, 5),
        (0, 9_999_999),
    ]:
        assert b"".join(store.read(key, start, end)) == data[start:end]
    assert store.size(key) == len(data)


def test_fetch_copies_and_tells_the_digest_of_the_copy(store: ObjectStore, tmp_path: Path):
    key = store.put([b"abc"]).key
    assert store.fetch(key, tmp_path / "copy") == ABC
    (tmp_path / "copy").write_bytes(b"changed by a child")
    assert b"".join(store.read(key)) == b"abc"


def test_a_file_is_adopted_and_stays(store: ObjectStore):
    path = store.partial_folder / "upl_1"
    path.write_bytes(b"abc")
    assert store.adopt(path, ABC) == Stored(content_key(ABC), ABC, 3)
    assert path.is_file()
    made = store.put([b"abd"], key="jobs/1/1/model.pt")
    assert store.adopt_object(made.key, made.sha256) == Stored(content_key(made.sha256), made.sha256, 3)
    assert b"".join(store.read(content_key(made.sha256))) == b"abd"


def test_an_aborted_or_failing_producer_leaves_nothing(store: ObjectStore):
    writer = store.writer()
    writer.write(b"abc")
    writer.abort()

    def broken():
        yield b"abc" * 9_000_000
        raise ConnectionError

    for key in (None, "jobs/1/1/model.pt"):
        with pytest.raises(ConnectionError):
            store.put(broken(), key=key)
    assert list(store.list_older_than(-5)) == []


def test_a_missing_object_is_named(store: ObjectStore, tmp_path: Path):
    gone = "sha256/ab/abc"
    uses = (
        lambda: list(store.read(gone)),
        lambda: store.size(gone),
        lambda: store.version(gone),
        lambda: store.fetch(gone, tmp_path / "copy"),
    )
    for use in uses:
        with pytest.raises(CorruptObject):
            use()
    assert not store.exists(gone)
    assert not store.renew(gone)
    assert store.delete(gone)


@pytest.mark.parametrize("key", ["../x", "a/../../x", "a//b", "/etc/passwd", ".deleting/x", "a\n", "a" * 256])
def test_only_keys_that_the_server_makes_are_taken(store: ObjectStore, key: str):
    for use in (store.size, store.delete, lambda key: store.put([b"abc"], key=key)):
        with pytest.raises(ValueError, match="not an object key"):
            use(key)


def test_what_was_put_again_or_renewed_is_not_collected(store: ObjectStore):
    put, renewed, old = (store.put([content]).key for content in (b"put", b"renewed", b"old"))
    unique = store.put([b"old"], key="jobs/1/1/model.pt").key
    time.sleep(OLD_S + 1)
    store.put([b"put"])
    assert store.renew(renewed)
    assert set(store.list_older_than(OLD_S)) == {old, unique}
    gone = [key for key in (put, renewed, old, unique) if store.delete(key, unless_newer_than_s=OLD_S)]
    assert gone == [old, unique]
    assert set(store.list_older_than(-5)) == {put, renewed}
    store.drop_abandoned(-5)
    assert store.delete(put)
    assert store.delete(renewed)
    assert list(store.list_older_than(-5)) == []


def test_an_object_that_is_put_while_it_is_collected_is_there_afterwards(store: ObjectStore):
    """Threads that put and threads that delete the same, each as fast as it can."""
    stop = threading.Event()

    def collect():
        while not stop.is_set():
            store.delete(content_key(ABC), unless_newer_than_s=OLD_S)

    collectors = [threading.Thread(target=collect) for _ in range(2)]
    for collector in collectors:
        collector.start()
    try:
        for _ in range(5):
            key = store.put([b"abc"]).key
            assert store.exists(key)
    finally:
        stop.set()
        for collector in collectors:
            collector.join()


def test_another_version_has_another_token(store: ObjectStore):
    key = store.put([b"abc"], key="jobs/1/1/model.pt").key
    before = store.version(key)
    assert store.version(key) == before
    store.put([b"abd"], key=key)
    assert store.version(key) != before
