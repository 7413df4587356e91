from __future__ import annotations

import os
import resource
import tracemalloc

import pytest

from worker import child_files, scratch
from worker.child_files import remove, weigh
from worker.scratch import WRITABLE, clear, written
from worker.scratch import scratch as scratch_folder


def deepen(folder, levels, name="d"):
    """Nest folders, as no path could."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def widen(folder, files):
    fd = os.open(folder, os.O_RDONLY)
    for number in range(files):
        os.close(os.open(f"{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def comb(folder, teeth):
    """Many folders beside each other, each with one more inside."""
    for number in range(teeth):
        (folder / f"{number}" / "x").mkdir(parents=True)


def closed(folder):
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").touch()
    (folder / "a" / "b").chmod(0)
    (folder / "a").chmod(0)


TREES = {
    "deep": lambda folder: deepen(folder, 1500),
    "deep and long": lambda folder: deepen(folder, 300, "x" * 250),
    "wide": lambda folder: widen(folder, 3000),
    "comb": lambda folder: comb(folder, 500),
    "closed": closed,
    "links": lambda folder: (folder / "link").symlink_to("/"),
}


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    """Pytest's own removal of folders recurses."""
    yield
    top = os.open(tmp_path.parent, os.O_RDONLY)
    assert remove(top, tmp_path.name, limit_s=120)
    os.close(top)


@pytest.fixture(autouse=True)
def enough_time(monkeypatch):
    """Removal is given up after a while, which on a busy machine comes soon."""
    monkeypatch.setattr(scratch, "_REMOVE_S", 120)
    monkeypatch.setattr(scratch, "_CLEAR_S", 120)


@pytest.fixture(params=sorted(TREES))
def tree(request):
    return TREES[request.param]


@pytest.fixture
def few_descriptors():
    """A walk that held one for each level or folder would run out of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(in_use, *map(int, os.listdir("/proc/self/fd"))) + 90, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_descriptors")
def test_every_walk_of_a_childs_files_comes_to_an_end_whatever_their_number_and_nesting(tmp_path, tree):
    with scratch_folder(tmp_path, None) as folder:
        tree(folder / "tmp")
        tracemalloc.start()
        found = written(folder)
        assert found.entries <= child_files.MAX_ENTRIES + len(WRITABLE)
    assert list(tmp_path.iterdir()) == []
    assert tracemalloc.get_traced_memory()[1] < 4 << 20, "no list of all that is there"
    tracemalloc.stop()


@pytest.mark.usefixtures("few_descriptors")
def test_what_a_dead_worker_left_is_cleared_whatever_it_is(tmp_path, tree):
    abandoned = tmp_path / "job-dead"
    (abandoned / "tmp").mkdir(parents=True)
    tree(abandoned / "tmp")
    clear(tmp_path, limit_s=60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("shape", "limits"), [("deep", {"max_depth": 32}), ("wide", {"max_entries": 1000})])
def test_weighing_stops_where_there_is_more_than_any_job_needs(tmp_path, shape, limits):
    TREES[shape](tmp_path)
    top = os.open(tmp_path.parent, os.O_RDONLY)
    found = weigh(top, tmp_path.name, **limits)
    os.close(top)
    assert found.too_many
    assert found.entries <= 1001


def test_a_sparse_file_weighs_its_length_and_a_small_one_its_blocks(tmp_path):
    with scratch_folder(tmp_path, None) as folder:
        with (folder / "out" / "sparse").open("wb") as file:
            file.truncate(1 << 40)
        assert written(folder).size_bytes >= 1 << 40
        os.truncate(folder / "out" / "sparse", 0)
        (folder / "checkpoints" / "1").write_bytes(b"x")
        blocks = (folder / "checkpoints" / "1").stat().st_blocks * 512
        assert written(folder).size_bytes >= blocks > 1


def test_removal_stops_in_time_and_goes_on_another_time(tmp_path):
    (tmp_path / "job-dead").mkdir()
    widen(tmp_path / "job-dead", 3000)
    top = os.open(tmp_path, os.O_RDONLY)
    assert not remove(top, "job-dead", limit_s=0)
    assert remove(top, "job-dead", limit_s=60)
    os.close(top)


def test_links_are_removed_and_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    outside.chmod(0o755)
    with scratch_folder(tmp_path / "root", None) as folder:
        (folder / "out" / "link").symlink_to(outside)
    assert (outside / "kept").exists()
    assert outside.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_cannot_be_removed_stops_no_other_job(tmp_path, monkeypatch, capsys):
    (tmp_path / "job-dead" / "tmp").mkdir(parents=True)
    real, tried = os.unlink, []
    (tmp_path / "job-dead" / "tmp" / "stuck").touch()

    def stuck(name, **where):
        if name == "stuck":
            tried.append(name)
            raise PermissionError(1, "Operation not permitted")
        real(name, **where)

    monkeypatch.setattr(os, "unlink", stuck)
    for _ in range(3):
        with scratch_folder(tmp_path, None) as folder:
            (folder / "out" / "file").touch()
        assert [path.name for path in tmp_path.iterdir()] == ["job-dead"]
    assert capsys.readouterr().out.count("scratch_not_removed") == 1
    assert len(tried) < 10, "it is let be for a while"
    monkeypatch.undo()
    scratch._let_be.clear()
    clear(tmp_path, limit_s=10)
    assert list(tmp_path.iterdir()) == []
