"""Jobs that lose their worker, their message or their neighbour, in numbers: all of it for the campaign.

The short forms stand in `test_celery` and `test_failpoints`.
"""

from __future__ import annotations

import random
import statistics
import time

import pytest

from pared.state import queue
from pared.state.settings import Settings
from tests.integration.worker.test_celery import Service, serving
from tests.integration.worker.test_failpoints import killed_at
from tests.support.campaign import size_of
from tests.support.processes import wait_for

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(7200)]

DEFAULTS = {name: Settings.model_fields[name].default for name in ("lease_s", "heartbeat_s", "sweep_s", "ring_again_s")}
MOST_S = 30.0
"""Within which 99 of 100 jobs run again whose worker is gone, by the settings as they come."""


@pytest.fixture(params=["sqlite", "postgresql"])
def make_service(request, scratch, confinement, processes):
    """A service without workers, on each kind of database."""
    where = {}
    if request.param == "postgresql":
        servers = request.getfixturevalue("servers")
        where = {"database_url": servers.new_database(), "broker_url": servers.new_broker()}
    made = []

    def make(**settings) -> Service:
        # Long leases, or a machine that is slow for a while would be the fault.
        settings = where | {"lease_s": 60.0} | settings
        made.append(serving(scratch, confinement, processes, request, **settings))
        return next(made[-1])

    yield make
    for each in made:
        next(each, None)


def backend(service: Service) -> str:
    return service.bench.sessions.engine.dialect.name


def test_a_job_whose_worker_is_killed_runs_again_within_half_a_minute(make_service):
    kills, at_once = size_of("LOST_WORKERS", 100), 4
    service = make_service(**DEFAULTS)
    jobs = [service.submit("slow", "1000000", "0.2") for _ in range(at_once)]
    for _ in range(at_once + 1):
        service.start_worker()
    took: list[float] = []
    while len(took) < kills:
        holders = {}
        for job_id in jobs:
            row = service.until(job_id, lambda job: job.status == "running" and job.checkpoint_step)
            holders[job_id] = (int(row.lease_owner.rpartition(":")[2]), row.fence)
        time.sleep(random.uniform(0, DEFAULTS["heartbeat_s"]))  # the kill comes at any moment of a heartbeat
        victims = random.sample(jobs, 2)
        killed = time.monotonic()
        for job_id in victims:
            pool = holders[job_id][0]
            [worker] = [each for each in service.workers if each.alive and pool in [p.pid for p in each.tree()]]
            worker.kill()
            service.start_worker()
        for job_id in victims:
            fence = holders[job_id][1]
            service.until(job_id, lambda job, fence=fence: job.fence > fence and job.status == "running")
            took.append(time.monotonic() - killed)
    rows = [service.bench.job(job_id) for job_id in jobs]
    assert [row.crash_count for row in rows] == [0] * at_once
    assert sum(row.fence - 1 for row in rows) == len(took), "nobody took a job from a worker that lived"
    p50, p99 = statistics.median(took), statistics.quantiles(took, n=100, method="inclusive")[98]
    print(
        f"\n{backend(service)}: {len(took)} workers killed under a job, default settings: running again after "
        f"{p50:.1f} s (p50), {p99:.1f} s (p99), at most {max(took):.1f} s"
    )
    assert p99 <= MOST_S


def test_processes_killed_between_commit_and_publish_lose_no_job(make_service):
    kills = size_of("KILLED_PUBLISHERS", 500)
    service = make_service(max_waiting_jobs=0)
    bench = service.bench
    jobs = []
    for _ in range(kills):
        jobs.append(bench.submit("succeed"))
        bench.sessions.engine.dispose()
        killed_at("job.created", lambda: queue.relay(bench.sessions, limit=1000, queue=service.queue))
    assert queue.messages_waiting(queue=service.queue) == 0, "not one message was sent"
    service.start_worker()
    service.start_worker()
    for job_id in jobs:
        row = service.ended(job_id)
        assert (row.status, row.fence) == ("succeeded", 1)
    print(
        f"\n{backend(service)}: {kills} processes killed between commit and publish, {kills} of {kills} jobs succeeded"
    )


def test_models_that_kill_their_process_fail_after_their_attempts_and_their_neighbours_finish(make_service):
    count = size_of("CRASHING_MODELS", 20)
    service = make_service(max_attempts=3)
    pairs = [(service.submit("segfault"), service.submit("succeed")) for _ in range(count)]
    service.start_worker(TESTS_CHILD="tiny_child")
    service.start_worker()
    for bad, good in pairs:
        assert service.ended(good).status == "succeeded"
        row = service.ended(bad)
        assert (row.status, row.attempt, row.error["code"]) == ("failed", 3, "model-crashes-worker")
    print(
        f"\n{backend(service)}: {count} models that kill their process failed after 3 attempts each, "
        f"their {count} neighbours succeeded"
    )


def test_a_broker_that_is_emptied_again_and_again_costs_no_job(make_service):
    count = size_of("EMPTIED_BROKERS", 10)
    service = make_service()
    service.start_worker()
    jobs = []
    for _ in range(count):
        jobs += [service.submit("succeed") for _ in range(5)]
        for name in queue.QUEUES.values():
            with service.queue.connection_for_write() as connection:
                connection.default_channel.queue_declare(name)
                connection.default_channel.queue_purge(name)
    for job_id in jobs:
        row = service.ended(job_id)
        assert (row.status, row.fence) == ("succeeded", 1)
    wait_for(lambda: queue.messages_waiting(queue=service.queue) == 0, "no message is left")
    print(f"\n{backend(service)}: broker emptied {count} times under a worker, {len(jobs)} jobs ran once each")
