"""Two owners, one of whom floods the service, counted: what the other waits for beside what it takes alone."""

from __future__ import annotations

import io
import statistics
from typing import Any

import httpx
import pytest
import torch

from pared.state.keys import create_key
from pared.state.session import make_engine, make_sessions
from tests.support.campaign import counted
from tests.support.models import zoo
from tests.support.processes import PATIENCE_S, Processes, wait_for
from tests.support.stack import ENDED, Stack, new_stack


@pytest.fixture(params=["embedded", pytest.param("servers", marks=pytest.mark.campaign)])
def stack(request: pytest.FixtureRequest, processes: Processes, scratch: Any) -> Any:
    servers = request.getfixturevalue("servers") if request.param == "servers" else None
    settings = {"require_keys": "true", "inspect_time_s": "20"}
    started = new_stack(scratch / "turns", processes, servers, workers=2, **settings)
    yield started
    started.stop()


class User:
    """Somebody with a key, and a model to prune."""

    def __init__(self, stack: Stack, name: str) -> None:
        url = stack.env.get("PARED_DATABASE_URL") or f"sqlite:///{stack.data / 'pared.db'}"
        self.stack = stack
        secret = create_key(make_sessions(make_engine(url)), name)
        self.http = httpx.Client(base_url=stack.url, headers={"x-api-key": secret}, timeout=60)
        self.model, _ = self.upload(zoo.upload("mlp", "scripted"), wait=True)

    def upload(self, content: bytes, *, wait: bool, name: str = "m.pt") -> tuple[str, float]:
        """A model, and how long its inspection took."""
        answer = self.http.post("/v1/models", params={"filename": name}, content=content)
        assert answer.status_code == 201, answer.text
        model = answer.json()["id"]
        if wait:
            wait_for(lambda: self.http.get(f"/v1/models/{model}").json()["status"] != "inspecting", "inspected")
            find = "SELECT created_at, finished_at FROM jobs WHERE type = 'inspect' AND CAST(spec AS TEXT) LIKE :model"
            [job] = self.stack.rows(find, model=f"%{model}%")
            return model, job.finished_at - job.created_at
        return model, 0.0

    def submit(self) -> str:
        spec = {
            "type": "prune",
            "model": self.model,
            "example_inputs": [{"shape": [2, 16]}],
            "granularity": "weight",
            "amount": 0.5,
        }
        answer = self.http.post("/v1/jobs", json=spec)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def run(self) -> tuple[float, float]:
        """Seconds until a job starts, and until it has ended."""
        job = self.submit()
        wait_for(lambda: self.stack.job_row(job).status in ENDED, f"{job} has ended", PATIENCE_S)
        row = self.stack.job_row(job)
        assert row.status == "succeeded", row.error
        return row.started_at - row.created_at, row.finished_at - row.created_at


@counted(8, 300)
def test_another_owners_job_starts_as_if_nobody_flooded_the_service(stack: Stack, count: int, looping: bytes) -> None:
    ann, bob = User(stack, "ann"), User(stack, "bob")
    times = 2 if count < 100 else 20
    alone = [bob.run() for _ in range(times)]
    _, inspected_alone = bob.upload(zoo.upload("mlp", "scripted"), wait=True, name="alone.pt")

    for number in range(6):
        ann.upload(looping, wait=False, name=f"loop{number}.pt")
    flood = [ann.submit() for _ in range(count)]
    wait_for(lambda: stack.rows("SELECT 1 FROM jobs WHERE status = 'running' AND type = 'prune'"), "ann's jobs run")
    flooded = [bob.run() for _ in range(times)]
    _, inspected = bob.upload(zoo.upload("mlp", "scripted"), wait=True, name="flooded.pt")
    waiting = sum(stack.job_row(job).status == "queued" for job in flood)

    starts, takes = (statistics.median(each[index] for each in alone) for index in (0, 1))
    started, worst = statistics.median(each[0] for each in flooded), max(each[0] for each in flooded)
    print(
        f"{count} jobs and 6 looping uploads of another owner, {waiting} still waiting: a job started after "
        f"{started:.2f} s (at most {worst:.2f} s), alone after {starts:.2f} s of {takes:.2f} s; "
        f"an upload was inspected after {inspected:.2f} s, alone after {inspected_alone:.2f} s ({stack.backend})"
    )
    assert waiting > 0, "it was flooded all the time"
    # Beside a job of half a second it is messages and polls that take time, and not anybody's turn.
    assert started <= max(1.5 * takes, 3.0)
    assert inspected < 15, "while each of the loops goes on for 20 s"


@pytest.fixture(scope="module")
def looping() -> bytes:
    """A model whose forward never ends."""

    class Loops(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            while bool((x < torch.inf).any()):
                x = x * 0.5
            return self.layer(x)

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Loops()), buffer)
    return buffer.getvalue()
