"""Owners take turns, whatever each has waiting, and a claim costs no more for a long queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import delete, event, select, text, update

from pared.errors import OverLimit
from pared.specs import InspectSpec
from pared.state import lifecycle
from pared.state.keys import add_key
from pared.state.limits import JOBS_RUNNING, bytes_left, check_bytes, most_running
from pared.state.owners import create_owner
from pared.state.settings import Settings
from pared.state.tables import Artifact, Job, WorkerHeartbeat, new_id
from pared.state.turns import Line, _first_of_each, next_in_turn
from tests.support.job_specs import PRUNE


@pytest.fixture
def owners(sessions) -> list[str]:
    return [create_owner(sessions, name).id for name in ("ann", "bob", "carol")]


def queued(sessions, owner: str, count: int = 1, **columns) -> list[str]:
    with sessions.begin() as session:
        jobs = [lifecycle.create(session, owner, PRUNE).id for _ in range(count)]
        if columns:
            session.execute(update(Job).where(Job.id.in_(jobs)).values(columns))
    return jobs


def claimed(sessions, worker: str, devices=("cpu",)) -> str | None:
    """Whose job a worker takes by the default settings; None: it finds none that it may."""
    with sessions.begin() as session:
        most_held, held_by = most_running(session, Settings(), devices)
        job_id = next_in_turn(session, "jobs", devices, most_held=most_held, held_by=held_by)
        if job_id is None:
            return None
        return lifecycle.claim(session, job_id, worker, 45.0, devices, most_held=most_held, held_by=held_by).owner


def upload(sessions, owner: str) -> str:
    with sessions.begin() as session:
        return lifecycle.create(session, owner, InspectSpec(type="inspect", subject=new_id("mdl"))).id


def serve(sessions, lane: str = "jobs", *, ends: bool = True, **options) -> tuple[str, str] | None:
    """Claim the job whose turn it is; the owner, and the job."""
    with sessions.begin() as session:
        job_id = next_in_turn(session, lane, ["cpu"], **options)
        if job_id is None:
            return None
        job = lifecycle.claim(session, job_id, "worker", 45.0, ["cpu"])
        if ends:
            lifecycle.fail(session, job_id, job.fence, {"code": "x", "title": "x", "detail": "x"})
        return job.owner, job_id


def test_one_owners_hundred_jobs_are_served_in_turn_with_anothers_three(sessions, owners):
    ann, bob, carol = owners
    first = queued(sessions, ann, 20)
    served = [serve(sessions)]
    others = queued(sessions, bob, 2) + queued(sessions, carol, 1)
    served += [serve(sessions) for _ in range(6)]
    assert [owner for owner, _ in served] == [ann, bob, carol, ann, bob, ann, ann]
    assert [job for owner, job in served if owner == ann] == first[:4]
    assert [job for owner, job in served if owner != ann] == [others[0], others[2], others[1]]


def test_the_place_in_line_counts_of_each_other_owner_as_many_as_of_ones_own(sessions, owners):
    ann, bob, carol = owners
    flood, others, _ = queued(sessions, ann, 20), queued(sessions, bob, 2), queued(sessions, carol, 1)
    with sessions() as session:
        jobs = [session.get(Job, job) for job in (*others, flood[0], flood[9])]
        places = [Line(session, [job]).place_of(job) for job in jobs]
        own = [session.get(Job, job) for job in flood]
        assert [Line(session, own[5:]).place_of(job) for job in own[5:]] == [*range(9, 24)]
    assert places == [3, 5, 3, 13]


def test_who_has_fewer_jobs_under_way_is_served_first(sessions, owners):
    ann, bob, _ = owners
    queued(sessions, ann, 5)
    queued(sessions, bob, 5)
    assert sorted(serve(sessions, ends=False)[0] for _ in range(4)) == sorted([ann, ann, bob, bob])


def test_a_lane_does_not_count_the_other(sessions, owners):
    """Hours of training are held against nobody's inspection."""
    ann, bob, _ = owners
    queued(sessions, ann, 1)
    assert serve(sessions, ends=False)[0] == ann
    for _ in range(3):
        upload(sessions, bob)
    upload(sessions, ann)
    assert [serve(sessions, "quick")[0] for _ in range(3)] == [bob, ann, bob]
    assert serve(sessions) is None


def test_what_cannot_be_claimed_now_is_passed_over(sessions, owners):
    ann, bob, carol = owners
    queued(sessions, ann, 3, run_after=time.time() + 3600)
    (due,) = queued(sessions, ann, 1)
    queued(sessions, bob, 1, device="cuda")
    queued(sessions, carol, 1, type="of-a-newer")
    assert serve(sessions) == (ann, due)
    assert serve(sessions) is None
    with sessions() as session:
        assert next_in_turn(session, "jobs", ["cpu", "cuda"], asked_for="auto") is None
        assert next_in_turn(session, "jobs", ["cpu", "cuda"], asked_for="cuda") is not None
        assert next_in_turn(session, "jobs", [], asked_for="cuda") is None


def test_no_owner_has_more_jobs_under_way_than_may_be_however_many_workers_ask_at_once(sessions, owners):
    ann, bob, _ = owners
    jobs = queued(sessions, ann, 12)

    def claim(job_id: str) -> bool:
        with sessions.begin() as session:
            return lifecycle.claim(session, job_id, "worker", 45.0, ["cpu"], most_held=2) is not None

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(claim, jobs)) == 2
    assert serve(sessions, most_held=2) is None
    (other,) = queued(sessions, bob)
    assert serve(sessions, most_held=2) == (bob, other)


