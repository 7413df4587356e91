"""What all processes share goes away under work, the broker, the database and the room on the disk: counted."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.faults.test_faults import assert_settled, checkpoint_step, stack, tiny, training
from tests.support.campaign import size_of
from tests.support.processes import Processes, wait_for
from tests.support.servers import Servers
from tests.support.small_disk import small_disk
from tests.support.stack import Stack, new_stack

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]
__all__ = ["stack"]


@pytest.fixture
def servers(processes: Processes, scratch: Path) -> Iterator[Servers]:
    """A PostgreSQL and a Redis of the test's own, which it may stop."""
    folder = Path(tempfile.mkdtemp(dir=scratch, prefix="own"))  # short, for there will be a Unix socket in it
    folder.chmod(0o755)
    own = Servers(folder, processes)
    yield own
    own.redis.kill()
    own.postgres.kill()


def test_jobs_are_taken_and_finish_though_the_broker_is_down_for_a_while(
    servers: Servers, processes: Processes, scratch: Path
) -> None:
    seconds = size_of("BROKER_DOWN_S", 15)
    stack = new_stack(scratch / "no broker", processes, servers, workers=2)
    spec = tiny(stack)
    jobs = [stack.submit(spec) for _ in range(5)]
    away = threading.Thread(target=servers.restart_redis, args=(seconds,))
    away.start()
    while away.is_alive():
        jobs.append(stack.submit(spec))  # which is 202, or it fails
        time.sleep(0.5)
    away.join()
    for job in jobs:
        stack.succeeded(job)
    assert_settled(stack, jobs)
    print(f"\nbroker down for {seconds} s: {len(jobs)} of {len(jobs)} submits answered 202, and all jobs succeeded")
    stack.stop()


def test_a_database_that_is_restarted_costs_no_running_job_its_lease(
    servers: Servers, processes: Processes, scratch: Path
) -> None:
    count, restarts, workers = size_of("JOBS_UNDER_A_RESTART", 20), 3, 4
    stack = new_stack(
        scratch / "no database", processes, servers, workers=workers, lease_s="20", heartbeat_s="5", sweep_s="2"
    )
    spec = training(stack, 60)
    jobs = [stack.submit(spec) for _ in range(count)]
    running = "SELECT count(*) FROM jobs WHERE type = 'prune' AND status = 'running'"
    under = []
    for _ in range(restarts):
        wait_for(lambda: stack.rows(running)[0][0] == workers, "all workers have a job")
        under.append(stack.rows(running)[0][0])
        servers.restart_postgres()
        time.sleep(5)
    for job in jobs:
        stack.succeeded(job, 1200)
    assert_settled(stack, jobs)
    print(
        f"\nPostgreSQL restarted {restarts} times under {count} jobs, of which {under} ran: all succeeded, "
        "each with one claim"
    )
    stack.stop()


def test_a_disk_that_fills_up_stops_nothing_for_good(processes: Processes, scratch: Path) -> None:
    seconds = size_of("DISK_FULL_S", 20)
    with small_disk(scratch / "small disk", 256) as disk:
        stack = new_stack(disk.folder / "stack", processes, workers=1, keep_unreferenced_s="3600")
        spec, long_spec = tiny(stack), training(stack, 100)
        jobs = [stack.submit(long_spec)]
        wait_for(lambda: checkpoint_step(stack, jobs[0]) >= 1, "a checkpoint")
        answers: Counter[str] = Counter()
        with ThreadPoolExecutor(1) as pool:
            full = pool.submit(disk.fill_for, seconds)
            time.sleep(1)
            while not full.done():
                upload = stack.post_model(bytes(4 << 20), "large.pt")
                answers[f"upload {upload.status_code}"] += 1
                posted = stack.http.post("/v1/jobs", json=spec)
                answers[f"submit {posted.status_code}"] += 1
                if posted.status_code == 202:
                    jobs.append(posted.json()["id"])
                looked = stack.http.get("/v1/jobs")
                answers[f"look {looked.status_code}"] += 1
                time.sleep(0.5)
            full.result()
        wrong = set(answers) - {f"{what} {code}" for what in ("upload", "submit") for code in (507, 503, 202)}
        assert wrong <= {"look 200", "upload 201"}, answers
        assert answers["upload 507"] > 0
        jobs += [stack.submit(spec) for _ in range(3)]
        for job in jobs:
            stack.succeeded(job)
        assert_settled(stack, jobs, once=False)
        assert "0 findings" in stack.run("fsck")
        print(
            f"\ndisk full for {seconds} s: {dict(answers)}; then all of {len(jobs)} jobs succeeded, fsck finds nothing"
        )
        stack.stop()


def test_the_same_request_at_once_from_everywhere_makes_one_job(stack: Stack) -> None:
    times = size_of("SAME_REQUEST", 100)
    spec = tiny(stack)
    together = threading.Barrier(50)

    def post(_: int) -> httpx.Response:
        together.wait(60)
        return httpx.post(f"{stack.url}/v1/jobs", json=spec, headers={"Idempotency-Key": "once"}, timeout=120)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(times - times % 50)))
    assert {answer.status_code for answer in answers} == {202}
    [job] = {answer.json()["id"] for answer in answers}
    [row] = stack.rows("SELECT id FROM jobs WHERE type = 'prune'")
    assert row.id == job
    stack.start_worker()
    stack.succeeded(job)
    assert_settled(stack, [job])
    print(f"\n{stack.backend}: the same POST {len(answers)} times, 50 at once: one job")
