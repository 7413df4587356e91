"""How many requests a second the API answers, beside a route of FastAPI that says the same few bytes each time.

The constant route is an app of one route, served by uvicorn as it comes: what the framework itself takes. The API reads
the database for each answer. Both are asked by the same clients in turns, in the same run; a ratio is the median of
the turns' own. Polls are of jobs that have ended, one job a client, with a key and without one, and of jobs that wait.
Meanwhile another job's progress is written ten times a second, as a worker does: an API that reads nothing again while
nothing changes must not be measured where nothing does. `python api_rates.py [JOBS]` with at most so many jobs in the
database (a million), on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from http_load import rate
from results import machine, table, write_section
from services import BACKENDS, Backends, Service, backends
from sqlalchemy import Engine, func, insert, select, text, update

from pared.state.keys import caller_of, create_key
from pared.state.session import make_engine, make_sessions
from pared.state.settings import Settings
from pared.state.tables import Artifact, Job, Model
from tests.support.processes import meanwhile, wait_for
from tests.support.servers import free_port

Server = tuple[psutil.Process, int]
"""A process, and the port that it answers at."""
CLIENTS, SECONDS, ROUNDS, FEW, OWNER, WRITES_A_S = 16, 2.0, 3, 100, "local", 10
TARGETS = {"poll": 0.5, "list of 20": 0.25, "304": 0.7}
SPEC = {
    "type": "prune",
    "model": "mdl_00000000000000000000000000",
    "dataset": "dst_00000000000000000000000000",
    "amount": 0.5,
    "granularity": "channel",
    "retrain": {"epochs": 10, "batch_size": 64, "lr": 0.01},
}
PROGRESS = {"fraction": 1.0, "epoch": 10, "epochs": 10, "eta_s": 0.0}
OUTCOME = {
    "verdict": "1.9 times smaller and 1.6 times as fast, at 0.1 points less accuracy (98.1 % instead of 98.2 %).",
    "failed_outputs": [],
}


def main(most: int) -> None:
    """Run both backends at both sizes, print the figures and write them down."""
    rows: list[list[str]] = []
    flat: list[str] = []
    limits = {"PARED_MAX_REQUESTS_PER_S": "0", "PARED_MAX_WAITING_JOBS": "0"}  # clients may send as much as they like
    with backends() as on, constant(on) as beside:
        for backend in on.chosen:
            name = BACKENDS[backend]
            with on.running(backend, workers=0, **limits) as service:
                engine = engine_of(service)
                measured, keyed = {}, keyed_polls(engine)
                for jobs in (FEW, most):
                    ids = fill(engine, jobs)
                    with written_by_others(engine):
                        measured[jobs] = measure(service, beside, ids, keyed)
                    for what, figures in measured[jobs].items():
                        rows.append(row_of(name, jobs, what, figures))
                        print(*rows[-1], sep=" | ", flush=True)
                rows.append(row_of(name, most, "submit", submits(service, engine)))
                print(*rows[-1], sep=" | ", flush=True)
                engine.dispose()
            for what in TARGETS:
                share = measured[most][what]["ratio"] / measured[FEW][what]["ratio"]
                flat.append(f"{name}, {what}: {share:.2f}")
    how = (
        f"{machine()}; {CLIENTS} clients on connections that stay open, {ROUNDS} rounds of {SECONDS:g} s each, while "
        f"another job's progress is written {WRITES_A_S} times a second. Ratios are to a constant route of FastAPI in "
        "the same round (median, least to most); by CPU: its processor time for "
        "an answer by the API's. Targets: polls 0.5, lists 0.25, 304 answers 0.7; 200 submits a second."
    )
    header = ["backend", "jobs", "what", "a second", "p50 ms", "p99 ms", "CPU µs", "ratio", "by CPU"]
    flatness = f"Ratio with {most:,} jobs by the ratio with {FEW}: {'; '.join(flat)}."
    section = "\n\n".join(["## Requests a second", how, table(header, rows), flatness])
    write_section("requests a second", section)


@contextmanager
def written_by_others(engine: Engine) -> Iterator[None]:
    """Have the progress of a job that nobody polls written, over and over."""
    fraction = itertools.count()

    def write() -> None:
        with engine.execution_options(pared_writes=True).begin() as connection:
            progress = PROGRESS | {"fraction": next(fraction) % 1000 / 1000}
            connection.execute(update(Job).where(Job.id == job_id(CLIENTS, "Q")).values(progress=progress))

    with meanwhile(write, every_s=1 / WRITES_A_S):
        yield


def row_of(backend: str, jobs: int, what: str, figures: dict[str, Any]) -> list[str]:
    """A row of the table."""
    ratio = f"{figures['ratio']:.2f} ({figures['least']:.2f} to {figures['most']:.2f})" if "ratio" in figures else ""
    of_cpu = f"{figures['cpu_ratio']:.2f}" if "cpu_ratio" in figures else ""
    counts = [
        f"{figures[name]:,.{1 if name.endswith('ms') else 0}f}" for name in ("per_s", "p50_ms", "p99_ms", "cpu_us")
    ]
    return [backend, f"{jobs:,}", what, *counts, ratio, of_cpu]


def engine_of(service: Service) -> Engine:
    """The database of a service."""
    url = service.environment.get("PARED_DATABASE_URL", "")
    return make_engine(Settings(data_dir=service.folder / "data", database_url=url).effective_database_url)


def measure(service: Service, beside: Server, ids: dict[str, list[str]], keyed: list[dict[str, Any]]) -> dict[str, Any]:
    """All rates with the jobs that are there."""
    api = (psutil.Process(service.api.popen.pid), service.port)
    paths = [{"path": f"/v1/jobs/{job}"} for job in ids["ended"]]
    tags = [service.http.get(each["path"]).headers["etag"] for each in paths]
    asked = {
        "poll": paths,
        "poll with a key": keyed,
        "poll of a job that waits": [{"path": f"/v1/jobs/{job}"} for job in ids["queued"]],
        "304": [each | {"headers": {"If-None-Match": tag}} for each, tag in zip(paths, tags, strict=True)],
        "list of 20": [{"path": f"/v1/jobs?limit=20&status=succeeded&after={job}"} for job in ids["ended"]],
    }
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
    for _ in range(ROUNDS):
        constant_route = timed(beside, [{"path": "/constant"}])
        for name, requests in asked.items():
            figures = timed(api, requests)
            assert set(figures["statuses"]) == {"304" if name == "304" else "200"}, figures
            figures["ratio"] = figures["per_s"] / constant_route["per_s"]
            figures["cpu_ratio"] = constant_route["cpu_us"] / figures["cpu_us"]
            seen[name].append(figures)
    return {name: summary(each) for name, each in seen.items()}


def timed(server: Server, requests: list[dict[str, Any]], seconds: float = SECONDS) -> dict[str, Any]:
    """Rates and latencies, and the processor time that the server took for an answer."""
    process, port = server
    before = process.cpu_times()
    figures = rate(port, requests, clients=CLIENTS, seconds=seconds)
    after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return figures | {"cpu_us": 1e6 * cpu_s / sum(figures["statuses"].values())}


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Of the rounds of one kind of request."""
    ratios = [each["ratio"] for each in rounds]
    names = ("per_s", "p50_ms", "p99_ms", "cpu_us", "cpu_ratio")
    medians = {name: statistics.median(each[name] for each in rounds) for name in names}
    return medians | {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def submits(service: Service, engine: Engine) -> dict[str, Any]:
    """Jobs that are posted, each in the database with what is owed to the broker before its 202 was sent."""
    body = json.dumps({"type": "prune", "model": model(0)["id"], "amount": 0.5, "retrain": None})
    request = {"path": "/v1/jobs", "method": "POST", "headers": {"Content-Type": "application/json"}, "body": body}
    before = count(engine, "queued")
    figures = timed((psutil.Process(service.api.popen.pid), service.port), [request], seconds=10.0)
    assert set(figures["statuses"]) == {"202"}, figures
    assert count(engine, "queued") - before >= figures["statuses"]["202"]
    return figures


def count(engine: Engine, status: str) -> int:
    """How many jobs of who comes without a key have it."""
    with engine.connect() as connection:
        of_them = select(func.count()).select_from(Job).where(Job.status == status, Job.owner == OWNER)
        return connection.scalar(of_them) or 0


def fill(engine: Engine, jobs: int) -> dict[str, list[str]]:
    """Have so many jobs that have ended, and a few that wait. Returns the ids of the last ones of both."""
    now, writing = time.time(), engine.execution_options(pared_writes=True)
    have = count(engine, "succeeded")
    for begin in range(have, jobs, 10_000):
        numbers = range(begin, min(begin + 10_000, jobs))
        with writing.begin() as connection:
            connection.execute(insert(Job), [ended(number, now) for number in numbers])
            connection.execute(insert(Artifact), [artifact(number, now) for number in numbers])
    if not have:
        with writing.begin() as connection:
            connection.execute(insert(Job), [waiting(number, now) for number in range(CLIENTS + 1)])
            connection.execute(insert(Model), [model(now)])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("analyze"))
    last = [job_id(number) for number in range(jobs - CLIENTS, jobs)]
    return {"ended": last, "queued": [job_id(number, "Q") for number in range(CLIENTS)]}


