"""Faults on real processes, counted: whatever dies, no job is lost, none runs twice, and no stale write lands.

`make test` runs some with a small count, and shows the others by the smallest of jobs (`test_celery`); `make campaign`
runs the long counts, on both backends.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import statistics
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.campaign import counted
from tests.support.models import zoo
from tests.support.processes import Process, Processes, wait_for
from tests.support.servers import Servers
from tests.support.stack import ENDED, Stack, new_stack
from worker.forkserver import CHILD_NAME

RESUMED_S = 60.0
"""In which a job whose worker is gone must run again."""


@pytest.fixture(params=["embedded", pytest.param("servers", marks=pytest.mark.campaign)])
def stack(request: pytest.FixtureRequest, processes: Processes, scratch: Path) -> Iterator[Stack]:
    """A stack of the test's own, without a worker, for the test kills what it likes."""
    servers: Servers | None = request.getfixturevalue("servers") if request.param == "servers" else None
    # Short, but a commit may wait for seconds while another test writes gigabytes.
    settings = {"lease_s": "8", "heartbeat_s": "0.5", "max_waiting_jobs": "0", "max_requests_per_s": "0"}
    started = new_stack(scratch / "faults", processes, servers, workers=0, **settings)
    yield started
    started.stop()


def tiny(stack: Stack) -> dict[str, Any]:
    """A job that takes little more than its process's start."""
    return {
        "type": "prune",
        "model": stack.upload_model(zoo.upload("mlp", "scripted"), "mlp.pt"),
        "example_inputs": [{"shape": [2, 16]}],
        "granularity": "weight",
        "amount": 0.5,
    }


def training(stack: Stack, epochs: int, samples: int = 2000) -> dict[str, Any]:
    """A job with epochs of about a fifth of a second."""
    x, y = zoo.images(3, 8)(samples, 0)
    return {
        "type": "prune",
        "model": stack.upload_model(zoo.upload("resnet", "scripted"), "resnet.pt"),
        "dataset": stack.upload_dataset(zoo.npz(x, y), "images.npz"),
        "amount": 0.3,
        "retrain": {"epochs": epochs, "batch_size": 32, "lr": 0.001},
    }


def assert_settled(stack: Stack, jobs: Iterable[str], *, once: bool = True) -> None:
    """Every job ended exactly once, with one whole set of artifacts exactly if it succeeded."""
    for job in jobs:
        row = stack.job_row(job)
        assert row.status in ENDED, row
        assert row.lease_owner is None
        kinds = [event.kind for event in stack.rows("SELECT kind FROM job_events WHERE job_id = :id", id=job)]
        assert kinds.count("done") == 1
        files = stack.artifacts(job)
        assert len({file["name"] for file in files}) == len(files)
        assert bool(files) == (row.status == "succeeded")
        for file in files:
            assert hashlib.sha256(stack.download(job, file["name"])).hexdigest() == file["sha256"]
        if once and row.status == "succeeded":
            assert (row.attempt, row.fence) == (1, 1), "it ran once"
    assert stack.rows("SELECT count(*) FROM outbox")[0][0] == 0


def checkpoint_step(stack: Stack, job: str) -> int:
    return int(stack.job_row(job).checkpoint_step or 0)


def digest(stack: Stack, job: str) -> str:
    return next(file["sha256"] for file in stack.artifacts(job) if file["name"] == "model.pt")


def replace_worker(stack: Stack, worker: Process, *, alone: bool) -> Process:
    """SIGKILL it (alone, or with all that it started) and start another."""
    if alone:
        worker.kill_alone()
    else:
        worker.kill()
    return stack.start_worker()


# -- workers that die ---------------------------------------------------------------------------


KILLS_OF_A_JOB = 10
"""A job whose worker was lost twenty times is failed."""


