"""Jobs of fifty clients on three workers that are killed one after the other, and two workers beside one."""

from __future__ import annotations

import itertools
import os
import random
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from results import machine, table, trained_digits, write_section
from service_times import CHANNELS, small_mlp
from services import BACKENDS, ENDED, WORK, Backends, Service
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.support.processes import WITHOUT_TLS

CLIENTS, WORKERS = 50, 3
KILLED_EVERY_S = 6.0
LEAST_SPEED = 1.8
SEPARABLE = 8
"""Jobs of the measurement of one worker and two; half of them a worker's."""
EPOCHS = 20
LOAD = {
    "PARED_MAX_WAITING_JOBS": "0",
    "PARED_MAX_REQUESTS_PER_S": "0",
    "PARED_THREADS": "1",
    # On cores that others use it is measured as long as may be: for each job the same, and for these jobs all there is.
    "PARED_LATENCY_S": "0.05",
}


def measure(on: Backends, jobs: int, rounds: int) -> None:
    """Measure, print, and write the section `service-load`."""
    files = trained_digits(WORK)
    many, speeds = [], []
    for backend in on.chosen:
        many.append([BACKENDS[backend], *_with_kills(on, backend, files, jobs)])
        print(*many[-1], sep="\t", flush=True)
        speeds.append([BACKENDS[backend], *_one_and_two(on, backend, files, rounds)])
        print(*speeds[-1], sep="\t", flush=True)
    first = [
        "state in", "jobs", "clients", "workers", "killed", "ended", "run again", "ended twice", "lost", "s",
        "jobs/s",
    ]  # fmt: skip
    second = ["state in", "one worker, s", "two workers, s", "speed of two", "goal", "met"]
    content = (
        "## Many jobs, and more workers\n\n"
        f"{table(first, many)}\n\n"
        f"{jobs} jobs that prune half of the channels of an MLP, of {CLIENTS} clients that send each request twice "
        "with one idempotency key and wait for the end. Every "
        f"{KILLED_EVERY_S:g} s or so one of {WORKERS} workers is killed, alone or with all that it started, and "
        "another one started. *Run again* are attempts beyond a job's first, for its worker was killed; each job has "
        "one end, one set of files that are whole, and one end in its events.\n\n"
        f"{table(second, speeds)}\n\n"
        f"{SEPARABLE} jobs that retrain the digits CNN for {EPOCHS} epochs, each on one thread, that wait when the "
        f"first is claimed: seconds until the last has ended, medians of {rounds} in turns. API, database and workers "
        f"share the cores. {machine()}, load {os.getloadavg()[0]:.0f} at the end.\n\n"
        "`python benchmarks/service_jobs.py many`"
    )
    write_section("service-load", content)


# -- kills --------------------------------------------------------------------------------------


def _with_kills(on: Backends, backend: str, files: Path, count: int) -> list[str]:
    with on.running(backend, workers=WORKERS, **LOAD) as service:
        model = service.upload("models", small_mlp(files))
        spec = CHANNELS | {"model": model, "example_inputs": [{"shape": [2, 64]}]}
        numbers, done, killed = itertools.count(), threading.Event(), Counter[str]()
        began = time.monotonic()
        killer = threading.Thread(target=_kill, args=(service, done, killed))
        killer.start()
        try:
            with ThreadPoolExecutor(CLIENTS) as pool:
                clients = [pool.submit(_client, service, spec, numbers, count) for _ in range(CLIENTS)]
            submitted = list(itertools.chain.from_iterable(client.result() for client in clients))
        finally:
            done.set()
            killer.join()
        taken = time.monotonic() - began
        rows = {row["id"]: row for row in _rows(service, "SELECT id, status, attempt FROM jobs WHERE type = 'prune'")}
        ends = Counter(row["job_id"] for row in _rows(service, "SELECT job_id FROM job_events WHERE kind = 'done'"))
        lost = [job for job in submitted if rows.get(job, {"status": None})["status"] != "succeeded"]
        twice = [job for job in rows if ends[job] > 1]
        if lost or twice or len(set(submitted)) != count or len(rows) != count:
            raise RuntimeError(f"{len(set(submitted))} of {count} sent, {len(rows)} kept, lost {lost}, twice {twice}")
        _check_files(service, submitted)
        again = sum(row["attempt"] - 1 for row in rows.values())
    kills = f"{killed.total()} ({killed['alone']} alone)"
    return [
        f"{count}", f"{CLIENTS}", f"{WORKERS}", kills, f"{len(rows)}", f"{again}", "0", "0", f"{taken:.0f}",
        f"{count / taken:.1f}",
    ]  # fmt: skip