def keyed_polls(engine: Engine) -> list[dict[str, Any]]:
    """Have an owner with a key, and a job for each client. Returns the polls of them."""
    sessions = make_sessions(engine)
    secret = create_key(sessions, "bench")
    owner, now = caller_of(sessions, secret).owner, time.time()
    with engine.execution_options(pared_writes=True).begin() as connection:
        jobs = [ended(number, now) | {"id": job_id(number, "K"), "owner": owner} for number in range(CLIENTS)]
        connection.execute(insert(Job), jobs)
    return [{"path": f"/v1/jobs/{job['id']}", "headers": {"Authorization": f"Bearer {secret}"}} for job in jobs]


def job_id(number: int, kind: str = "0") -> str:
    """A job's id: later ones come after earlier ones."""
    return f"job_01K{kind}{number:022d}"


def ended(number: int, now: float) -> dict[str, Any]:
    """A row of a job that has succeeded."""
    times = {"created_at": now - 60, "updated_at": now, "started_at": now - 50, "finished_at": now}
    return {
        "id": job_id(number), "owner": OWNER, "type": "prune", "status": "succeeded", "spec": SPEC, "attempt": 1,
        "progress": PROGRESS, "outcome": OUTCOME, "sandbox": "standard", "result_bytes": 100_000, **times,
    }  # fmt: skip


