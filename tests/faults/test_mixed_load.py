"""Everything at once for half an hour: load, processes of every kind that die, a disk that fills; counted.

One API and one worker are left alone, and their memory has to stay what it is; of another API and another worker each
process is killed in turn. `PARED_CAMPAIGN_MINUTES` says how long it takes.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.faults.test_faults import assert_settled, tiny, training
from tests.support.campaign import size_of
from tests.support.models import zoo
from tests.support.processes import Process, Processes, wait_for
from tests.support.servers import free_port
from tests.support.small_disk import SmallDisk, small_disk
from tests.support.stack import ENDED, PARED, Stack, new_stack

KINDS = ("api", "worker", "pool", "server", "child")
"""Of a worker: the process that takes messages, the one that works, the one that forks children, and a child."""
FULL_S = 10.0
GROWTH = 1.1


class Load:
    """Clients that do what people do, at whichever API answers."""

    def __init__(self, stack: Stack, urls: list[str], done: threading.Event) -> None:
        self.stack, self.urls, self.done = stack, urls, done
        self.jobs: list[str] = []
        self.answers: Counter[str] = Counter()
        self.look_s: list[float] = []
        self.problems: list[str] = []
        self.specs = [tiny(stack), training(stack, 3, samples=500)]

    def client(self, seed: int) -> None:
        """One client, until the time is over."""
        chance = random.Random(seed)
        acts: list[Callable[[httpx.Client, random.Random], None]] = [
            self.submit, self.submit, self.look, self.look, self.look, self.list, self.cancel, self.upload, self.follow,
            self.download,
        ]  # fmt: skip
        clients = [httpx.Client(base_url=url, timeout=30) for url in self.urls]
        while not self.done.is_set():
            # The API that is left alone answers all that is timed.
            http = clients[0] if chance.random() < 0.7 else clients[1]
            try:
                chance.choice(acts)(http, chance)
            except httpx.TransportError as error:
                self.answers[f"no answer: {type(error).__name__}"] += 1
                if http is clients[0] and not isinstance(error, httpx.TimeoutException):
                    self.problems.append(f"the API that was left alone: {error!r}")
            self.done.wait(chance.uniform(0.1, 0.5))
        for http in clients:
            http.close()

    def count(self, what: str, answer: httpx.Response) -> httpx.Response:
        self.answers[f"{what} {answer.status_code}"] += 1
        if answer.status_code >= 500 and answer.status_code not in (503, 507):
            self.problems.append(f"{what}: {answer.status_code} {answer.text[:300]}")
        return answer

    def submit(self, http: httpx.Client, chance: random.Random) -> None:
        key = {"Idempotency-Key": f"{chance.getrandbits(64):x}"}
        spec = chance.choices(self.specs, [4, 1])[0]
        for _ in range(2):  # and once more, as a client whose answer was lost
            answer = self.count("submit", http.post("/v1/jobs", json=spec, headers=key))
        if answer.status_code == 202:
            self.jobs.append(answer.json()["id"])

    def look(self, http: httpx.Client, chance: random.Random) -> None:
        if self.jobs:
            job = chance.choice(self.jobs)
            began = time.monotonic()
            answer = self.count("look", http.get(f"/v1/jobs/{job}"))
            if str(http.base_url).rstrip("/") == self.urls[0] and answer.status_code == 200:
                self.look_s.append(time.monotonic() - began)

    def list(self, http: httpx.Client, chance: random.Random) -> None:
        self.count("list", http.get("/v1/jobs", params={"limit": 50}))

    def cancel(self, http: httpx.Client, chance: random.Random) -> None:
        if self.jobs and chance.random() < 0.5:
            self.count("cancel", http.post(f"/v1/jobs/{chance.choice(self.jobs[-5:])}/cancel"))

    def upload(self, http: httpx.Client, chance: random.Random) -> None:
        content = zoo.upload("mlp", "scripted")
        name = f"{chance.getrandbits(64):x}.pt"
        answer = self.count("upload", http.post("/v1/models", params={"filename": name}, content=content))
        if answer.status_code == 201 and chance.random() < 0.5:
            self.count("delete", http.delete(f"/v1/models/{answer.json()['id']}"))

    def follow(self, http: httpx.Client, chance: random.Random) -> None:
        if self.jobs:
            job = chance.choice(self.jobs[-10:])
            with http.stream("GET", f"/v1/jobs/{job}/events") as answer:
                self.answers[f"follow {answer.status_code}"] += 1
                for line in itertools.islice(answer.iter_lines(), 20):
                    if self.done.is_set() or line.startswith("event: done"):
                        break

    def download(self, http: httpx.Client, chance: random.Random) -> None:
        if self.jobs:
            job = chance.choice(self.jobs)
            self.count("download", http.get(f"/v1/jobs/{job}/artifacts/model.pt"))


class Killer:
    """Kills one process after the other, each kind in turn, and starts again what no longer runs."""

    def __init__(self, stack: Stack, api: Callable[[], Process], done: threading.Event) -> None:
        self.stack, self.start_api, self.done = stack, api, done
        self.api, self.worker = api(), stack.start_worker()
        self.killed: Counter[str] = Counter()

    def run(self, every_s: float) -> None:
        for kind in itertools.cycle(KINDS):
            if self.done.wait(every_s):
                return
            while (victim := self._find(kind)) is None:  # it has yet to start, or has no job
                if self.done.wait(0.2):
                    return
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                self.killed[kind] += 1
            time.sleep(0.5)
            if not self.api.alive:
                self.api = self.start_api()
            if not self.worker.alive:
                self.worker = self.stack.start_worker()

    def _find(self, kind: str) -> psutil.Process | None:
        if kind == "api":
            return self.api.psutil if self.api.alive else None
        tree = self.worker.tree()
        place = KINDS.index(kind) - 1
        return tree[place] if len(tree) > place else None


class Memory:
    """What processes have for themselves, twice a second."""

    def __init__(self, api: Process, worker: Process, done: threading.Event) -> None:
        self.api, self.worker, self.done = api, worker, done
        self.samples: dict[str, list[tuple[float, int]]] = defaultdict(list)

    def run(self) -> None:
        began = time.monotonic()
        while not self.done.wait(0.5):
            named = dict(zip(("worker", "pool", "server"), self.worker.tree()[:3], strict=False))
            for name, process in {"api": self.api.psutil, **named}.items():
                with contextlib.suppress(psutil.Error):
                    self.samples[name].append((time.monotonic() - began, process.memory_full_info().uss))

    def thirds(self, seconds: float) -> dict[str, tuple[float, float]]:
        """Process -> the median of the first and of the last third, in MB."""

        def median(name: str, low: float, high: float) -> float:
            return statistics.median(size for at, size in self.samples[name] if low <= at <= high) / 1e6

        return {name: (median(name, 0, seconds / 3), median(name, 2 * seconds / 3, seconds)) for name in self.samples}


def kept_full_once(disk: SmallDisk, seconds: float, done: threading.Event) -> None:
    if not done.wait(seconds * 0.4):
        disk.fill_for(FULL_S)


@pytest.mark.campaign
@pytest.mark.timeout(5400)
def test_mixed_load_with_kills_and_a_full_disk_loses_nothing_and_grows_nothing(
    processes: Processes, scratch: Path
) -> None:
    seconds = 60.0 * size_of("MINUTES", 30)
    with small_disk(scratch / "mixed load", 1024) as disk:
        # A child that is killed is a crash of its job: the same job may be hit more than twice.
        settings = {"max_attempts": "20", "max_waiting_jobs": "0", "max_requests_per_s": "0"}
        stack = new_stack(disk.folder / "stack", processes, workers=1, **settings)
        other = free_port()

        def second_api() -> Process:
            env = stack.env | {"PARED_PORT": str(other)}
            log = stack.folder / "api2.log"
            return processes.start([PARED, "api"], name="api2", log=log, cwd=stack.folder, env=env)

        done = threading.Event()
        load = Load(stack, [stack.url, f"http://127.0.0.1:{other}"], done)
        stack.succeeded(stack.submit(load.specs[1]))
        killer = Killer(stack, second_api, done)
        memory = Memory(stack.api, stack.workers[0], done)
        with ThreadPoolExecutor() as pool:
            running = [pool.submit(load.client, seed) for seed in range(4)]
            running.append(pool.submit(killer.run, max(3.0, seconds / 120)))
            running.append(pool.submit(memory.run))
            running.append(pool.submit(kept_full_once, disk, seconds, done))
            wait(running, timeout=seconds, return_when=FIRST_EXCEPTION)
            done.set()
            for each in running:
                each.result()

        def unfinished() -> list[Any]:
            ended = ", ".join(f"'{status}'" for status in ENDED)
            return stack.rows(f"SELECT id FROM jobs WHERE status NOT IN ({ended})")

        wait_for(lambda: not unfinished(), "every job has ended", max(600.0, seconds))
        jobs = [row.id for row in stack.rows("SELECT id FROM jobs WHERE type = 'prune'")]
        how = Counter(stack.job_row(job).status for job in jobs)
        assert set(load.jobs) <= set(jobs), "what was accepted is there"
        wait_for(lambda: stack.rows("SELECT count(*) FROM outbox")[0][0] == 0, "no message is owed")
        assert_settled(stack, jobs, once=False)
        assert "0 findings" in stack.run("fsck")
        thirds = memory.thirds(seconds)
        look = statistics.quantiles(load.look_s, n=1000, method="inclusive")
        print(f"\n{seconds / 60:.0f} minutes of mixed load: {len(jobs)} jobs, {dict(how)}; {dict(load.answers)}")
        print(f"killed: {dict(killer.killed)}; disk full for {FULL_S:.0f} s")
        print(
            f"GET of a job, {len(load.look_s)} times: {look[499]:.3f} s (p50), {look[989]:.3f} s (p99), "
            f"{look[998]:.3f} s (p99.9), {max(load.look_s):.3f} s (most)"
        )
        told = {name: f"{first:.1f} → {last:.1f}" for name, (first, last) in thirds.items()}
        print(f"private memory of the processes that were left alone, first and last third, in MB: {told}")
        stack.stop()
        killer.api.kill()
    assert not load.problems, load.problems[:5]
    assert set(killer.killed) == set(KINDS)
    assert how["failed"] == 0
    for name, (first, last) in thirds.items():
        assert last <= GROWTH * first, f"{name} grew from {first:.1f} to {last:.1f} MB"
