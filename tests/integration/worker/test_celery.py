from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select, update

from pared.state import queue
from pared.state.jobs import cancel
from pared.state.tables import Artifact, Job, WorkerHeartbeat
from tests.integration.service.conftest import serving as serving_http
from tests.integration.worker.conftest import Bench
from tests.support.processes import PATIENCE_S, environment, wait_for
from tests.support.small_disk import small_disk

ROOT = Path(__file__).parents[3]
QUICK = {"lease_s": 3.0, "heartbeat_s": 0.5, "sweep_s": 0.5, "ring_again_s": 1.0, "cancel_grace_s": 1.0, "threads": 1}


class Service:
    """A bench whose jobs are run by real Celery workers."""

    def __init__(self, folder, confinement, processes, **settings) -> None:
        self.bench = Bench(folder, confinement, **QUICK | settings)
        self.folder, self.processes, self.workers = folder, processes, []
        self.env = environment(
            PARED_DATA_DIR=str(self.bench.settings.data_dir),
            **{f"PARED_{name.upper()}": str(value) for name, value in (QUICK | settings).items()},
        )
        self.queue = queue.make_app(self.bench.settings)

    def start_worker(self, **env: str):
        name = f"worker{len(self.workers)}"
        command = ["-A", "tests.support.celery_worker", "worker", "-c", "1", "-l", "INFO"]
        log = self.folder / f"{name}.log"
        worker = self.processes.fork("celery.__main__", command, name=name, log=log, cwd=ROOT, env=self.env | env)
        self.workers.append(worker)
        return worker

    def alive(self, workers: int = 1) -> None:
        wait_for(lambda: len(self.rows()) >= workers, "workers show signs of life")

    def rows(self):
        with self.bench.sessions() as session:
            return session.scalars(select(WorkerHeartbeat)).all()

    def submit(self, *behaviour: str, **fields) -> str:
        job_id = self.bench.submit(*behaviour, **fields)
        queue.relay(self.bench.sessions, queue=self.queue)
        return job_id

    def until(self, job_id: str, condition, limit_s: float = PATIENCE_S):
        def look():
            job = self.bench.job(job_id)
            return job if condition(job) else None

        try:
            return wait_for(look, f"{job_id}", limit_s)
        except AssertionError as error:
            tails = "\n".join(worker.tail(80) for worker in self.workers)
            raise AssertionError(f"{error}\n{vars(self.bench.job(job_id))}\n{tails}") from None

    def ended(self, job_id: str, limit_s: float = PATIENCE_S):
        return self.until(job_id, lambda job: job.status in {"succeeded", "failed", "canceled"}, limit_s)


def serving(scratch, confinement, processes, request, **settings):
    folder = scratch / request.node.name
    folder.mkdir()
    made = Service(folder, confinement, processes, **settings)
    yield made
    for worker in made.workers:
        if worker.alive:
            worker.kill()
    made.bench.sessions.engine.dispose()


@pytest.fixture
def service(scratch, confinement, processes, request):
    yield from serving(scratch, confinement, processes, request)


@pytest.fixture(params=["files", "servers"])
def routed(scratch, confinement, processes, request):
    """The same on SQLite with files, and on PostgreSQL with Redis."""
    where = {}
    if request.param == "servers":
        servers = request.getfixturevalue("servers")
        where = {"database_url": servers.new_database(), "broker_url": servers.new_broker()}
    yield from serving(scratch, confinement, processes, request, **where)


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
    assert b"".join(service.bench.store.read(artifact.object_key)) == b"counted to 12"
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
    assert psutil.wait_procs(below, 30)[1] == []
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
    assert worker.stop() == 0


def test_a_stopped_worker_hands_its_job_back_and_leaves_no_row(service):
    worker = service.start_worker()
    service.alive()
    job_id = service.submit("slow", "1000", "0.1")
    service.until(job_id, lambda job: job.checkpoint_step)
    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < 30
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
    wait_for(lambda: not list((service.bench.settings.data_dir / "broker").rglob("*.msg")), "messages are cleaned up")


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
    assert psutil.wait_procs([child], 30)[1] == []
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
    assert service.ended(job_id).status == "canceled"


