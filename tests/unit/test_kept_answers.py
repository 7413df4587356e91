"""What a worker's machine keeps of teachers' answers: whose it is, what is taken, and what goes first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.kept_answers import KeptAnswers, key_of
from worker.protocol import ANSWERS_GIVEN, ANSWERS_MADE

SHA = "0" * 64


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    (folder / "in").mkdir(parents=True)
    (folder / "tmp").mkdir()
    return folder


def store(kept: KeptAnswers, owner: str, key: str, scratch: Path, content: bytes) -> None:
    (scratch / ANSWERS_MADE).unlink(missing_ok=True)
    (scratch / ANSWERS_MADE).write_bytes(content)
    kept.take(owner, key, scratch)


def handed_in(kept: KeptAnswers, owner: str, key: str, scratch: Path) -> bytes | None:
    (scratch / ANSWERS_GIVEN).unlink(missing_ok=True)
    return (scratch / ANSWERS_GIVEN).read_bytes() if kept.hand_in(owner, key, scratch) else None


def test_answers_are_handed_to_later_jobs_of_the_same_owner_alone(tmp_path, scratch):
    kept = KeptAnswers(tmp_path / "kept", 100)
    assert handed_in(kept, "ann", "a", scratch) is None
    store(kept, "ann", "a", scratch, b"answers")
    assert handed_in(kept, "ann", "a", scratch) == b"answers"
    assert (scratch / ANSWERS_GIVEN).stat().st_mode & 0o777 == 0o444
    assert handed_in(kept, "bob", "a", scratch) is None
    assert handed_in(kept, "ann", "b", scratch) is None


def test_what_was_used_longest_ago_goes_where_there_is_no_room(tmp_path, scratch):
    kept = KeptAnswers(tmp_path / "kept", 100)
    for number, key in enumerate(("a", "b", "c")):
        store(kept, "ann", key, scratch, key.encode() * 30)
        (path,) = (tmp_path / "kept").glob(f"*/{key}")
        os.utime(path, (number, number))
    assert handed_in(kept, "ann", "a", scratch) is not None  # and so used last
    store(kept, "bob", "d", scratch, b"d" * 40)
    assert handed_in(kept, "ann", "b", scratch) is None
    assert all(handed_in(kept, "ann", key, scratch) for key in ("a", "c"))
    store(kept, "ann", "a", scratch, b"e" * 101)  # more than all may be: what is there stays
    assert handed_in(kept, "ann", "a", scratch) == b"a" * 30


def test_nothing_is_kept_where_the_setting_is_zero(tmp_path, scratch):
    store(KeptAnswers(tmp_path / "kept", 100), "ann", "a", scratch, b"answers")
    none = KeptAnswers(tmp_path / "kept", 0)
    assert handed_in(none, "ann", "a", scratch) is None
    store(none, "ann", "b", scratch, b"answers")
    assert handed_in(KeptAnswers(tmp_path / "kept", 100), "ann", "b", scratch) is None


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "fifo", "nothing"])
def test_only_a_plain_file_of_the_childs_own_is_taken(tmp_path, scratch, kind):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    made = scratch / ANSWERS_MADE
    if kind == "link":
        made.symlink_to(secret)
    elif kind == "hard link":
        made.hardlink_to(secret)
    elif kind == "folder":
        made.mkdir()
    elif kind == "fifo":
        os.mkfifo(made)
    kept = KeptAnswers(tmp_path / "kept", 100)
    kept.take("ann", "a", scratch)
    assert not kept.hand_in("ann", "a", scratch)


def test_the_key_is_of_teachers_data_and_preprocessing_and_not_of_the_seed():
    def key(teacher: str = SHA, data: str = SHA, prefix: str | None = None, **spec: object) -> str:
        return key_of([("teacher", teacher, {"prefix": prefix})], data, {"seed": 0, "preprocess": None, **spec})

    assert key() == key(seed=1)
    others = [key(teacher="1" * 64), key(data="1" * 64), key(prefix="ema."), key(preprocess={"scale": 2})]
    assert len({key(), *others}) == 5