def _client(service: Service, spec: dict[str, Any], numbers: itertools.count[int], count: int) -> list[str]:
    """Send jobs until there are enough, each request twice, and wait for each."""
    jobs = []
    with httpx.Client(base_url=service.url, timeout=120, verify=WITHOUT_TLS, trust_env=False) as http:
        while (number := next(numbers)) < count:
            key = {"Idempotency-Key": f"many-{number}"}
            sent = {http.post("/v1/jobs", json=spec, headers=key).raise_for_status().json()["id"] for _ in range(2)}
            if len(sent) != 1:
                raise RuntimeError(f"one request became {sent}")
            (job,) = sent
            while (
                http.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=30"}).raise_for_status().json()["status"]
                not in ENDED
            ):
                pass
            jobs.append(job)
    return jobs


def _kill(service: Service, done: threading.Event, killed: Counter[str]) -> None:
    """Kill a worker at a time that has begun a job, by turns with what it started or alone, and start another."""
    chance = random.Random(0)
    while not done.wait(KILLED_EVERY_S * chance.uniform(0.7, 1.3)):
        at_work = [place for place, worker in enumerate(service.workers) if worker.records(event="claimed")]
        if len(at_work) < 2:  # else a slow machine would only start workers
            continue
        place = chance.choice(at_work)
        alone = killed.total() % 2 == 1
        worker = service.workers[place]
        worker.kill_alone() if alone else worker.kill()
        killed["alone" if alone else "with its processes"] += 1
        service.workers[place] = service.start_worker(f"worker{WORKERS + killed.total()}")


def _check_files(service: Service, jobs: list[str]) -> None:
    """Every job has each of its files once, and it is there as its digest says."""
    for job in jobs:
        files = service.http.get(f"/v1/jobs/{job}/artifacts").raise_for_status().json()["data"]
        if not files or len({file["name"] for file in files}) < len(files):
            raise RuntimeError(f"{job} has the files {files}")
        for file in files:
            # The API hashes a file before it first hands it out.
            service.http.get(f"/v1/jobs/{job}/artifacts/{file['name']}").raise_for_status()


def _rows(service: Service, sql: str) -> list[dict[str, Any]]:
    data = service.environment["PARED_DATA_DIR"]
    url = service.environment.get("PARED_DATABASE_URL") or f"sqlite:///{data}/pared.db"
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return [dict(row) for row in connection.execute(text(sql)).mappings()]


# -- one worker and two -------------------------------------------------------------------------


def _one_and_two(on: Backends, backend: str, files: Path, rounds: int) -> list[str]:
    taken: dict[int, list[float]] = {1: [], 2: []}
    with on.running(backend, workers=1, **LOAD) as one, on.running(backend, workers=2, **LOAD) as two:
        specs = {1: (one, _training(one, files)), 2: (two, _training(two, files))}
        for service, spec in specs.values():  # what the first job of each worker loads is not the others'
            for job in [service.submit(spec) for _ in range(2)]:
                service.ended(job)
        for _ in range(rounds):
            for workers, (service, spec) in specs.items():
                began = time.monotonic()
                for job in [service.submit(spec) for _ in range(SEPARABLE)]:
                    service.ended(job)
                taken[workers].append(time.monotonic() - began)
    ratios = [first / second for first, second in zip(taken[1], taken[2], strict=True)]
    speed = statistics.median(ratios)
    cells = [f"{statistics.median(each):.1f} ({min(each):.1f}–{max(each):.1f})" for each in taken.values()]
    spread = f"{speed:.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    return [*cells, spread, f"{LEAST_SPEED}", "yes" if speed >= LEAST_SPEED else "**no**"]


def _training(service: Service, files: Path) -> dict[str, Any]:
    model = service.upload("models", files / "digits_cnn.pt")
    data = service.upload("datasets", files / "digits.npz")
    retrain = {"epochs": EPOCHS, "lr": 0.02, "patience": EPOCHS}
    return CHANNELS | {"model": model, "dataset": data, "retrain": retrain}