def test_a_worker_with_a_crashing_job_goes_on_to_the_next(service):
    service.start_worker()
    service.alive()
    bad, good = service.submit("leave"), service.submit("succeed")
    assert service.ended(good).status == "succeeded"
    bad_job = service.ended(bad)
    assert (bad_job.status, bad_job.error["code"], bad_job.crash_count) == ("failed", "model-crashes-worker", 2)


def test_a_plan_does_not_wait_for_the_job_under_way_and_goes_back_with_it(service):
    worker = service.start_worker()
    service.alive()
    long = service.submit("hang")
    service.until(long, lambda job: job.status == "running")
    plan = service.ended(service.bench.submit_plan("make_plan", "0"))
    assert (plan.status, plan.report["exact"]) == ("succeeded", True)
    refused = service.ended(service.bench.submit_plan("raise_named"))
    assert (refused.status, refused.error["code"]) == ("failed", "nothing-to-prune")
    assert service.bench.job(long).status == "running"
    endless = service.bench.submit_plan("hang")
    service.until(endless, lambda job: job.status == "running")
    assert worker.stop() == 0
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
    plan = service.ended(plan_id)
    assert (plan.status, plan.fence, plan.crash_count) == ("succeeded", 2, 0)


def test_the_worker_never_loads_torch(service):
    worker = service.start_worker()
    service.alive()
    service.ended(service.submit("succeed"))
    for process in worker.tree()[:2]:  # not the server that its children are forked from
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    assert {row.sandbox for row in service.rows()} == {service.bench.worker.confinement.level}


# -- the log ---------------------------------------------------------------------------------------


def test_what_a_request_made_is_found_in_the_workers_log_by_its_id_with_every_traceback(service):
    """Over HTTP: a job that fails by a named error, one that fails by another, one whose process dies, and a plan."""
    spec = {"type": "prune", "model": service.bench.upload(), "amount": 0.5}
    with serving_http(service.bench.settings.data_dir) as api:

        def post(path: str, behaviour: str) -> str:
            headers = {"X-Request-Id": f"request-{path[-4:]}-{behaviour}"}
            answer = api.post(path, json=spec | {"include": [behaviour]}, headers=headers | {"Prefer": "wait=1"})
            assert answer.status_code == 202, answer.text
            return answer.json()["id"]

        jobs = {name: post("/v1/jobs", name) for name in ("raise_named", "raise_other", "leave", "succeed")}
        plan = post("/v1/jobs:plan", "raise_named")
        worker = service.start_worker(TESTS_CHILD="tiny_child", PARED_LOG_LEVEL="debug", PARED_MAX_ATTEMPTS="1")
        for job_id in [*jobs.values(), plan]:
            service.ended(job_id)
    made = {f"request-jobs-{name}": job_id for name, job_id in jobs.items()} | {"request-plan-raise_named": plan}
    for request_id, job_id in made.items():
        records = worker.records(job=job_id)
        assert {record["request_id"] for record in records} == {request_id}
        assert records == worker.records(request_id=request_id)
        assert {"claimed", "ended"} <= {record["event"] for record in records}
    for event, behaviour, error in (
        ("method_failed", "raise_named", "NothingToPrune: fc is the classifier"),
        ("method_raised", "raise_other", "KeyError: 'what'"),
    ):
        [record] = worker.records(event=event, job=jobs[behaviour])
        assert f"in {behaviour}\n" in record["output"]
        assert error in record["output"].splitlines()[-1]
    assert len(worker.records(event="method_failed", job=plan)) == 1
    [crash] = worker.records(event="child_crashed", job=jobs["leave"])
    assert crash["how"] == "ended with exit status 3"
    assert worker.records(event="stage", job=jobs["succeed"], level="debug", name="compress")
    assert worker.records(event="job_log", job=jobs["succeed"])[-1]["text"].startswith("a line with a NUL")


# -- devices --------------------------------------------------------------------------------------