@counted(None, 100, limit_s=14_400)
def test_a_worker_killed_in_mid_epoch_again_and_again(stack: Stack, count: int) -> None:
    epochs = 4 * (KILLS_OF_A_JOB + 1)
    spec = training(stack, epochs)
    worker = stack.start_worker()
    undisturbed = stack.submit(spec)
    stack.succeeded(undisturbed)
    took, again = [], 0
    for begin in range(0, count, KILLS_OF_A_JOB):
        job = stack.submit(spec)
        kills = range(begin, min(begin + KILLS_OF_A_JOB, count))
        for kill in kills:
            before = checkpoint_step(stack, job)
            wait_for(lambda job=job, since=before: checkpoint_step(stack, job) > since, f"a checkpoint after {before}")
            time.sleep(random.uniform(0, 0.3))  # somewhere within the epoch that follows
            worker = replace_worker(stack, worker, alone=kill % 2 == 1)
            killed_at = time.monotonic()
            fence = stack.job_row(job).fence
            wait_for(
                lambda job=job, since=fence: stack.job_row(job).fence > since or stack.job_row(job).status in ENDED,
                "resumed",
            )
            took.append(time.monotonic() - killed_at)
        report = stack.succeeded(job)
        assert_settled(stack, [job], once=False)
        assert len(report["history"]) == epochs, "resumed from checkpoints, each epoch counted once"
        assert digest(stack, job) == digest(stack, undisturbed), "as if nothing had happened"
        # At most the epoch under way is trained again after each kill.
        trained = [e for e in stack.events(job) if e["event"] == "metric" and e["data"]["name"] == "train_loss"]
        assert len(trained) <= epochs + len(kills)
        again += len(trained) - epochs
    assert max(took) <= RESUMED_S
    took.sort()
    print(
        f"\n{stack.backend}: {count} workers killed in mid-epoch: resumed after {statistics.median(took):.1f} s (p50), "
        f"{took[int(len(took) * 0.99) - 1]:.1f} s (p99), at most {max(took):.1f} s; {again} epochs trained twice, each "
        "result is the same"
    )


@counted(None, 10)
def test_a_worker_paused_past_its_lease(stack: Stack, count: int) -> None:
    spec = training(stack, 12)
    first, second = stack.start_worker(), stack.start_worker()
    undisturbed = stack.submit(spec)
    stack.succeeded(undisturbed)
    for round_ in range(count):
        job = stack.submit(spec)
        wait_for(lambda job=job: checkpoint_step(stack, job) >= 1, "a checkpoint", 240)
        holder = first if child_of(first) else second
        child = child_of(holder)
        assert child is not None
        holder.pause(stack.data / "pared.db" if stack.backend == "embedded" else None)
        if round_ % 2:
            child.resume()  # only those that supervise stand still; the child trains on
        fence = stack.job_row(job).fence
        wait_for(lambda job=job, since=fence: stack.job_row(job).fence > since, "another worker claims it")
        holder.go_on()
        wait_for(lambda child=child: not alive(child), "the former owner's child is ended")
        stack.succeeded(job)
        assert_settled(stack, [job], once=False)
        assert digest(stack, job) == digest(stack, undisturbed)
        assert stack.job_row(job).fence == fence + 1, "the former owner changed nothing"
    print(f"\n{stack.backend}: {count} workers paused past their lease")


def child_of(worker: Process) -> psutil.Process | None:
    """The sandboxed process of the job that a worker runs."""
    for process in worker.tree():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == CHILD_NAME:
                return process
    return None


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


# -- messages, lost and repeated ----------------------------------------------------------------


def answers(stack: Stack) -> bool:
    try:
        return stack.http.get("/healthz").is_success
    except httpx.TransportError:
        return False


@counted(3, 20)
def test_the_api_killed_between_commit_and_publish(stack: Stack, processes: Processes, count: int) -> None:
    spec = tiny(stack)
    stack.api.kill()
    for _ in range(count):
        where = {"log": stack.folder / "api.log", "cwd": stack.folder, "env": stack.env}
        stack.api = processes.fork("tests.faults.dying_api", [], name="api", **where)
        wait_for(lambda: answers(stack), "the API answers")
        with contextlib.suppress(httpx.TransportError):
            stack.http.post("/v1/jobs", json=spec)  # may or may not be answered before the process is dead
        wait_for(lambda: not stack.api.alive, "the API has killed itself")
    jobs = [row.id for row in stack.rows("SELECT id FROM jobs WHERE type = 'prune' ORDER BY id")]
    assert len(jobs) == count
    stack.start_api()
    stack.start_worker()
    stack.wait_ready()
    for job in jobs:
        stack.succeeded(job)
    assert_settled(stack, jobs)
    print(f"\n{stack.backend}: killed {count} times between commit and publish, {len(jobs)} jobs succeeded")


