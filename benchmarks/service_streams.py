"""What open event streams cost while nothing happens."""

from __future__ import annotations

import os
import select
import socket
import time

import psutil
from results import machine, table, write_section
from services import BACKENDS, Backends, Service, cpu_seconds

MOST_SHARE = 0.10
SECONDS = 10.0
SETTLED_S = 3.0
"""After the last stream was opened, before its cost is measured."""
SPEC = {"type": "prune", "dataset": "builtin:digits", "amount": 0.5}


def measure(on: Backends, streams: int) -> None:
    """Measure, print, and write the section `service-streams`."""
    rows = []
    for backend in on.chosen:
        # No worker: the jobs wait, and nothing happens to them.
        limits = {"PARED_MAX_WAITING_JOBS": "0", "PARED_MAX_REQUESTS_PER_S": "0"}
        with on.running(backend, workers=0, **limits) as service:
            jobs = _waiting_jobs(service, streams)
            without = _share(on, service)
            for label, followed in ((f"{streams} of one job", jobs[:1] * streams), (f"{streams}, a job each", jobs)):
                sockets = [_opened(service.port, job) for job in followed]
                with_them = _share(on, service, sockets)
                for each in sockets:
                    each.close()
                time.sleep(SETTLED_S)  # until the API has seen that
                (api, server), (api_before, server_before) = with_them, without
                more = api + server - api_before - server_before
                met = "yes" if more <= MOST_SHARE else "**no**"
                rows.append([
                    BACKENDS[backend], label, f"{api_before:.1%}", f"{api:.1%}", f"{server_before:.1%}",
                    f"{server:.1%}", f"{more:.1%}", met,
                ])  # fmt: skip
                print(*rows[-1], sep="\t", flush=True)
    header = ["state in", "open streams", "API before", "API", "PostgreSQL before", "PostgreSQL", "more", "met"]
    text = (
        f"## Event streams while nothing happens\n\n{table(header, rows)}\n\n"
        f"Processor time as a share of one core, over {SECONDS:.0f} s, of the API and of PostgreSQL, with no stream "
        f"and with so many, each read by a socket of its own; the jobs wait, for there is no worker. The goal is at "
        f"most {MOST_SHARE:.0%} more. {machine()}, load {os.getloadavg()[0]:.0f} at the end.\n\n"
        "`python benchmarks/service_jobs.py streams`"
    )
    write_section("service-streams", text)


def _waiting_jobs(service: Service, count: int) -> list[str]:
    content = b"not looked at, for there is no worker"
    answer = service.http.post("/v1/models", params={"filename": "model.pt"}, content=content)
    spec = SPEC | {"model": answer.raise_for_status().json()["id"]}
    return [service.submit(spec) for _ in range(count)]


def _opened(port: int, job: str) -> socket.socket:
    """A connection on which the job's event stream comes."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    begins = connection.recv(1 << 16)
    if not begins.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"a stream was answered {begins[:200]!r}")
    return connection


def _share(on: Backends, service: Service, sockets: list[socket.socket] | None = None) -> tuple[float, float]:
    """Of one core that the API, and that the database's server, use."""
    sockets = sockets or []
    _read_for(SETTLED_S, sockets)
    database = on.server_processes(service.backend)  # a process for each connection
    before, began = _used(service, database), time.monotonic()
    _read_for(SECONDS, sockets)
    taken = time.monotonic() - began
    api, server = (after - first for after, first in zip(_used(service, database), before, strict=True))
    return api / taken, server / taken


def _used(service: Service, database: list[psutil.Process]) -> tuple[float, float]:
    return cpu_seconds(service.api.tree()), cpu_seconds(database)


def _read_for(seconds: float, sockets: list[socket.socket]) -> None:
    """Take what comes, which is a comment now and then."""
    poll = select.poll()
    for each in sockets:
        poll.register(each, select.POLLIN)
    found = {each.fileno(): each for each in sockets}
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        for fd, _ in poll.poll(1000 * left):
            if not found[fd].recv(1 << 16):
                raise RuntimeError("a stream has ended")
