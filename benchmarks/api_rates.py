"""How many requests a second the API answers, beside a route of FastAPI that says the same few bytes each time.

The constant route is an app of one route, served by uvicorn as it comes: what the framework itself takes. The API reads
the database for each answer. Both are asked by the same clients in turns, in the same run; a ratio is the median of
the turns' own. Polls are of jobs that have ended, one job a client, and of jobs that wait. `python api_rates.py [JOBS]`
with at most so many jobs in the database (a million), on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from http_load import rate
from results import machine, table, write_section
from sqlalchemy import func, insert, select, text

sys.path.insert(0, str(Path(__file__).parents[1]))

from pared.state.session import make_engine, make_sessions, migrate
from pared.state.settings import Settings
from pared.state.tables import Artifact, Job, Model
from tests.support.processes import Processes
from tests.support.servers import Servers, free_port

CLIENTS, SECONDS, ROUNDS, FEW, OWNER = 16, 2.0, 3, 100, "local"
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
    with tempfile.TemporaryDirectory(prefix="pared-rates-") as name, closing(Processes()) as processes:
        folder = Path(name)
        folder.chmod(0o755)
        for backend in ("SQLite", "PostgreSQL"):
            url = ""
            if backend == "PostgreSQL":
                (folder / "servers").mkdir()
                servers = Servers(folder / "servers", processes)
                url = servers.new_database()
            measured: dict[int, dict[str, Any]] = {}
            for jobs in (FEW, most):
                measured[jobs] = measure(folder / backend, url, jobs)
                for what, figures in measured[jobs].items():
                    rows.append(row_of(backend, jobs, what, figures))
                    print(*rows[-1], sep=" | ", flush=True)
            rows.append(row_of(backend, most, "submit", submits(folder / backend, url)))
            print(*rows[-1], sep=" | ", flush=True)
            for what in TARGETS:
                share = measured[most][what]["ratio"] / measured[FEW][what]["ratio"]
                flat.append(f"{backend}, {what}: {share:.2f}")
    how = (
        f"{machine()}; {CLIENTS} clients on connections that stay open, {ROUNDS} rounds of {SECONDS:g} s each. Ratios "
        "are to a constant route of FastAPI in the same round (median, least to most); by CPU: its processor time for "
        "an answer by the API's. Targets: polls 0.5, lists 0.25, 304 answers 0.7; 200 submits a second."
    )
    header = ["backend", "jobs", "what", "a second", "p50 ms", "p99 ms", "CPU µs", "ratio", "by CPU"]
    flatness = f"Ratio with {most:,} jobs by the ratio with {FEW}: {'; '.join(flat)}."
    section = "\n\n".join(["## Requests a second", how, table(header, rows), flatness])
    write_section("requests a second", section)


def row_of(backend: str, jobs: int, what: str, figures: dict[str, Any]) -> list[str]:
    """A row of the table."""
    ratio = f"{figures['ratio']:.2f} ({figures['least']:.2f} to {figures['most']:.2f})" if "ratio" in figures else ""
    of_cpu = f"{figures['cpu_ratio']:.2f}" if "cpu_ratio" in figures else ""
    counts = [
        f"{figures[name]:,.{1 if name.endswith('ms') else 0}f}" for name in ("per_s", "p50_ms", "p99_ms", "cpu_us")
    ]
    return [backend, f"{jobs:,}", what, *counts, ratio, of_cpu]


def measure(data: Path, url: str, jobs: int) -> dict[str, Any]:
    """All rates with so many jobs in the database."""
    settings = settings_of(data, url)
    migrate(settings)
    ids = fill(settings, jobs)
    with serving(settings) as (port, server), constant() as (constant_port, constant_server):
        paths = [{"path": f"/v1/jobs/{job}"} for job in ids["ended"]]
        tags = [httpx.get(f"http://127.0.0.1:{port}{each['path']}").headers["etag"] for each in paths]
        asked = {
            "poll": paths,
            "poll of a job that waits": [{"path": f"/v1/jobs/{job}"} for job in ids["queued"]],
            "304": [each | {"headers": {"If-None-Match": tag}} for each, tag in zip(paths, tags, strict=True)],
            "list of 20": [{"path": f"/v1/jobs?limit=20&status=succeeded&after={job}"} for job in ids["ended"]],
        }
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
        for _ in range(ROUNDS):
            beside = timed(constant_server, constant_port, [{"path": "/constant"}])
            for name, requests in asked.items():
                figures = timed(server, port, requests)
                assert set(figures["statuses"]) == {"304" if name == "304" else "200"}, figures
                ratios = {
                    "ratio": figures["per_s"] / beside["per_s"],
                    "cpu_ratio": beside["cpu_us"] / figures["cpu_us"],
                }
                seen[name].append(figures | ratios)
    return {name: summary(each) for name, each in seen.items()}


def settings_of(data: Path, url: str) -> Settings:
    """Those of an API whose clients may send as much as they like."""
    return Settings(data_dir=data, database_url=url, max_waiting_jobs=0, max_requests_per_s=0)


def timed(
    server: psutil.Process, port: int, requests: list[dict[str, Any]], seconds: float = SECONDS
) -> dict[str, Any]:
    """Rates and latencies, and the processor time that the server took for an answer."""
    before = server.cpu_times()
    figures = rate(port, requests, clients=CLIENTS, seconds=seconds)
    after = server.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return figures | {"cpu_us": 1e6 * cpu_s / sum(figures["statuses"].values())}


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Of the rounds of one kind of request."""
    ratios = [each["ratio"] for each in rounds]
    names = ("per_s", "p50_ms", "p99_ms", "cpu_us", "cpu_ratio")
    medians = {name: statistics.median(each[name] for each in rounds) for name in names}
    return medians | {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def submits(data: Path, url: str) -> dict[str, Any]:
    """Jobs that are posted, each in the database with what is owed to the broker before its 202 was sent."""
    settings = settings_of(data, url)
    sessions = make_sessions(make_engine(settings.effective_database_url))
    body = json.dumps({"type": "prune", "model": model(0)["id"], "amount": 0.5, "retrain": None})
    request = {"path": "/v1/jobs", "method": "POST", "headers": {"Content-Type": "application/json"}, "body": body}

    def waiting() -> int:
        with sessions() as session:
            return session.scalar(select(func.count()).where(Job.status == "queued")) or 0

    before = waiting()
    with serving(settings) as (port, server):
        figures = timed(server, port, [request], seconds=10.0)
    assert set(figures["statuses"]) == {"202"}, figures
    assert waiting() - before >= figures["statuses"]["202"]
    sessions.engine.dispose()
    return figures


def fill(settings: Settings, jobs: int) -> dict[str, Any]:
    """Have so many jobs that have ended, and a few that wait."""
    engine = make_engine(settings.effective_database_url)
    now = time.time()
    with engine.execution_options(pared_writes=True).begin() as connection:
        have = connection.scalar(select(func.count()).select_from(Job).where(Job.status == "succeeded")) or 0
        for begin in range(have, jobs, 10_000):
            numbers = range(begin, min(begin + 10_000, jobs))
            connection.execute(insert(Job), [ended(number, now) for number in numbers])
            connection.execute(insert(Artifact), [artifact(number, now) for number in numbers])
        if not have:
            connection.execute(insert(Job), [waiting(number, now) for number in range(CLIENTS)])
            connection.execute(insert(Model), [model(now)])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("analyze"))
    engine.dispose()
    last = [key(number) for number in range(jobs - CLIENTS, jobs)]
    return {"ended": last, "queued": [key(number, "Q") for number in range(CLIENTS)], "model": model(now)["id"]}


