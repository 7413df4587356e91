"""Between any two durable steps a process may be killed: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import func, select, update

from pared.state import failpoints, queue
from pared.state.objects import content_key
from pared.state.sweep import Sweep
from pared.state.tables import Job, Model, Outbox
from tests.integration.worker.conftest import SUPPORT, children
from worker import attempt
from worker.forkserver import ForkServer
from worker.scratch import clear

LIGHT = (sys.executable, "-P", str(SUPPORT / "light_child.py"))
"""Does what a method does, checkpoints included, without torch: it is started anew where a worker is killed."""


def killed_at(name: str, act: Callable[[], object]) -> None:
    """Run `act` in a process of its own, which has to die at the failpoint."""

    def run() -> None:
        failpoints.arm(name)
        act()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, f"{name} was not reached"


@pytest.fixture
def apart(bench):
    """The bench, whose connections no other process may share."""
    bench.sessions.engine.dispose()
    return bench


def run_once(bench, job_id: str, failpoint: str = "") -> None:
    """One attempt."""
    bench.sessions.engine.dispose(close=False)
    settings = bench.settings.model_copy(update={"failpoints": failpoint})
    made = children(LIGHT, bench.worker.confinement)
    attempt.run(replace(bench.worker, children=made, settings=settings), job_id)


def run_apart(bench, job_id: str) -> None:
    """One attempt, with a fork server of its own that ends with it."""
    bench.sessions.engine.dispose(close=False)
    made = ForkServer(LIGHT, bench.worker.confinement, threads=1)
    try:
        attempt.run(replace(bench.worker, children=made), job_id)
    finally:
        made.close()


def recover(bench) -> None:
    """What time and the sweep do after a worker was lost."""
    bench.write(update(Job).where(Job.status == "running").values(lease_expires_at=time.time() - 1))
    Sweep(bench.sessions, bench.settings, store=bench.store).expire()
    bench.write(update(Job).values(run_after=0))


def assert_ended_once(bench, job_id: str) -> None:
    job = bench.job(job_id)
    assert job.status == "succeeded", job.error
    kinds = [event.kind for event in bench.events(job_id)]
    assert kinds.count("done") == 1
    assert kinds[-1] == "done"
    [artifact] = bench.artifacts(job_id)
    assert b"".join(bench.store.read(artifact.object_key)) == b"counted to 3", (
        "no step of the work was left out or done twice"
    )


OF_A_WORKER = [
    "job.claimed", "checkpoint.stored", "checkpoint.recorded", "child.ended", "results.stored", "job.ended",
    "object.written", "object.published",
]  # fmt: skip


@pytest.mark.parametrize("name", OF_A_WORKER)
def test_a_worker_killed_between_two_steps_loses_and_doubles_nothing(apart, name):
    bench = apart
    job_id = bench.submit("count")
    killed_at(name, lambda: run_apart(bench, job_id))
    recover(bench)
    if name == "job.ended":
        assert_ended_once(bench, job_id)
    run_once(bench, job_id)
    assert_ended_once(bench, job_id)
    settings = bench.settings.model_copy(update={"keep_unreferenced_s": -1.0})
    Sweep(bench.sessions, settings, store=bench.store).collect()
    assert bench.objects("checkpoints") == [], "what no row names is collected"
    assert bench.objects("jobs") == [artifact.object_key for artifact in bench.artifacts(job_id)]
    clear(bench.settings.data_dir / "scratch", limit_s=60)
    assert list((bench.settings.data_dir / "scratch").iterdir()) == []


OF_A_CHILD = ["child.checkpoint.written", "child.checkpoint.renamed", "child.reported"]


@pytest.mark.parametrize("name", OF_A_CHILD)
def test_a_child_killed_between_two_steps_is_a_crash_that_loses_and_doubles_nothing(apart, name):
    bench = apart
    job_id = bench.submit("count")
    run_once(bench, job_id, name)
    job = bench.job(job_id)
    assert (job.status, job.crash_count) == ("queued", 1)
    recover(bench)
    run_once(bench, job_id)
    assert_ended_once(bench, job_id)


OF_THE_QUEUE = ["job.created", "outbox.sent"]


@pytest.mark.parametrize("name", OF_THE_QUEUE)
def test_a_process_killed_while_it_sends_messages_leaves_each_job_one_at_least(apart, name):
    bench = apart
    app = queue.make_app(bench.settings)
    job_id = bench.submit("count")
    bench.sessions.engine.dispose()

    def relay() -> None:
        queue.relay(bench.sessions, queue=app)

    killed_at(name, relay)
    assert queue.relay(bench.sessions, queue=app) == 1
    assert queue.messages_waiting(queue=app) == {"job.created": 1, "outbox.sent": 2}[name]
    with bench.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Outbox)) == 0
    for _ in range(queue.messages_waiting(queue=app)):
        run_once(bench, job_id)
    assert_ended_once(bench, job_id)
    assert bench.job(job_id).fence == 1


def test_a_sweep_killed_while_it_collects_deletes_nothing_that_a_row_names(apart):
    bench = apart
    kept = bench.store.put([b"kept"], key="jobs/x/1/kept").sha256
    model = bench.upload(b"a model that a row names")
    settings = bench.settings.model_copy(update={"keep_unreferenced_s": -1.0})
    bench.sessions.engine.dispose()
    killed_at("sweep.listed", Sweep(bench.sessions, settings, store=bench.store).collect)
    assert bench.store.exists("jobs/x/1/kept"), kept
    Sweep(bench.sessions, settings, store=bench.store).collect()
    assert not bench.store.exists("jobs/x/1/kept")
    with bench.sessions() as session:
        assert bench.store.exists(content_key(session.get_one(Model, model).sha256))


def test_every_failpoint_is_killed_at():
    of_webhooks = {"webhook.claimed", "webhook.sent"}  # tests/integration/state/test_webhooks.py
    named = {*OF_A_WORKER, *OF_A_CHILD, *OF_THE_QUEUE, *of_webhooks, "sweep.listed"}
    assert named == set(failpoints.NAMES)


def test_a_failpoint_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"job\.claimd"):
        failpoints.arm("job.claimd")
    failpoints.arm("")


def test_with_a_file_only_the_first_process_dies(tmp_path):
    armed = f"job.claimed={tmp_path / 'once'}"
    killed_at(armed, lambda: failpoints.failpoint("job.claimed"))
    failpoints.arm(armed)
    failpoints.failpoint("job.claimed")
    failpoints.arm("")