def test_results_count_towards_what_an_owner_stores_as_long_as_their_job_is_there(sessions, owners, settings):
    ann, bob, _ = owners
    limited = settings.model_copy(update={"max_stored_bytes": 100})
    (job,) = queued(sessions, ann)
    with sessions.begin() as session:
        fence = lifecycle.claim(session, job, "worker", 45.0, ["cpu"]).fence
        files = [
            Artifact(id=new_id("art"), job_id=job, name=f"{n}", media_type="", object_key="", sha256="", size_bytes=30)
            for n in range(3)
        ]
        assert lifecycle.succeed(session, job, fence, {}, files)
    with sessions.begin() as session:
        assert [bytes_left(session, owner, limited) for owner in (ann, bob)] == [10, 100]
        check_bytes(session, ann, 10, limited)
        with pytest.raises(OverLimit):
            check_bytes(session, ann, 11, limited)
        session.execute(delete(Job).where(Job.id == job))
        assert bytes_left(session, ann, limited) == 100


FLOOD = """
insert into jobs (id, owner, type, status, spec, created_at, updated_at, attempt, crash_count, fence, held_s, run_after)
with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < 100000)
select 'job_0000000000' || (1000000000000000 + n), :owner, 'prune', 'queued', '{}', 1, 1, 0, 0, 0, 0, 0 from numbers
"""


@contextmanager
def counted_steps(sessions) -> Iterator[Callable[[], int]]:
    """How often SQLite's machine made another thousand steps meanwhile; for other databases 0."""
    calls = [0]

    def count() -> None:
        calls[0] += 1

    def watch(dbapi_connection, *_) -> None:
        if sessions.engine.dialect.name == "sqlite":
            dbapi_connection.set_progress_handler(count, 1000)

    event.listen(sessions.engine, "checkout", watch)
    try:
        yield lambda: calls[0]
    finally:
        event.remove(sessions.engine, "checkout", watch)


def test_a_claim_is_quick_with_a_hundred_thousand_jobs_waiting(sessions, owners):
    ann, bob, _ = owners
    with sessions.begin() as session:
        session.execute(text(FLOOD), {"owner": ann})
        if session.connection().dialect.name == "postgresql":
            session.execute(text("analyze jobs"))  # as its autovacuum does within a minute
    (theirs,) = queued(sessions, bob)
    assert serve(sessions)[0] == ann
    with counted_steps(sessions) as thousands:
        assert serve(sessions) == (bob, theirs)
        for _ in range(9):
            assert serve(sessions)[0] == ann
    assert thousands() < 100  # a claim that reads all that wait takes a thousand by itself
    query = _first_of_each("jobs", ("cpu",), None).compile(sessions.engine, compile_kwargs={"literal_binds": True})
    explain = "explain query plan " if sessions.engine.dialect.name == "sqlite" else "explain "
    with sessions() as session:
        plan = "\n".join(map(str, session.execute(text(explain + str(query).replace(":", r"\:")))))
    assert "ix_jobs_status_owner_type_device_id" in plan
    assert "Seq Scan on jobs" not in plan
    assert "B-TREE FOR ORDER" not in plan
    assert "ix_jobs_status_run_after" not in plan
    if sessions.engine.dialect.name == "postgresql":
        _, *steps = plan.split("Scan using ix_jobs_status_owner_type_device_id")
        assert len(steps) == 5
        assert all("status" in step.partition("Index Cond")[2].partition("\n")[0] for step in steps)


def test_one_of_several_workers_of_a_kind_is_left_to_other_owners(sessions, owners):
    ann, bob, _ = owners
    queued(sessions, ann, 8)
    with sessions.begin() as session:
        for name, devices in (("a", ["cpu"]), ("b", ["cpu"]), ("gpu", ["cpu", "cuda"])):
            session.add(WorkerHeartbeat(name=name, sandbox="standard", device="", devices=devices))
    add_key(sessions, ann, "laptop")
    add_key(sessions, ann, "build machine")
    assert [claimed(sessions, "a"), claimed(sessions, "b")] == [ann, ann], "there is nobody else"
    with sessions.begin() as session:
        [second] = session.scalars(select(Job).where(Job.lease_owner == "b"))
        lifecycle.fail(session, second.id, second.fence, {"code": "x", "title": "x", "detail": "x"})
        assert JOBS_RUNNING.value(session, Settings()) is None

    add_key(sessions, bob, "laptop")
    with sessions() as session:
        assert JOBS_RUNNING.value(session, Settings()) == 2, "one of the two, and the only one with a GPU"
        assert JOBS_RUNNING.value(session, Settings(max_running_jobs=0)) is None
    assert claimed(sessions, "gpu", ("cpu", "cuda")) == ann, "the only worker of its kind is nobody's to keep free"
    assert claimed(sessions, "b") is None, "though nobody else waits: a long job would hold it when somebody does"
    queued(sessions, bob)
    assert claimed(sessions, "b") == bob


def test_two_claims_at_once_leave_a_worker_to_other_owners(sessions, owners):
    ann = owners[0]
    jobs = queued(sessions, ann, 4)

    def take(job_id: str) -> bool:
        with sessions.begin() as session:
            names = ["worker", "another"]
            job = lifecycle.claim(session, job_id, "worker", 45.0, ["cpu"], most_held=1, held_by=names)
        return job is not None

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(take, jobs)) == 1
