"""Everything at once for half an hour: load, processes of every kind that die, a disk that fills; counted.

One API and one worker are left alone, and their memory has to stay what it is. Beside them `pared up` runs another API
and another worker, of which each process is killed in turn, as are the supervisor itself and the servers that all
share. A process that was started again is not compared: those of its kind that were left alone are.
`PARED_CAMPAIGN_MINUTES` says how long it takes.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
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
from tests.faults.test_outages import servers
from tests.support.campaign import size_of
from tests.support.models import zoo
from tests.support.processes import Process, Processes, wait_for
from tests.support.servers import Servers, free_port
from tests.support.small_disk import SmallDisk, small_disk
from tests.support.stack import ENDED, PARED, Stack, new_stack
from worker.child_processes import memory_bytes

__all__ = ["servers"]

OF_WORKER = ("worker", "pool", "server", "child")
"""The process that takes messages, the one that works, the one that forks children, and a child."""
KINDS = ("supervisor", "api", *OF_WORKER)
SERVERS = ("redis", "postgres")
CLIENTS = 8
FULL_S = 10.0
GROWTH = 1.1
WAITING = 30
"""Jobs that may wait before clients send no more: what a process holds for each is not the subject."""


class Load:
    """Clients that do what people do, at whichever API answers."""

    def __init__(self, stack: Stack, urls: list[str], done: threading.Event) -> None:
        self.stack, self.urls, self.done = stack, urls, done
        self.lock = threading.Lock()
        self.specs = [tiny(stack), training(stack, 3, samples=500)]
        self.jobs = [stack.submit(self.specs[1])]
        self.keys: set[str] = set()
        self.canceled: set[str] = set()
        self.uploads: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.waiting = 0
        self.answers: Counter[str] = Counter()
        self.look_s: list[float] = []
        self.problems: list[str] = []
        stack.succeeded(self.jobs[0])

    def client(self, seed: int) -> None:
        """One client, until the time is over."""
        chance = random.Random(seed)
        acts: list[Callable[[httpx.Client, random.Random], None]] = [
            self.submit, self.submit, self.look, self.list, self.cancel, self.upload, self.follow, self.download,
            self.poll,
        ]  # fmt: skip
        clients = [httpx.Client(base_url=url, timeout=30) for url in self.urls]
        while not self.done.is_set():
            http = clients[0] if chance.random() < 0.7 else clients[1]
            act = chance.choice(acts)
            try:
                act(http, chance)
            except httpx.TransportError as error:
                self.told(f"no answer: {type(error).__name__}")
                if http is clients[0]:
                    self.problems.append(f"{act.__name__}, the API that was left alone: {error!r}")
            self.done.wait(chance.uniform(0.1, 0.5))
        for http in clients:
            http.close()

    def looker(self) -> None:
        """Looks at jobs, a few times a second, at the API that is left alone, and takes the time of that."""
        chance = random.Random(0)
        with httpx.Client(base_url=self.urls[0], timeout=30) as http:
            while not self.done.wait(0.2):
                began = time.monotonic()
                self.look(http, chance)
                self.look_s.append(time.monotonic() - began)

    def told(self, what: str) -> None:
        with self.lock:
            self.answers[what] += 1

    def count(self, what: str, answer: httpx.Response) -> httpx.Response:
        self.told(f"{what} {answer.status_code}")
        if answer.status_code >= 500 and answer.status_code not in (503, 507):
            self.problems.append(f"{what}: {answer.status_code} {answer.text[:300]}")
        return answer

    def submit(self, http: httpx.Client, chance: random.Random) -> None:
        if self.waiting >= WAITING:
            return
        key = f"{chance.getrandbits(64):x}"
        self.keys.add(key)
        spec = chance.choices(self.specs, [4, 1])[0]
        accepted = set()
        for _ in range(2):  # and once more, as a client whose answer was lost
            answer = self.count("submit", http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": key}))
            if answer.status_code == 202 and (job := answer.json()["id"]) not in accepted:
                accepted.add(job)
                self.jobs.append(job)
        if len(accepted) > 1:
            self.problems.append(f"one request became {accepted}")

    def look(self, http: httpx.Client, chance: random.Random) -> None:
        job = chance.choice(self.jobs)
        if self.count("look", http.get(f"/v1/jobs/{job}")).status_code == 404:
            self.problems.append(f"{job} is not there")

    def poll(self, http: httpx.Client, chance: random.Random) -> None:
        path = f"/v1/jobs/{chance.choice(self.jobs[-20:])}"
        self.count("poll", http.get(path, headers={"Prefer": "wait=3"}))

    def list(self, http: httpx.Client, chance: random.Random) -> None:
        answer = self.count("list", http.get("/v1/jobs", params={"limit": 50, "status": "queued"}))
        if answer.status_code == 200:
            self.waiting = len(answer.json()["data"])

    def cancel(self, http: httpx.Client, chance: random.Random) -> None:
        if chance.random() < 0.5:
            job = chance.choice(self.jobs[-5:])
            if self.count("cancel", http.post(f"/v1/jobs/{job}/cancel")).status_code == 202:
                self.canceled.add(job)

    def upload(self, http: httpx.Client, chance: random.Random) -> None:
        name = f"{chance.getrandbits(64):x}"
        if chance.random() < 0.5:
            where, content = "models", zoo.upload("mlp", "scripted")
        else:
            where, content = "datasets", zoo.npz(*zoo.images(1, 4)(200, chance.getrandbits(30)))
        path = f"/v1/{where}"
        answer = self.count("upload", http.post(path, params={"filename": f"{name}.pt"}, content=content))
        if answer.status_code not in (200, 201):
            return
        one = f"{path}/{answer.json()['id']}"
        self.uploads[one] = hashlib.sha256(content).hexdigest()
        if where == "datasets" and chance.random() < 0.5:  # the same model is one for all who send it
            del self.uploads[one]  # whatever is answered, it may be gone
            if self.count("delete", http.delete(one)).status_code == 204:
                self.deleted.add(one)

    def follow(self, http: httpx.Client, chance: random.Random) -> None:
        job, last = chance.choice(self.jobs[-10:]), 0
        with http.stream("GET", f"/v1/jobs/{job}/events") as answer:
            self.told(f"follow {answer.status_code}")
            for line in itertools.islice(answer.iter_lines(), 40):
                if line.startswith("id: "):
                    number = int(line[4:])
                    if number <= last:
                        self.problems.append(f"events of {job}: {number} after {last}")
                    last = number
                if self.done.is_set() or line.startswith("event: done"):
                    break

    def download(self, http: httpx.Client, chance: random.Random) -> None:
        job = chance.choice(self.jobs)
        answer = self.count("download", http.get(f"/v1/jobs/{job}/artifacts/model.pt"))
        if answer.status_code == 200:
            digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
            if answer.headers["repr-digest"] != f"sha-256=:{digest}:":
                self.problems.append(f"{job}: {len(answer.content)} bytes of another digest")

    def assert_kept(self) -> Counter[str]:
        """What was accepted is there, once, and ended as was answered; how jobs ended."""
        rows = {row.id: row.status for row in self.stack.rows("SELECT id, status FROM jobs WHERE type = 'prune'")}
        assert set(self.jobs) <= set(rows), "what was accepted is there"
        assert len(rows) <= len(self.keys) + 1, "no request became two jobs"
        ended = {job: rows[job] for job in self.canceled if rows[job] != "canceled"}
        assert not ended, "a cancel that was answered 202 canceled"
        for path, sha256 in self.uploads.items():
            row = self.stack.get(path)
            assert (row["status"], row["sha256"]) == ("ready", sha256), f"{path}: {row['status']}, {row.get('reason')}"
        for path in self.deleted:
            assert self.stack.http.get(path).status_code == 404, path
        return Counter(rows.values())


class Killer:
    """Kills one process after the other, each kind in turn; the supervisor and the servers it starts again."""

    def __init__(
        self, stack: Stack, servers: Servers | None, start_up: Callable[[], Process], done: threading.Event
    ) -> None:
        self.servers, self.start_up, self.done = servers, start_up, done
        self.kinds = (*KINDS, *(SERVERS if servers else ()))
        self.up = start_up()
        self.killed: Counter[str] = Counter()
        self.problems: list[str] = []
        self.seen: set[psutil.Process] = set()

    def run(self, every_s: float) -> None:
        for kind in itertools.cycle(self.kinds):
            if self.done.wait(every_s):
                return
            while not self._struck(kind):  # it has yet to start, or has no job
                if self.done.wait(0.2):
                    return
            self.killed[kind] += 1

    def stop(self) -> None:
        """The supervisor ends as it should, and nothing is left of all that it ever started."""
        if (status := self.up.stop()) != 0:
            self.problems.append(f"the supervisor exited {status}")
        self._wait_until_gone(self.seen)

    def _struck(self, kind: str) -> bool:
        if kind in SERVERS:
            assert self.servers is not None
            _ = self.servers.restart_redis(1.0) if kind == "redis" else self.servers.crash_postgres()
            return True
        if not self.up.alive:
            self.problems.append(f"the supervisor ended by itself:\n{self.up.tail(20)}")
            self.up = self.start_up()
        self.seen.update(tree := self.up.tree())
        victim = tree[0] if kind == "supervisor" else self._find(kind)
        if victim is None:
            return False
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            return False
        if kind == "supervisor":
            self.up.popen.wait(10)
            self._wait_until_gone(set(tree))
            self.up = self.start_up()
        return True

    def _wait_until_gone(self, killed: set[psutil.Process]) -> None:
        _, left = psutil.wait_procs(killed, 60)
        self.problems += [f"outlived its supervisor: {process}" for process in left]

    def _find(self, kind: str) -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self.up.psutil.children():
                if process.cmdline()[-1:] == ["api"] and kind == "api":
                    return process
                if process.cmdline()[-1:] == ["worker"] and kind in OF_WORKER:
                    tree = [process, *process.children(recursive=True)]
                    place = OF_WORKER.index(kind)
                    return tree[place] if len(tree) > place else None
        return None


class Memory:
    """What processes hold, once a second, whether they share it with what they forked or not."""

    def __init__(self, api: Process, worker: Process, done: threading.Event) -> None:
        self.api, self.worker, self.done = api, worker, done
        self.samples: dict[str, list[tuple[float, int]]] = defaultdict(list)

    def run(self) -> None:
        began = time.monotonic()
        while not self.done.wait(1.0):
            named = dict(zip(OF_WORKER[:3], self.worker.tree()[:3], strict=False))
            for name, process in {"api": self.api.psutil, **named}.items():
                if held := memory_bytes(process.pid):
                    self.samples[name].append((time.monotonic() - began, held))

    def thirds(self, seconds: float) -> dict[str, tuple[float, float]]:
        """Process -> the median of the first and of the last third, in MB."""

        def median(name: str, low: float, high: float) -> float:
            return statistics.median(size for at, size in self.samples[name] if low <= at <= high) / 1e6

        return {name: (median(name, 0, seconds / 3), median(name, 2 * seconds / 3, seconds)) for name in self.samples}


def kept_full_once(disk: SmallDisk, seconds: float, done: threading.Event) -> None:
    if not done.wait(seconds * 0.4):
        disk.fill_for(FULL_S)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("backend", ["embedded", "servers"])
def test_mixed_load_with_kills_and_a_full_disk_loses_nothing_and_grows_nothing(
    backend: str, request: pytest.FixtureRequest, processes: Processes, scratch: Path
) -> None:
    minutes = size_of("MINUTES", 30)
    seconds = 60.0 * minutes
    used: Servers | None = request.getfixturevalue("servers") if backend == "servers" else None
    with small_disk(scratch / f"mixed load, {backend}", 1024) as disk:
        # A child that is killed is a crash of its job: the same job may be hit more than twice.
        settings = {"max_attempts": "20", "max_waiting_jobs": "0", "max_requests_per_s": "0"}
        stack = new_stack(disk.folder / "stack", processes, used, workers=0, **settings)
        # Not forked from the tests' own process: they would hold what that has loaded too.
        stack.api.kill()
        own = {"log": stack.folder / "alone.log", "cwd": stack.folder, "env": stack.env}
        stack.api = processes.start([PARED, "api"], name="api", **own)
        stack.workers = [processes.start([PARED, "worker"], name="worker", **own)]
        stack.wait_ready()
        other = free_port()

        def start_up() -> Process:
            command = [PARED, "up", "--port", str(other), "--data", str(stack.data)]
            return processes.start(command, name="up", log=stack.folder / "up.log", cwd=stack.folder, env=stack.env)

        done = threading.Event()
        load = Load(stack, [stack.url, f"http://127.0.0.1:{other}"], done)
        killer = Killer(stack, used, start_up, done)
        memory = Memory(stack.api, stack.workers[0], done)
        with ThreadPoolExecutor(CLIENTS + 4) as pool:
            running = [pool.submit(load.client, seed) for seed in range(CLIENTS)]
            running.append(pool.submit(load.looker))
            running.append(pool.submit(killer.run, max(3.0, seconds / 120)))
            running.append(pool.submit(memory.run))
            running.append(pool.submit(kept_full_once, disk, seconds, done))
            wait(running, timeout=seconds, return_when=FIRST_EXCEPTION)
            done.set()
            for each in running:
                each.result()

        def unfinished() -> list[Any]:
            ended = ", ".join(f"'{status}'" for status in ENDED)
            return stack.rows(f"SELECT id, type, status FROM jobs WHERE status NOT IN ({ended})")

        wait_for(lambda: not unfinished(), "every job has ended", max(600.0, seconds))
        wait_for(lambda: stack.rows("SELECT count(*) FROM outbox")[0][0] == 0, "no message is owed")
        how = load.assert_kept()
        assert_settled(stack, [row.id for row in stack.rows("SELECT id FROM jobs WHERE type = 'prune'")], once=False)
        assert "0 findings" in stack.run("fsck")
        killer.stop()
        thirds = memory.thirds(seconds)
        look = statistics.quantiles(load.look_s, n=1000, method="inclusive")
        files = stack.rows("SELECT count(*) FROM artifacts")[0][0]
        flat = ", ".join(f"{name} {first:.1f} → {last:.1f}" for name, (first, last) in thirds.items())
        print(f"\n{dict(sorted(load.answers.items()))}")
        print(
            f"{backend}: {minutes} minutes of mixed load, {load.answers.total()} requests, killed: "
            f"{dict(killer.killed)}, disk full for {FULL_S:.0f} s: {how.total()} jobs ended once each, {dict(how)}, "
            f"{files} files and {len(load.uploads)} uploads whole; GET of a job, {len(load.look_s)} times: "
            f"{look[499]:.3f} s (p50), {look[989]:.3f} s (p99), {max(load.look_s):.3f} s (most); memory held by "
            f"what was left alone, first and last third, in MB: {flat}"
        )
        stack.stop()
    assert not load.problems, load.problems[:5]
    assert not killer.problems, killer.problems[:5]
    assert set(killer.killed) == set(killer.kinds)
    assert how["failed"] == 0
    for name, (first, last) in thirds.items():
        assert last <= GROWTH * first, f"{name} grew from {first:.1f} to {last:.1f} MB"