def waiting(number: int, now: float) -> dict[str, Any]:
    """A row of a job that waits."""
    times = {"created_at": now, "updated_at": now, "run_after": now + 1e6}
    return {"id": job_id(number, "Q"), "owner": OWNER, "type": "prune", "status": "queued", "spec": SPEC, **times}


def artifact(number: int, now: float) -> dict[str, Any]:
    """A row of a result's file."""
    return {
        "id": f"art_01K0{number:022d}", "job_id": job_id(number), "name": "model.pt", "media_type": "application/zip",
        "object_key": f"jobs/{number}", "size_bytes": 100_000, "sha256": f"{number:064x}", "created_at": now,
    }  # fmt: skip


def model(now: float) -> dict[str, Any]:
    """A row of an upload that was inspected."""
    return {
        "id": "mdl_01K00000000000000000000000", "owner": OWNER, "filename": "model.pt", "object_key": "sha256/00/0",
        "sha256": "0" * 64, "size_bytes": 100_000, "format": "torchscript", "status": "ready", "inspection": {},
        "created_at": now,
    }  # fmt: skip


@contextmanager
def constant(on: Backends) -> Iterator[Server]:
    """The process of an app of one route, and its port."""
    port, folder = free_port(), Path(__file__).parent
    command = [sys.executable, "-m", "uvicorn", "constant_route:app", "--port", str(port), "--no-access-log"]
    command += ["--loop", "asyncio", "--http", "httptools", "--log-level", "warning"]
    process = on.processes.start(command, name="constant", log=on.folder / "constant.log", cwd=folder)
    wait_for(lambda: _answers(f"http://127.0.0.1:{port}/constant"), "the constant route answers")
    yield psutil.Process(process.popen.pid), port
    process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
