"""An object is whole and durable, or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pared.errors import CorruptObject, StorageFull
from pared.state.objects import DirectoryStore, open_store
from pared.state.places import Bucket
from pared.state.settings import Settings
from tests.support.processes import wait_for


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
        for _ in range(100):
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


def test_the_url_of_the_objects_names_a_folder_or_a_bucket(tmp_path: Path):
    open_store(Settings(objects_url=f"file://{tmp_path}/a%20b")).put([b"abc"])
    assert (tmp_path / "a b").is_dir()
    assert Settings(objects_url="s3://models/of/ours/").objects_place == Bucket("models", "of/ours")
    for url in (
        "/plain/path",
        "file://host/path",
        "s3://",
        "s3://UPPER",
        "s3://b/../c",
        "s3://key:secret@bucket",
        "http://b",
    ):
        with pytest.raises(ValueError, match="objects_url"):
            Settings(objects_url=url)
    with pytest.raises(ValueError, match="PARED_PRESIGNED_DOWNLOADS"):
        Settings(presigned_downloads=True)


def test_a_bucket_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ValueError, match=r"pip install 'pared\[s3\]'"):
        Settings(objects_url="s3://models")