def key(number: int, kind: str = "0") -> str:
    """A job's id: later ones come after earlier ones."""
    return f"job_01K{kind}{number:022d}"


def ended(number: int, now: float) -> dict[str, Any]:
    """A row of a job that has succeeded."""
    times = {"created_at": now - 60, "updated_at": now, "started_at": now - 50, "finished_at": now}
    return {
        "id": key(number), "owner": OWNER, "type": "prune", "status": "succeeded", "spec": SPEC, "attempt": 1,
        "progress": PROGRESS, "outcome": OUTCOME, "sandbox": "standard", "result_bytes": 100_000, **times,
    }  # fmt: skip


def waiting(number: int, now: float) -> dict[str, Any]:
    """A row of a job that waits."""
    times = {"created_at": now, "updated_at": now, "run_after": now + 1e6}
    return {"id": key(number, "Q"), "owner": OWNER, "type": "prune", "status": "queued", "spec": SPEC, **times}


def artifact(number: int, now: float) -> dict[str, Any]:
    """A row of a result's file."""
    return {
        "id": f"art_01K0{number:022d}", "job_id": key(number), "name": "model.pt", "media_type": "application/zip",
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
def serving(settings: Settings) -> Iterator[tuple[int, psutil.Process]]:
    """An API process with these settings, and its port."""
    port = free_port()
    env = {"PARED_DATA_DIR": str(settings.data_dir), "PARED_PORT": str(port)}
    env |= {"PARED_MAX_REQUESTS_PER_S": "0", "PARED_MAX_WAITING_JOBS": "0"}
    if settings.database_url:
        env["PARED_DATABASE_URL"] = settings.database_url
    with ready([sys.executable, "-P", "-m", "pared", "api"], env, f"http://127.0.0.1:{port}/healthz") as process:
        yield port, process


@contextmanager
def constant() -> Iterator[tuple[int, psutil.Process]]:
    """The process of an app of one route, and its port."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "constant_route:app", "--port", str(port), "--no-access-log"]
    command += ["--loop", "asyncio", "--http", "httptools", "--log-level", "warning"]
    with ready(command, {"PYTHONPATH": str(Path(__file__).parent)}, f"http://127.0.0.1:{port}/constant") as process:
        yield port, process


@contextmanager
def ready(command: list[str], env: dict[str, str], url: str) -> Iterator[psutil.Process]:
    """A process that answers at this address."""
    process = subprocess.Popen(command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                httpx.get(url).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        else:
            raise RuntimeError(f"{command} does not answer")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
