"""An object is whole and durable, or not there."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pared.errors import CorruptObject, StorageFull
from pared.state.objects import DirectoryStore, Stored, content_key, open_store
from tests.support.processes import wait_for

ABC = hashlib.sha256(b"abc").hexdigest()


def test_the_same_bytes_are_stored_once_under_their_digest(store: DirectoryStore):
    assert store.put([b"ab", b"c"]) == store.put([b"abc"]) == Stored(content_key(ABC), ABC, 3)
    assert [path.name for path in store.root.rglob("*") if path.is_file() and path.name != ".lock"] == [ABC]


def test_any_range_of_bytes_can_be_read(store: DirectoryStore):
    data = os.urandom(3_000_000)
    key = store.put([data], key="job_1/2/model.pt").key
    for start, end in [(0, None), (0, 1), (1_048_575, 1_048_577), (2_999_999, None), (5, 5), (0, 9_999_999)]:
        assert b"".join(store.read(key, start, end)) == data[start:end]
    assert store.size(key) == len(data)


def test_fetch_copies_and_tells_the_digest_of_the_copy(store: DirectoryStore, tmp_path: Path):
    key = store.put([b"abc"]).key
    assert store.fetch(key, tmp_path / "copy") == ABC
    (tmp_path / "copy").write_bytes(b"changed by a child")
    assert b"".join(store.read(key)) == b"abc"


def test_an_aborted_or_failing_writer_leaves_nothing(store: DirectoryStore):
    writer = store.writer()
    writer.write(b"abc")
    writer.abort()

    def broken():
        yield b"abc"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        store.put(broken())
    assert list(store.list_older_than(-1)) == []
    assert list((store.root / ".incoming").iterdir()) == []


def test_a_missing_object_is_named(store: DirectoryStore):
    for use in (lambda: list(store.read("sha256/ab/abc")), lambda: store.size("sha256/ab/abc")):
        with pytest.raises(CorruptObject):
            use()
    assert not store.exists("sha256/ab/abc")
    assert store.delete("sha256/ab/abc")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/./b",
        "a//b",
        "a/",
        ".incoming/x",
        "a/.b",
        "a\\..\\b",
        "a\0b",
        "a\n",
        "é",
        "a" * 256,
        "~",
        "a b",
        "%2e%2e/x",
        "a/..",
        "-",
        "a;b",
        "$HOME",
    ],
)
def test_only_keys_that_the_server_makes_are_taken(store: DirectoryStore, key: str):
    with pytest.raises(ValueError, match="not an object key"):
        store.path(key)


def test_putting_again_saves_an_object_from_collection(store: DirectoryStore):
    key = store.put([b"abc"]).key
    os.utime(store.path(key), (1, 1))
    assert list(store.list_older_than(60)) == [key]
    store.put([b"abc"])
    assert not store.delete(key, unless_newer_than_s=60)
    assert store.exists(key)
    os.utime(store.path(key), (1, 1))
    assert store.delete(key, unless_newer_than_s=60)


def test_folders_go_with_the_last_object_in_them(store: DirectoryStore):
    first, second = (store.put([b"abc"], key=f"checkpoints/job_1/{fence}/7").key for fence in (1, 2))
    store.delete(first)
    assert store.exists(second)
    store.delete(second)
    assert {path.name for path in store.root.iterdir()} == {".incoming", ".lock", ".partial"}
    assert store.exists(store.put([b"abc"], key=first).key)


def test_collection_never_takes_what_was_just_put(store: DirectoryStore):
    """A thread that puts and one that collects, each as fast as it can; after a put the object is there."""
    stop = threading.Event()

    def collect():
        while not stop.is_set():
            for key in store.list_older_than(0.05):
                store.delete(key, unless_newer_than_s=0.05)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for _ in range(200):
            began = time.monotonic()
            key = store.put([b"abc"]).key
            there = store.exists(key)
            # Later it may be collected, and on a busy machine it can be later before one looks.
            assert there or time.monotonic() - began > 0.05
    finally:
        stop.set()
        collector.join()


def test_a_damaged_copy_is_healed_by_the_next_upload(store: DirectoryStore):
    key = store.put([b"abc"]).key
    before = store.version(key)
    store.path(key).write_bytes(b"abd")
    assert store.version(key) != before
    store.put([b"abc"])
    assert b"".join(store.read(key)) == b"abc"


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path):
    code = f"""
import resource, signal
from pathlib import Path
from pared.errors import StorageFull
from pared.state.objects import DirectoryStore
store = DirectoryStore(Path({str(tmp_path)!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # writing past it fails as on a full disk
try:
    store.put([b"x" * 65536] * 4)
except StorageFull as error:
    print("full:", error.detail)
print(list(store.list_older_than(-1)), list((Path({str(tmp_path)!r}) / ".incoming").iterdir()))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert answer.stdout.startswith("full: ")
    assert answer.stdout.endswith("[] []\n")
    assert StorageFull.status == 507


def test_a_writer_killed_in_the_middle_leaves_nothing_visible(store: DirectoryStore):
    code = f"""
import sys, time
from pathlib import Path
from pared.state.objects import DirectoryStore
writer = DirectoryStore(Path({str(store.root)!r})).writer()
writer.write(b"x" * 100_000)
print("half", flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.wait(120)
    assert list(store.list_older_than(-1)) == []
    incoming = store.root / ".incoming"
    wait_for(lambda: list(incoming.iterdir()), "the temporary file is there")
    assert store.drop_abandoned(3600) == 0
    assert store.drop_abandoned(-1) == 1
    assert list(incoming.iterdir()) == []


def test_only_file_urls_open_a_store(tmp_path: Path):
    store = open_store(f"file://{tmp_path}/a%20b")
    store.put([b"abc"])
    assert (tmp_path / "a b").is_dir()
    for url in ("s3://bucket", "/plain/path", "file://host/path"):
        with pytest.raises(ValueError, match="PARED_OBJECTS_URL"):
            open_store(url)
