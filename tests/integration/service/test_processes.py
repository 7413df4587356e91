"""Several processes serve the API at one port: as real processes, which are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import WITHOUT_TLS, Processes, wait_for
from tests.support.stack import Stack


class OneEach:
    """A client of one process each, by connections that stay open."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.clients: dict[int, httpx.Client] = {}

    def connect(self) -> dict[int, httpx.Client]:
        """Until each living process has one."""
        living = {child.pid: child for child in self._stack.api.psutil.children()}
        for pid in self.clients.keys() - living.keys():
            self.clients.pop(pid).close()
        for _ in range(500):
            if self.clients.keys() >= living.keys():
                return self.clients
            client = httpx.Client(base_url=self._stack.url, timeout=60, verify=WITHOUT_TLS)
            stream = client.get("/healthz").extensions["network_stream"]
            port = stream.get_extra_info("client_addr")[1]
            owners = [pid for pid, child in living.items() if port in _peers(child)]
            if len(owners) == 1 and owners[0] not in self.clients:
                self.clients[owners[0]] = client
            else:
                client.close()
        raise AssertionError(f"of {list(living)}, only {list(self.clients)} take connections")


def _peers(process: psutil.Process) -> set[int]:
    with suppress(psutil.NoSuchProcess):
        return {each.raddr.port for each in process.net_connections("tcp") if each.raddr}
    return set()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Stack:
    folder = tmp_path_factory.mktemp("two")
    return Stack(folder, processes, workers=0, settings={"PARED_API_PROCESSES": "2"})


def counts(client: httpx.Client) -> tuple[float, float]:
    """Requests of `/healthz`, and open streams."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    requests = [
        sample.value
        for sample in samples
        if sample.name == "pared_http_requests_total" and sample.labels["route"] == "/healthz"
    ]
    (streams,) = (sample.value for sample in samples if sample.name == "pared_open_streams")
    return sum(requests), streams


def test_requests_go_to_both_and_numbers_are_of_both_also_after_one_was_killed(two: Stack) -> None:
    served = OneEach(two)
    first, second = served.connect().values()
    wait_for(lambda: counts(first) == counts(second), "both say the same")
    before, _ = counts(first)
    for client in (first, second, first):
        assert client.get("/healthz").status_code == 200
    for client in (first, second):
        wait_for(lambda of=client: counts(of)[0] == before + 3, "each says the sum", limit_s=20)

    # One takes the upload, the other the job; what one is asked of, the other tells.
    model = first.post("/v1/models", params={"filename": "m.pt"}, content=b"a model").json()["id"]
    job = second.post("/v1/jobs", json={"type": "prune", "model": model, "amount": 0.5}).json()["id"]
    with first.stream("GET", f"/v1/jobs/{job}/events") as stream:
        lines = stream.iter_lines()
        next(lines)
        assert counts(second)[1] == 1
        assert second.post(f"/v1/jobs/{job}/cancel").status_code in {200, 202}
        assert "canceled" in "".join(lines)
    wait_for(lambda: counts(second)[1] == 0, "no stream is open")
    assert second.get(f"/v1/jobs/{job}").json()["status"] == "canceled"

    killed = min(served.clients)
    kept = served.clients[max(served.clients)]
    os.kill(killed, signal.SIGKILL)
    assert kept.get("/healthz").status_code == 200
    wait_for(lambda: len(_serving(two, without=killed)) == 2, "another one takes its place")
    assert counts(kept)[0] >= before + 4, "what the one that died had counted stays"
    of_both = served.connect()
    assert killed not in of_both
    sums = {counts(client)[0] for client in of_both.values()}
    assert len(sums) == 1
    for client in of_both.values():
        client.get("/healthz")
    for client in of_both.values():
        wait_for(lambda of=client: counts(of)[0] == max(sums) + 2, "each goes on with the sum", limit_s=20)


def _serving(stack: Stack, without: int) -> list[int]:
    started = stack.api.log.read_text().count("Application startup complete")
    pids = [child.pid for child in stack.api.psutil.children() if child.pid != without]
    return pids if started >= 3 else []


def test_nothing_outlives_a_supervisor_that_is_killed_and_the_next_one_clears_up(two: Stack) -> None:
    children = two.api.psutil.children()
    assert len(children) == 2
    two.api.kill_alone()
    wait_for(lambda: not any(_lives(child) for child in children), "they are gone")
    kept = two.data / "api-processes"
    (left,) = kept.iterdir()
    two.start_api()
    two.wait_ready(need_worker=False)
    (now,) = kept.iterdir()
    assert now != left
    children = two.api.psutil.children()
    assert two.api.stop() == 0
    assert not any(_lives(child) for child in children)
    assert not list(kept.iterdir())


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def test_what_cannot_start_ends_and_says_why(two: Stack) -> None:
    def ended(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "pared", "api"]
        return subprocess.run(command, env=two.env | env, cwd=two.folder, capture_output=True, text=True, timeout=120)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = ended({"PARED_PORT": str(taken.getsockname()[1])})
    assert refused.returncode == 1
    assert "cannot be used: Address already in use" in refused.stderr
    failed = ended({"PARED_FAILPOINTS": "no such thing"})
    assert failed.returncode == 1
    assert "started again" not in failed.stdout