def test_each_job_runs_where_its_device_is_and_waits_for_no_other(routed):
    """Two workers, one of which counts as having a GPU."""
    service = routed
    service.start_worker(TESTS_CARD="H100")
    service.alive()
    [row] = service.rows()
    assert (row.devices, row.device, row.device_problem) == (["cpu", "cuda"], "1 CPU, H100", None)
    service.start_worker(PARED_DEVICE="cpu")
    service.alive(2)
    by_device = {tuple(row.devices): row.name for row in service.rows()}

    def ran(job_id: str) -> str:
        job = service.ended(job_id)
        assert job.status == "succeeded", job.error
        return job.report["reproduce"]["device"]

    # Whoever takes it: a job for the processor computes there, and one for CUDA with the GPU.
    assert [ran(service.submit("succeed", device=device)) for device in ("cuda", "cpu")] == ["cuda", "cpu"]
    # While the GPU is busy nothing but what needs it waits for it.
    long = service.submit("hang", device="cuda")
    holder = service.until(long, lambda job: job.status == "running").lease_owner
    assert holder == by_device["cpu", "cuda"]
    waits = service.submit("succeed", device="cuda", latency_device="cpu")
    assert [ran(service.submit("succeed")) for _ in range(2)] == ["cpu", "cpu"]
    # A message that came astray changes nothing: the row decides.
    queue.enqueue(waits, "cpu", queue=service.queue)
    assert ran(service.submit("succeed", device="cpu")) == "cpu"
    assert service.bench.job(waits).status == "queued"
    with service.bench.sessions.begin() as session:
        cancel(session, "local", long)
    assert ran(waits) == "cuda"
    assert service.bench.job(waits).report["warnings"] == ["cpu"]  # where latency is measured


def test_where_the_gpu_does_not_work_auto_is_served_on_the_processor_and_the_job_says_so(service):
    (service.bench.settings.data_dir / "lost-card").touch()
    service.start_worker(TESTS_CARD="H100")
    service.alive()
    [row] = service.rows()
    assert (row.devices, row.device, row.device_problem) == (["cpu"], "1 CPU", "H100 cannot be used: it is lost.")
    said = "The job computed on the processor, for this worker's GPU cannot be used. H100 cannot be used: it is lost."
    for device, notes in (("auto", [said]), ("cpu", [])):
        job_id = service.submit("succeed", device=device)
        assert service.ended(job_id).report["warnings"] == [*notes, "cpu"]
        assert [event.data["text"] for event in service.bench.events(job_id, "log")].count(said) == len(notes)


def test_a_worker_that_must_have_cuda_and_has_none_takes_no_jobs_and_says_why(service):
    service.start_worker(PARED_DEVICE="cuda", CUDA_VISIBLE_DEVICES="")
    service.alive()
    [row] = service.rows()
    assert (row.devices, row.device) == ([], "1 CPU")
    assert "No NVIDIA GPU is visible" in row.device_problem
    jobs = [service.submit("succeed"), service.bench.submit_plan("make_plan", "0")]
    service.start_worker(PARED_DEVICE="cpu")
    for job_id in jobs:
        assert service.ended(job_id).status == "succeeded"
    assert {service.bench.job(job_id).fence for job_id in jobs} == {1}
    assert service.workers[0].stop() == 0


@pytest.mark.parametrize("asked", ["job", "plan"])
def test_a_gpu_that_is_lost_later_costs_no_job_and_the_worker_tries_anew_what_it_has(service, asked):
    worker = service.start_worker(TESTS_CARD="H100")
    service.alive()
    (service.bench.settings.data_dir / "lost-card").touch()
    job_id = (service.submit if asked == "job" else service.bench.submit_plan)("lose_card", asked)
    service.until(job_id, lambda job: job.status == "queued" and job.attempt == 1)
    wait_for(lambda: [row.devices for row in service.rows()] == [["cpu"]], "another life without the card")
    service.bench.write(update(Job).where(Job.id == job_id).values(run_after=0))
    job = service.ended(job_id)
    assert (job.status, job.attempt, job.crash_count) == ("succeeded", 2, 0)
    assert any("the GPU is lost" in event.data["text"] for event in service.bench.events(job_id, "log"))
    assert worker.stop() == 0


def test_a_worker_that_starts_on_a_full_disk_probes_its_sandbox_once_there_is_room(service):
    with small_disk(service.bench.settings.data_dir / "scratch", 2) as disk:
        disk.fill()
        service.start_worker()
        service.alive()
        [row] = service.rows()
        assert row.devices == []
        assert "nothing can be written" in row.device_problem
        job_id = service.submit("succeed")
        disk.empty()
        job = service.ended(job_id)
        assert (job.status, job.sandbox) == ("succeeded", service.bench.confinement.level)
        service.workers[-1].kill()
