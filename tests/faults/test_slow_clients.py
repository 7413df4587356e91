"""Clients that hold connections, streams and uploads, counted: others are answered as if there were none.

`make test` holds a few; `make campaign` as many as a server must bear.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pared.state.events import add_events
from pared.state.session import make_engine, make_sessions
from tests.support.processes import Processes, meanwhile, wait_for
from tests.support.servers import Servers
from tests.support.stack import PARED, Stack, new_stack


@dataclass(frozen=True)
class Held:
    """What is held at once, and how often another client asks meanwhile."""

    idle: int
    streams: int
    uploads: int
    asks: int
    percent: int
    within_ms: float


FEW = Held(idle=200, streams=50, uploads=5, asks=60, percent=90, within_ms=1000)  # beside other tests
MANY = Held(idle=2000, streams=500, uploads=50, asks=1000, percent=99, within_ms=100)


@pytest.fixture(params=["embedded", pytest.param("servers", marks=pytest.mark.campaign)])
def stack(request: pytest.FixtureRequest, processes: Processes, scratch: Path) -> Iterator[Stack]:
    """An API alone: nobody runs the jobs, so that their streams stay open."""
    servers: Servers | None = request.getfixturevalue("servers") if request.param == "servers" else None
    started = new_stack(scratch / "slow", processes, servers, workers=0)
    yield started
    started.stop()


class Holder(threading.Thread):
    """Holds connections on each of which one thing was sent; one that the server ends is opened again."""

    def __init__(self, port: int, wanted: list[bytes]) -> None:
        super().__init__(daemon=True)
        self._port, self._waiting, self._selector = port, list(wanted), selectors.DefaultSelector()
        self._stopped = threading.Event()
        self.wanted, self.opened, self.held, self.received, self.ended = len(wanted), 0, 0, 0, Counter[bytes]()

    def run(self) -> None:
        while not self._stopped.is_set():
            for sent in self._waiting[:50]:
                del self._waiting[0]
                connection = socket.create_connection(("127.0.0.1", self._port), timeout=30)
                connection.sendall(sent)
                connection.setblocking(False)
                self._selector.register(connection, selectors.EVENT_READ, sent)
                self.opened += 1
                self.held += 1
            for key, _ in self._selector.select(0 if self._waiting else 0.05):
                self._read(key)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()

    def _read(self, key: selectors.SelectorKey) -> None:
        with contextlib.suppress(ConnectionError):
            if received := key.fileobj.recv(1 << 20):
                self.received += received.count(b"event: log")
                if received.startswith(b"HTTP/1.1 ") and not received.startswith(b"HTTP/1.1 200"):
                    self.ended[received[9:12]] += 1
                return
        self._selector.unregister(key.fileobj)
        key.fileobj.close()
        self._waiting.append(key.data)
        self.held -= 1

    def stop(self) -> None:
        self._stopped.set()
        self.join(60)


@pytest.mark.parametrize(
    "held",
    [
        pytest.param(FEW, id="few"),
        pytest.param(MANY, id="many", marks=[pytest.mark.campaign, pytest.mark.timeout(900)]),
    ],
)
def test_slow_clients_hold_up_nobody(stack: Stack, held: Held) -> None:
    model = stack.upload_model(b"never opened", "m.pt")
    jobs = [stack.submit({"type": "prune", "model": model, "amount": 0.5}) for _ in range(20)]
    path = f"/v1/jobs/{jobs[0]}"
    alone = asked(stack, path, held.asks)
    host = f"HTTP/1.1\r\nHost: 127.0.0.1:{stack.port}\r\n"
    follow = [f"GET /v1/jobs/{jobs[n % len(jobs)]}/events {host}\r\n".encode() for n in range(held.streams)]
    upload = f"POST /v1/models?filename=stalled.pt {host}Content-Length: 1000000\r\n\r\nthe first bytes".encode()
    holder = Holder(stack.port, [f"GET /healthz {host}X-A: ".encode()] * held.idle + follow + [upload] * held.uploads)
    holder.start()
    try:
        wait_for(lambda: holder.held == holder.wanted, "all are held")
        with talking(stack, jobs):
            among = asked(stack, path, held.asks)
            wait_for(lambda: holder.received >= held.streams, "the streams are fed meanwhile")
        assert holder.held > 0.9 * holder.wanted, "they were held all the while"
    finally:
        holder.stop()
    print(
        f"\n{stack.backend}: GET of a job, p50 and p99 of {held.asks}: alone {told(alone)}; beside {held.idle} "
        f"unfinished requests, {held.streams} streams and {held.uploads} stalled uploads {told(among)}; "
        f"{holder.received} events were streamed; ended by the server: {dict(holder.ended)}"
    )
    assert percentile(among, held.percent) <= held.within_ms
    # What was stalled leaves nothing behind, and those who come next find all places free.
    wait_for(lambda: stack.get("/healthz"), "it answers")


def asked(stack: Stack, path: str, times: int) -> list[float]:
    """Milliseconds of so many requests, spread over a few seconds."""
    taken = []
    with httpx.Client(base_url=stack.url, timeout=60) as other:
        for _ in range(times):
            began = time.perf_counter()
            assert other.get(path).status_code == 200
            taken.append((time.perf_counter() - began) * 1000)
            time.sleep(0.01)
    return taken


def percentile(taken: list[float], percent: int) -> float:
    return statistics.quantiles(taken, n=100, method="inclusive")[percent - 1]


def told(taken: list[float]) -> str:
    return f"{statistics.median(taken):.1f} and {percentile(taken, 99):.1f} ms"


@contextlib.contextmanager
def talking(stack: Stack, jobs: list[str]) -> Iterator[None]:
    """Each job says something every second, as while it trains."""
    engine = make_engine(stack.env.get("PARED_DATABASE_URL") or f"sqlite:///{stack.data / 'pared.db'}")
    sessions = make_sessions(engine)

    def talk() -> None:
        jobs.append(jobs.pop(0))
        with sessions.begin() as session:
            add_events(session, jobs[0], [("log", {"text": "on and on"})])

    try:
        with meanwhile(talk, every_s=1 / len(jobs)):
            yield
    finally:
        engine.dispose()


FEW_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_more_connections_than_files_stop_neither_answers_nor_fill_the_log(stack: Stack) -> None:
    stack.api.kill()
    stack.start_api([sys.executable, "-c", FEW_FILES, PARED, "api"])
    stack.wait_ready(need_worker=False)
    before = stack.api.log.stat().st_size
    holder = Holder(stack.port, [b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: "] * 400)
    holder.start()
    try:
        wait_for(lambda: holder.opened >= holder.wanted, "all were opened")
        for _ in range(5):
            assert httpx.get(f"{stack.url}/healthz", timeout=60).status_code == 200
    finally:
        holder.stop()
    grown = stack.api.log.stat().st_size - before
    print(f"\n{stack.backend}: 400 connections at 200 files: the log grew by {grown:,} bytes")
    assert grown < 100_000
