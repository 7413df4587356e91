"""What a worker's machine keeps of plans: whose they are, what they hang on, and what goes first."""

from __future__ import annotations

import os

import pytest

from worker import kept_plans
from worker.kept_plans import KeptPlans, key_of

UPLOAD = ("model", "m.pt", "0" * 64, {"architecture": None})
SPEC = {"type": "plan", "job": {"type": "prune", "amount": 0.5}}


def test_a_plan_is_found_again_by_the_same_owner_alone(tmp_path):
    kept = KeptPlans(tmp_path / "plans")
    assert kept.find("ann", "a") is None
    kept.keep("ann", "a", {"verdict": "smaller"})
    assert kept.find("ann", "a") == {"verdict": "smaller"}
    assert kept.find("bob", "a") is None
    assert kept.find("ann", "b") is None


def test_one_that_is_damaged_is_made_again(tmp_path):
    kept = KeptPlans(tmp_path / "plans")
    kept.keep("ann", "a", {"verdict": "smaller"})
    (file,) = (tmp_path / "plans").glob("*/*")
    file.write_bytes(file.read_bytes()[:5])
    assert kept.find("ann", "a") is None
    kept.keep("ann", "a", {"verdict": "smaller"})
    assert kept.find("ann", "a") == {"verdict": "smaller"}


def test_those_that_were_asked_for_longest_ago_go(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_plans, "MOST", 2)
    kept = KeptPlans(tmp_path / "plans")
    for age, key in enumerate(("a", "b")):
        kept.keep("ann", key, {"verdict": key})
        (file,) = (tmp_path / "plans").glob(f"*/{key}")
        os.utime(file, (age, age))
    assert kept.find("ann", "a") is not None
    kept.keep("bob", "c", {"verdict": "c"})
    assert [kept.find(owner, key) is not None for owner, key in (("ann", "a"), ("ann", "b"), ("bob", "c"))] == [
        True, False, True,
    ]  # fmt: skip


def test_a_large_one_is_made_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_plans, "MOST_BYTES", 10)
    kept = KeptPlans(tmp_path / "plans")
    kept.keep("ann", "a", {"verdict": "smaller"})
    assert kept.find("ann", "a") is None


@pytest.mark.parametrize(
    "others",
    [
        ([("model", "m.pt", "1" * 64, {"architecture": None})], SPEC, ["standard"]),
        ([("model", "m.pt", "0" * 64, {"architecture": "cnn"})], SPEC, ["standard"]),
        ([("model", "other.pt", "0" * 64, {"architecture": None})], SPEC, ["standard"]),
        ([UPLOAD], SPEC | {"job": {"type": "prune", "amount": 0.4}}, ["standard"]),
        ([UPLOAD], SPEC, ["none"]),
    ],
)
def test_a_plan_of_anything_else_is_another(others):
    assert key_of(*others) != key_of([UPLOAD], SPEC, ["standard"]) == key_of([UPLOAD], dict(SPEC), ["standard"])


def test_a_goal_of_latency_is_measured_each_time():
    assert key_of([UPLOAD], {"type": "plan", "job": {"target": {"latency": 0.5}}}, []) is None
    assert key_of([UPLOAD], {"type": "plan", "job": {"target": {"macs": 0.5}}}, []) is not None
