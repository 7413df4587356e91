from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from pared.errors import StorageFull
from pared.state.data_folder import close_to_others
from pared.state.objects import DirectoryStore
from pared.state.settings import Settings
from worker import children_user, condition
from worker.attempt_types import Failed, Hindered
from worker.condition import Condition
from worker.sandbox import NOBODY, Confinement


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_worker_without_room_says_so_until_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(condition, "_TRY_EVERY_S", 0)
    in_the_way = tmp_path / "scratch"
    in_the_way.touch()
    looked_at = Condition(lambda: in_the_way, lambda: DirectoryStore(tmp_path / "objects"))
    assert str(in_the_way) in looked_at.problem()
    assert "Make room" in looked_at.problem()
    in_the_way.unlink()
    assert looked_at.problem() is None
    assert list(in_the_way.iterdir()) == []


def test_a_worker_on_which_attempt_after_attempt_fails_says_so_until_one_does_not(tmp_path):
    looked_at = Condition(lambda: tmp_path / "scratch", lambda: DirectoryStore(tmp_path / "objects"))
    for _ in range(3):
        assert looked_at.problem() is None
        looked_at.note(Hindered(StorageFull("The disk is full.")))
        looked_at.note(None)
    assert "The disk is full." in looked_at.problem()
    looked_at.note(Failed(StorageFull("x")))
    assert looked_at.problem() is None


def test_a_root_worker_whose_children_stay_root_says_what_is_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    closed = tmp_path / "closed"
    (closed / "scratch").mkdir(parents=True)
    assert children_user.problem(Confinement("standard", NOBODY), closed / "scratch") is None
    monkeypatch.setattr(children_user, "first_closed", lambda paths: closed)
    text = children_user.problem(Confinement("standard"), closed / "scratch")
    assert f"chmod o+rx {closed}" in text
    assert "a user of its own" in text
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert children_user.problem(Confinement("standard"), closed / "scratch") is None


def test_the_first_folder_that_is_closed_to_others_is_found():
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "file").touch(mode=0o644)
        assert children_user.first_closed([folder / "a" / "b" / "file"]) is None
        (folder / "a").chmod(0o700)
        assert children_user.first_closed([folder / "a" / "b" / "file"]) == folder / "a"


def test_the_data_directory_is_closed_to_other_users(tmp_path):
    data = tmp_path / "new" / "data"
    close_to_others(Settings(data_dir=data))
    assert mode(data) & 0o076 == 0
    if os.geteuid() == 0:  # whose children pass through
        assert mode(data) & 0o007 == 0o001
        assert {path.name: mode(path) & 0o007 for path in data.iterdir()} == {
            "scratch": 0o001, "logs": 0, "plans": 0, "teacher-answers": 0, "objects": 0, "broker": 0, "pared.db": 0,
        }  # fmt: skip


def test_an_existing_data_directory_keeps_its_group(tmp_path):
    tmp_path.chmod(0o755)
    close_to_others(Settings(data_dir=tmp_path))
    assert mode(tmp_path) & 0o770 == 0o750
    assert mode(tmp_path) & 0o006 == 0


def test_a_data_directory_with_objects_that_other_users_may_share_is_left_alone(tmp_path):
    tmp_path.chmod(0o755)
    close_to_others(Settings(data_dir=tmp_path, objects_url=(tmp_path / "objects").as_uri()))
    assert mode(tmp_path) == 0o755
