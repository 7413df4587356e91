"""Messages: sent after the commit, owed until the broker has them, sent again when nobody came."""

from __future__ import annotations

import errno
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from celery import Celery
from sqlalchemy import event, func, select, text, update

from pared.errors import Unavailable
from pared.state.lifecycle import create
from pared.state.queue import NO_QUEUE, QUEUES, enqueue, make_app, messages_waiting, queues_of, relay, send_again
from pared.state.session import Sessions
from pared.state.settings import Settings
from pared.state.sweep import Sweep
from pared.state.tables import Job, Outbox, db_now
from tests.support.job_specs import PRUNE

MANY = """
insert into jobs (id, owner, type, status, spec, created_at, updated_at, attempt, crash_count, fence, held_s, run_after)
select 'job_' || lpad(cast(n as text), 26, '0'), 'local', 'prune', :status, '{}', 1,
  case when n = :last then 1 else extract(epoch from now()) end, 0, 0, 0, 0, 0
from generate_series(cast(:first as integer), cast(:last as integer)) as n
"""


@pytest.fixture(params=["filesystem", "redis"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Celery:
    if request.param == "filesystem":
        return make_app(Settings(data_dir=tmp_path))
    servers = request.getfixturevalue("servers")
    servers.new_database()  # numbers the Redis database
    return make_app(Settings(data_dir=tmp_path, broker_url=servers.new_broker()))


@pytest.fixture
def no_broker(tmp_path: Path) -> Celery:
    return make_app(Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0"))


def heard(queue: Celery, device: str = "auto") -> list[str]:
    """Take every message for a device, as a worker would."""
    ids = []
    with queue.connection_for_read() as connection:
        simple = connection.SimpleQueue(QUEUES[device])
        while True:
            try:
                message = simple.get(block=False)
            except simple.Empty:
                return ids
            assert message.headers["task"] == "run_job"
            ids.append(message.payload[0][0])
            message.ack()


def submit(sessions: Sessions, count: int, device: str = "auto") -> list[str]:
    spec = PRUNE.model_copy(update={"device": device})
    with sessions.begin() as session:
        return [create(session, "local", spec).id for _ in range(count)]


def owed(sessions: Sessions) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(Outbox))


def test_a_message_carries_the_id_alone(queue: Celery):
    enqueue("job_1", queue=queue)
    assert messages_waiting(queue=queue) == 1
    assert heard(queue) == ["job_1"]
    assert messages_waiting(queue=queue) == 0


def test_a_message_that_finds_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    queue = make_app(Settings(data_dir=tmp_path))
    assert messages_waiting(queue=queue) == 0

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(Unavailable):
        enqueue("job_1", queue=queue)
    assert list((tmp_path / "broker" / "messages").iterdir()) == []


def test_messages_that_a_process_died_over_are_removed(tmp_path: Path):
    queue = make_app(Settings(data_dir=tmp_path))
    assert messages_waiting(queue=queue) == 0
    old, new = (tmp_path / "broker" / "messages" / f".{name}.{QUEUES['auto']}.msg" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    assert messages_waiting(queue=queue) == 0
    assert (old.exists(), new.exists()) == (False, True)


def test_many_listeners_hear_each_message_once(queue: Celery):
    for number in range(60):
        enqueue(f"job_{number}", queue=queue)
    with ThreadPoolExecutor(4) as pool:
        got = [one for ids in pool.map(lambda _: heard(queue), range(4)) for one in ids]
    assert sorted(got) == sorted(f"job_{number}" for number in range(60))


def test_relay_pays_what_is_owed_and_marks_the_job(sessions, queue):
    ids = submit(sessions, 3)
    assert owed(sessions) == 3
    assert relay(sessions, queue=queue) == 3
    assert owed(sessions) == 0
    assert heard(queue) == ids
    with sessions() as session:
        assert None not in session.scalars(select(Job.last_rung_at)).all()


def test_a_dead_broker_keeps_the_debt_and_costs_no_time(sessions, no_broker):
    submit(sessions, 5)
    began = time.monotonic()
    assert relay(sessions, queue=no_broker) == 0
    assert send_again(sessions, 0, queue=no_broker) == 0
    with pytest.raises(Unavailable):
        enqueue("job_1", queue=no_broker)
    assert time.monotonic() - began < 30
    assert owed(sessions) == 5


def test_a_job_whose_message_was_lost_is_rung_again_and_one_that_waits_is_not(sessions, queue):
    ids = submit(sessions, 3)
    assert send_again(sessions, 0, queue=queue) == 0  # the outbox still owes them
    relay(sessions, queue=queue)
    assert send_again(sessions, 0, queue=queue) == 0  # three wait, three messages are there
    heard(queue)  # lost
    assert send_again(sessions, 60, queue=queue) == 0  # rung a moment ago
    assert send_again(sessions, 0, queue=queue) == 3
    assert heard(queue) == ids


def test_a_job_that_may_not_run_yet_is_not_rung(sessions, queue):
    submit(sessions, 1)
    relay(sessions, queue=queue)
    heard(queue)
    with sessions.begin() as session:
        session.execute(update(Job).values(run_after=db_now() + 3600))
    assert send_again(sessions, 0, queue=queue) == 0


def test_relays_at_once_ring_at_least_once_for_each(sessions, queue):
    ids = submit(sessions, 20)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: relay(sessions, queue=queue), range(4)))
    assert owed(sessions) == 0
    assert set(heard(queue)) == set(ids)


def test_jobs_are_rung_for_where_those_hear_it_that_have_their_device(sessions, queue):
    rung = {device: submit(sessions, 2, device) for device in QUEUES}
    assert relay(sessions, queue=queue) == 6
    assert messages_waiting(queue=queue) == 6
    assert {device: messages_waiting([device], queue=queue) for device in QUEUES} == dict.fromkeys(QUEUES, 2)
    assert {device: heard(queue, device) for device in QUEUES} == rung
    assert messages_waiting(queue=queue) == 0


def test_messages_that_nobody_hears_leave_no_job_of_another_device_unrung(sessions, queue):
    """As where the last worker with a GPU is gone: its jobs wait, and those of the others must not wait with them."""
    submit(sessions, 3, "cuda")
    lost = submit(sessions, 2)
    relay(sessions, queue=queue)
    heard(queue)
    assert send_again(sessions, 0, limit=2, queue=queue) == 2
    assert heard(queue) == lost
    assert messages_waiting(["cuda"], queue=queue) == 3


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
@pytest.mark.parametrize("queue", ["filesystem"], indirect=True)
def test_a_sweep_reads_what_waits_and_not_all_jobs_there_are(sessions, settings, store, queue):
    with sessions.begin() as session:
        session.execute(text(MANY), {"status": "succeeded", "first": 1, "last": 20_000})
        session.execute(text(MANY), {"status": "queued", "first": 20_001, "last": 22_000})
        session.execute(text("analyze jobs"))
    asked = []
    event.listen(sessions.engine, "before_cursor_execute", lambda *told: asked.append(told[2:4]))
    sweep = Sweep(sessions, settings, store=store, queue=queue)
    send_again(sessions, 30.0, limit=1, queue=queue)
    sweep.explain_waiting()
    sweep()
    plans = []
    with sessions.engine.connect() as connection:
        often = re.compile(r"LIMIT|min\(jobs\.run_after\)|jobs\.lease_expires_at <")
        for statement, parameters in [told for told in asked if often.search(told[0])]:
            plans.append("".join(map(str, connection.exec_driver_sql(f"explain {statement}", parameters).all())))
    assert len(plans) >= 7
    assert not [plan for plan in plans if "pk_jobs on jobs" in plan or "Seq Scan on jobs" in plan]


def test_a_worker_listens_to_the_queues_of_its_devices_and_one_that_takes_no_jobs_to_none():
    assert queues_of(["cpu"]) == [QUEUES["auto"], QUEUES["cpu"]]
    assert set(queues_of(["cpu", "cuda"])) == set(QUEUES.values())
    assert queues_of([]) == [NO_QUEUE]
    assert NO_QUEUE not in QUEUES.values()


def test_a_worker_listens_to_no_queue_that_it_is_not_to_take():
    assert queues_of(["cpu", "cuda"], ["cuda", "quick"]) == [QUEUES["cuda"]]
    assert queues_of(["cpu"], ["auto", "cuda"]) == [QUEUES["auto"]]
    assert queues_of(["cpu"], ["cuda"]) == queues_of(["cpu"], ["quick"]) == [NO_QUEUE]


def test_queues_are_named_by_what_there_is():
    assert Settings().taken_queues == ["auto", "cpu", "cuda", "quick"]
    assert Settings(queues="quick, cuda").taken_queues == ["quick", "cuda"]
    for wrong, says in (("gpu", "there is no queue gpu: write some of auto, cpu, cuda, quick"), (" , ", "no queue")):
        with pytest.raises(ValueError, match=says):
            Settings(queues=wrong)
