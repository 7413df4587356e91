from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from pared.state import queue
from pared.state.jobs import cancel
from pared.state.tables import Artifact, WorkerHeartbeat
from tests.e2e.processes import environment, wait_for
from tests.worker.conftest import Bench

ROOT = Path(__file__).parents[2]
QUICK = {"lease_s": 3.0, "heartbeat_s": 0.5, "sweep_s": 0.5, "ring_again_s": 1.0, "cancel_grace_s": 1.0, "threads": 1}


class Service:
    """A bench whose jobs are run by real Celery workers."""

    def __init__(self, folder, confinement, processes) -> None:
        self.bench = Bench(folder, confinement, **QUICK)
        self.folder, self.processes, self.workers = folder, processes, []
        self.env = environment(
            PARED_DATA_DIR=str(self.bench.settings.data_dir),
            **{f"PARED_{name.upper()}": str(value) for name, value in QUICK.items()},
        )
        self.queue = queue.make_app(self.bench.settings)

    def start_worker(self):
        name = f"worker{len(self.workers)}"
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "tests.worker.celery_worker",
            "worker",
            "-c",
            "1",
            "-l",
            "INFO",
        ]
        worker = self.processes.start(command, name=name, log=self.folder / f"{name}.log", cwd=ROOT, env=self.env)
        self.workers.append(worker)
        return worker

    def alive(self, workers: int = 1) -> None:
        wait_for(lambda: len(self.rows()) >= workers, 60, "workers show signs of life")

    def rows(self):
        with self.bench.sessions() as session:
            return session.scalars(select(WorkerHeartbeat)).all()

    def submit(self, *behaviour: str, **fields) -> str:
        job_id = self.bench.submit(*behaviour, **fields)
        queue.relay(self.bench.sessions, queue=self.queue)
        return job_id

    def until(self, job_id: str, condition, limit_s: float = 90):
        def look():
            job = self.bench.job(job_id)
            return job if condition(job) else None

        try:
            return wait_for(look, limit_s, f"{job_id}")
        except AssertionError as error:
            tails = "\n".join(worker.tail(80) for worker in self.workers)
            raise AssertionError(f"{error}\n{vars(self.bench.job(job_id))}\n{tails}") from None

    def ended(self, job_id: str, limit_s: float = 120):
        return self.until(job_id, lambda job: job.status in {"succeeded", "failed", "canceled"}, limit_s)


@pytest.fixture
def service(scratch, confinement, processes, request):
    folder = scratch / request.node.name
    folder.mkdir()
    made = Service(folder, confinement, processes)
    yield made
    for worker in made.workers:
        if worker.alive:
            worker.kill()
    made.bench.sessions.engine.dispose()


def test_a_killed_worker_loses_at_most_one_checkpoint_and_the_job_ends_once(service):
    service.start_worker()
    service.alive()
    job_id = service.submit("slow", "12", "0.4")
    for _ in range(3):
        step = service.bench.job(job_id).checkpoint_step or 0
        service.until(job_id, lambda job, step=step: (job.checkpoint_step or 0) >= step + 2)
        service.workers[-1].kill()
        service.start_worker()
    job = service.ended(job_id)
    assert (job.status, job.crash_count) == ("succeeded", 0)
    assert job.fence == 4
    with service.bench.sessions() as session:
        [artifact] = session.scalars(select(Artifact)).all()
    assert b"".join(service.bench.store.read(artifact.object_key)) == b"[12.0, 12.0, 12.0]"
    starts = [event.data["text"] for event in service.bench.events(job_id, "log") if "starting" in event.data["text"]]
    assert len(starts) == 4
    assert all(int(text.split()[-1]) >= 2 * number for number, text in enumerate(starts))


@pytest.mark.parametrize("who", ["main", "pool", "server", "child"])
def test_whichever_process_is_killed_the_job_is_done_and_nothing_is_left_over(service, who):
    worker = service.start_worker()
    service.alive()
    job_id = service.submit("slow", "6", "0.4")
    service.until(job_id, lambda job: job.checkpoint_step)
    main, pool, server, child = worker.tree()
    killed = {"main": main, "pool": pool, "server": server, "child": child}[who]
    killed.send_signal(signal.SIGKILL)
    below = {"main": [pool, server, child], "pool": [server, child], "server": [], "child": [child]}[who]
    assert psutil.wait_procs(below, 5)[1] == []
    if who == "main":
        service.start_worker()
    job = service.ended(job_id)
    assert (job.status, job.crash_count) == ("succeeded", 1 if who == "child" else 0)


def test_a_worker_whose_idle_process_was_killed_works_on_and_stops(service):
    worker = service.start_worker()
    service.alive()
    _main, pool, _server = worker.tree()
    time.sleep(1)  # it waits for a task now, and holds the lock of the pipe they come through
    pool.kill()
    job = service.ended(service.submit("succeed"))
    assert job.status == "succeeded"
    assert worker.stop(20) == 0


