"""From POST to running, from POST to the result, and what a job takes beyond a library call for the same work."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from results import machine, table, trained_digits, write_section
from services import BACKENDS, WORK, Backends, Service
from torch import nn

MOST_MS = {"embedded": 150, "servers": 100}
MOST_S, MOST_SHARE, MOST_MORE_S = 1.5, 0.03, 1.0
CHANNELS = {"type": "prune", "granularity": "channel", "amount": 0.5}
_LIBRARY = """
import json, sys, time
imported = time.monotonic()
from pared.compression import prune
began = time.monotonic()
result = prune(sys.argv[1], sys.argv[2], directory=sys.argv[3], **json.loads(sys.argv[4]))
ended = time.monotonic()
print(json.dumps({"import": began - imported, "call": ended - began}))
"""


class Job(NamedTuple):
    """Milliseconds of a job since its POST was sent."""

    running: float
    ended: float
    result: float
    """When its client had its report."""
    seconds: dict[str, float]
    """Of its stages, as its report says."""


def measure(on: Backends, small_jobs: int, epochs: int, rounds: int) -> None:
    """Measure, print, and write the section `service-times`."""
    files = trained_digits(WORK)
    mlp = small_mlp(files)
    small, overhead, notes = [], [], []
    for backend in on.chosen:
        with on.running(backend) as service:
            model, data = (
                service.upload("models", files / "digits_cnn.pt"),
                service.upload("datasets", files / "digits.npz"),
            )
            smallest = CHANNELS | {"model": service.upload("models", mlp), "example_inputs": [{"shape": [2, 64]}]}
            digits = CHANNELS | {"model": model, "dataset": data, "retrain": None}
            for name, spec in (("an MLP, without data", smallest), ("the digits CNN and its data", digits)):
                jobs = [ran(service, spec) for _ in range(small_jobs // 2)]
                small.append([BACKENDS[backend], name, *_cells(jobs, MOST_MS[backend])])
                print(*small[-1], sep="\t", flush=True)
                stages = {key: statistics.median(job.seconds[key] for job in jobs) for key in jobs[0].seconds}
                named = ", ".join(f"{key} {1e3 * value:.0f}" for key, value in stages.items())
                notes.append(f"{name} on {BACKENDS[backend]}: {named}")
            training = {
                "amount": 0.5,
                "granularity": "channel",
                "retrain": {"epochs": epochs, "lr": 0.02, "patience": epochs},
            }
            overhead.append([BACKENDS[backend], *_beside_library(service, model, data, files, training, rounds)])
            print(*overhead[-1], sep="\t", flush=True)
    first = ["state in", "smallest job", "POST → running, p50 ms", "goal", "p95", "POST → result, p50 s", "goal", "p95"]
    second = ["state in", "library call, s", "job, s", "more, s", "goal", "met"]
    text = (
        "## A job's time\n\n"
        f"{table(first, small)}\n\n"
        f"{small_jobs // 2} jobs of each kind, one at a time; each prunes half of the channels. *Running* is when a "
        "worker has claimed the job, *result* when the client has its report, of which the latency of both models at "
        f"batches of 1 and 32 is a part. Milliseconds of the stages, medians: {'; '.join(notes)}.\n\n"
        f"{table(second, overhead)}\n\n"
        f"The digits CNN pruned and retrained for {epochs} epochs, by `pared.compression.prune` in a fresh process and "
        f"by a job, in turns: medians of {rounds}, and the range. The call has its threads wait as a job's do; "
        "the import of the library is not counted, though its user waits for that too. "
        f"The goal is {MOST_SHARE:.0%} and {MOST_MORE_S:g} s more. {machine()}, load "
        f"{os.getloadavg()[0]:.0f} at the end.\n\n`python benchmarks/service_jobs.py times`"
    )
    write_section("service-times", text)


def ran(service: Service, spec: dict[str, Any]) -> Job:
    """Post a job, wait for it and read its report."""
    began = time.time()
    job = service.submit(spec)
    row = service.ended(job)
    report = service.http.get(f"/v1/jobs/{job}/report", headers={"Accept": "application/json"}).raise_for_status()
    result = time.time() - began
    started, finished = (datetime.fromisoformat(row[name]).timestamp() for name in ("started_at", "finished_at"))
    return Job(1e3 * (started - began), 1e3 * (finished - began), 1e3 * result, report.json()["seconds"])


def _beside_library(
    service: Service, model: str, data: str, files: Path, fields: dict[str, Any], rounds: int
) -> list[str]:
    calls, imports, jobs, folder = [], [], [], service.folder
    for number in range(rounds):
        command = [sys.executable, "-P", "-c", _LIBRARY, str(files / "digits_cnn.pt"), str(files / "digits.npz")]
        command += [str(folder / f"library-{number}"), json.dumps(fields)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=_plain()).stdout
        taken = json.loads(printed.splitlines()[-1])
        calls.append(taken["call"])
        imports.append(taken["import"])
        jobs.append(ran(service, {"type": "prune", "model": model, "dataset": data, **fields}).result / 1e3)
    call, job = statistics.median(calls), statistics.median(jobs)
    goal = MOST_SHARE * call + MOST_MORE_S
    print(f"library {calls} (import {imports}), job {jobs}", flush=True)
    return [_range(calls), _range(jobs), f"{job - call:+.2f}", f"{goal:.2f}", "yes" if job - call <= goal else "**no**"]


def _plain() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARED_")}
    # As in a job's process: threads that spin while they wait make the same work many times longer on busy cores.
    return kept | {"GOMP_SPINCOUNT": "2000"}


def _cells(jobs: list[Job], most_ms: float) -> list[str]:
    running, result = sorted(job.running for job in jobs), sorted(job.result / 1e3 for job in jobs)
    late = int(0.95 * (len(jobs) - 1))
    return [
        f"{statistics.median(running):.0f}",
        f"{most_ms}",
        f"{running[late]:.0f}",
        f"{statistics.median(result):.2f}",
        f"{MOST_S}",
        f"{result[late]:.2f}",
    ]


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def small_mlp(folder: Path) -> Path:
    """A scripted MLP of 64 inputs, in the folder."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    path = folder / "mlp.pt"
    torch.jit.script(model.eval()).save(str(path))
    return path