@counted(4, 1000)
def test_the_broker_emptied_under_queued_jobs(stack: Stack, count: int) -> None:
    jobs = [stack.submit(tiny(stack)) for _ in range(count)]
    wait_for(lambda: stack.rows("SELECT count(*) FROM outbox")[0][0] == 0, "all are published")
    stack.empty_broker()
    for _ in range(2 if count > 100 else 1):
        stack.start_worker()
    for job in jobs:
        stack.succeeded(job)
    assert_settled(stack, jobs)
    print(f"\n{stack.backend}: broker emptied, {count} of {count} jobs succeeded")


@counted(None, 100)
def test_every_message_sent_ten_times(stack: Stack, count: int) -> None:
    jobs = [stack.submit(tiny(stack)) for _ in range(count)]
    code = "import sys; from pared.state.queue import enqueue; [enqueue(job) for job in sys.argv[1:] for _ in range(9)]"
    done = stack.python(code, *jobs)
    assert done.returncode == 0, done.stderr
    stack.start_worker()
    stack.start_worker()
    for job in jobs:
        stack.succeeded(job)
    assert_settled(stack, jobs)
    print(f"\n{stack.backend}: {count} jobs sent ten times, each ran once")


# -- the API ------------------------------------------------------------------------------------


@counted(3, 20)
def test_the_api_killed_in_mid_upload(stack: Stack, count: int) -> None:
    size = 32 << 20
    block = random.Random(0).randbytes(1 << 20)
    objects = stack.data / "objects"

    def whole() -> set[Path]:
        return {path for path in objects.rglob("*") if path.is_file() and path.parts[-3:-2] == ("sha256",)}

    before = whole()
    for _ in range(count):
        stop_at = random.randrange(1 << 20, size - len(block))
        reached = threading.Event()

        def body(stop_at: int = stop_at, reached: threading.Event = reached) -> Iterator[bytes]:
            for sent in range(0, size, len(block)):
                if sent >= stop_at:
                    reached.set()
                    time.sleep(0.2)
                yield block

        thread = threading.Thread(target=upload_until_broken, args=(stack, body))
        thread.start()
        assert reached.wait(30)
        stack.api.kill()
        thread.join(120)
        stack.start_api()
        stack.wait_ready(need_worker=False)
        assert stack.get("/v1/models")["data"] == [], "no half upload is visible"
        assert whole() == before
    sent = b"".join([block] * 32)
    model = stack.post_model(sent, "whole.pt").json()
    assert model["sha256"] == hashlib.sha256(sent).hexdigest()
    assert model["size_bytes"] == size
    print(f"\n{stack.backend}: API killed {count} times in mid-upload, nothing half was visible")


def upload_until_broken(stack: Stack, body: Any) -> None:
    with contextlib.suppress(httpx.TransportError):
        httpx.post(f"{stack.url}/v1/models", params={"filename": "half.pt"}, content=body(), timeout=30)


# -- cancelling ---------------------------------------------------------------------------------


@counted(4, 1000, limit_s=14_400)
def test_cancels_raced_against_completion(stack: Stack, count: int) -> None:
    spec = tiny(stack)
    stack.start_worker()  # one: the next job is posted when this one has ended
    stack.succeeded(stack.submit(spec))
    started = time.monotonic()
    stack.succeeded(stack.submit(spec))
    usual_s = time.monotonic() - started
    jobs, answers = [], {202: 0, 409: 0}
    for _ in range(count):
        job = stack.submit(spec)
        time.sleep(random.uniform(0.7, 1.4) * usual_s)  # the race is the subject: around the moment of completion
        answer = stack.http.post(f"/v1/jobs/{job}/cancel")
        answers[answer.status_code] += 1
        status = stack.ended(job)["status"]
        assert status == {202: "canceled", 409: "succeeded"}[answer.status_code]
        jobs.append(job)
    assert_settled(stack, jobs)
    print(f"\n{stack.backend}: {count} cancels raced against completion: {answers}")