def test_a_stopped_worker_hands_its_job_back_and_leaves_no_row(service):
    worker = service.start_worker()
    service.alive()
    job_id = service.submit("slow", "1000", "0.1")
    service.until(job_id, lambda job: job.checkpoint_step)
    began = time.monotonic()
    assert worker.stop(15) == 0
    assert time.monotonic() - began < 10
    job = service.bench.job(job_id)
    assert (job.status, job.attempt, job.crash_count) == ("queued", 0, 0)
    assert service.rows() == []


def test_every_message_ten_times_and_two_workers_start_each_job_once(service):
    jobs = [service.bench.submit("succeed") for _ in range(3)]
    for job_id in jobs * 10:
        queue.enqueue(job_id, queue=service.queue)
    service.start_worker()
    service.start_worker()
    for job_id in jobs:
        job = service.ended(job_id)
        assert (job.status, job.fence, job.attempt) == ("succeeded", 1, 1)
        assert [e.data["status"] for e in service.bench.events(job_id, "status")].count("succeeded") == 1
    wait_for(
        lambda: not list((service.bench.settings.data_dir / "broker").rglob("*.msg")), 10, "messages are cleaned up"
    )


def test_a_job_without_a_message_is_rung_by_the_workers_own_sweep(service):
    job_id = service.bench.submit("succeed")
    service.start_worker()
    assert service.ended(job_id).status == "succeeded"


def test_a_worker_paused_past_its_lease_writes_nothing_when_it_goes_on(service):
    first = service.start_worker()
    service.alive()
    job_id = service.submit("slow", "20", "0.2")
    service.until(job_id, lambda job: job.checkpoint_step)
    *_, child = first.tree()
    first.pause(service.bench.settings.data_dir / "pared.db")
    child.resume()  # it works on
    service.start_worker()
    service.until(job_id, lambda job: job.fence == 2 and job.checkpoint_key and "/2/" in job.checkpoint_key)
    first.go_on()
    assert psutil.wait_procs([child], 5)[1] == []
    job = service.ended(job_id)
    assert (job.status, job.fence) == ("succeeded", 2)
    with service.bench.sessions() as session:
        assert [row.object_key.split("/")[2] for row in session.scalars(select(Artifact))] == ["2"]


def test_cancel_reaches_a_job_of_a_celery_worker(service):
    service.start_worker()
    service.alive()
    job_id = service.submit("hang")
    service.until(job_id, lambda job: job.status == "running")
    with service.bench.sessions.begin() as session:
        cancel(session, "local", job_id)
    assert service.ended(job_id, 10).status == "canceled"


def test_a_worker_with_a_crashing_job_goes_on_to_the_next(service):
    service.start_worker()
    service.alive()
    bad, good = service.submit("leave"), service.submit("succeed")
    assert service.ended(good).status == "succeeded"
    bad_job = service.ended(bad, 60)
    assert (bad_job.status, bad_job.error["code"], bad_job.crash_count) == ("failed", "model-crashes-worker", 2)


def test_a_plan_does_not_wait_for_the_job_under_way_and_goes_back_with_it(service):
    worker = service.start_worker()
    service.alive()
    long = service.submit("hang")
    service.until(long, lambda job: job.status == "running")
    plan = service.ended(service.bench.submit_plan("make_plan", "0"), 20)
    assert (plan.status, plan.report["exact"]) == ("succeeded", True)
    refused = service.ended(service.bench.submit_plan("raise_named"), 20)
    assert (refused.status, refused.error["code"]) == ("failed", "nothing-to-prune")
    assert service.bench.job(long).status == "running"
    endless = service.bench.submit_plan("hang")
    service.until(endless, lambda job: job.status == "running")
    assert worker.stop(15) == 0
    for job in map(service.bench.job, (long, endless)):
        assert (job.status, job.attempt, job.crash_count) == ("queued", 0, 0)
    assert service.rows() == []


def test_a_plan_whose_worker_was_killed_is_made_by_another(service):
    worker = service.start_worker()
    service.alive()
    plan_id = service.bench.submit_plan("make_plan", "2")
    service.until(plan_id, lambda job: job.status == "running")
    worker.kill()
    service.start_worker()
    plan = service.ended(plan_id, 60)
    assert (plan.status, plan.fence, plan.crash_count) == ("succeeded", 2, 0)


def test_the_worker_never_loads_torch(service):
    worker = service.start_worker()
    service.alive()
    service.ended(service.submit("succeed"))
    for process in worker.tree()[:2]:  # not the server that its children are forked from
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    assert {row.sandbox for row in service.rows()} == {service.bench.worker.confinement.level}
