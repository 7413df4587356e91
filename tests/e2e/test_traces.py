"""One trace leads from the request of a job to its files, and who collects traces can hold up nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.collector import Collector, Seen
from tests.support.models import zoo
from tests.support.processes import Processes, wait_for
from tests.support.receiver import Receiver
from tests.support.servers import Servers
from tests.support.stack import Stack, new_stack

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "secret-of-a-file-name"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(params=["embedded", "servers"])
def stack(request: pytest.FixtureRequest, processes: Processes, scratch: Path, collector: Collector) -> Iterator[Stack]:
    """A stack whose worker is killed once, after a child has ended well, as soon as the file `once` goes."""
    servers: Servers | None = request.getfixturevalue("servers") if request.param == "servers" else None
    once = scratch / f"once-{request.param}"
    once.touch()
    started = new_stack(
        scratch / f"traced-{request.param}",
        processes,
        servers,
        otlp_url=collector.url,
        failpoints=f"child.ended={once}",
        allow_private_webhooks="1",
        lease_s="5",
        sweep_s="1",
    )
    started.once = once
    yield started
    started.stop()


def test_a_trace_leads_from_the_request_over_every_attempt_to_the_end(stack: Stack, collector: Collector) -> None:
    receiver = Receiver()
    receiver.listen()
    stack.http.post("/v1/webhooks", json={"url": f"{receiver.url}/well"}).raise_for_status()
    model = stack.upload_model(zoo.upload("mlp", "scripted"), f"{SECRET}.pt")
    stack.inspected(model)
    spec = {"type": "prune", "model": model, "granularity": "weight", "amount": 0.5}
    spec |= {"example_inputs": [{"shape": [2, 16]}]}
    stack.once.unlink()
    job = stack.submit(spec, traceparent=f"00-{TRACE}-{CLIENT}-01")
    stack.succeeded(job)
    failing = stack.submit(spec | {"example_inputs": [{"shape": [2, 99]}]})
    assert stack.ended(failing)["status"] == "failed"
    wait_for(lambda: any(span.name == "webhook" for span in collector.of_trace(TRACE)), "the notice is traced")

    def settled() -> list[Seen] | None:
        spans = collector.of_trace(TRACE)
        return spans if [span.name for span in spans].count("attempt") == 2 else None

    spans = wait_for(settled, "both attempts are traced")
    named: dict[str, list[Seen]] = {}
    for span in spans:
        named.setdefault(span.name, []).append(span)

    [posted] = named["POST /v1/jobs"]
    assert (posted.service, posted.kind, posted.parent) == ("pared-api", "SERVER", CLIENT)
    expected = {"http.route": "/v1/jobs", "http.response.status_code": 202, "pared.job.id": job}
    assert expected.items() <= posted.attributes.items()

    lost, good = named["attempt"]
    assert [span.attributes["pared.attempt"] for span in (lost, good)] == [1, 2]
    assert (lost.failed, lost.attributes["error.type"]) == (True, "worker-lost")
    assert (good.failed, good.attributes["pared.ending"], good.service) == (False, "Succeeded", "pared-worker")
    assert ":" in good.attributes["pared.worker"]
    assert len(named["queued"]) == 2
    for span in [*named["attempt"], *named["queued"], *named["webhook"]]:
        assert span.parent == posted.id
        assert span.attributes["pared.job.id"] == job
    for before, after in zip(named["queued"], named["attempt"], strict=True):
        assert before.end_s == pytest.approx(after.start_s, abs=0.6)
    assert posted.start_s <= lost.start_s < lost.end_s <= good.start_s + 0.6

    parts = [span for span in spans if span.parent == good.id]
    assert [span.name for span in parts][:2] == ["fetch", "start"]
    assert parts[-1].name == "publish"
    assert {"validate", "compress", "export"} <= {span.name for span in parts}
    assert all(a.end_s <= b.start_s + 0.001 for a, b in zip(parts, parts[1:], strict=False))
    assert good.start_s <= parts[0].start_s
    assert parts[-1].end_s <= good.end_s + 0.001
    assert {span.attributes["pared.job.type"] for span in parts} == {"prune"}

    [failed] = [s for s in collector.spans if s.name == "attempt" and s.attributes["pared.job.id"] == failing]
    code = stack.job(failing)["error"]["code"]
    assert (failed.failed, failed.attributes["error.type"], failed.said) == (True, code, "")
    assert failed.trace != TRACE
    assert not any(span.name.endswith(("/healthz", "/readyz")) for span in collector.spans)
    assert not any(SECRET.encode() in body for body in collector.bodies)

    usual = answered_in(stack)
    collector.hang()
    asked = collector.asked
    wait_for(lambda: collector.asked > asked or stack.get("/v1/jobs") is None, "the collector is asked", every_s=0.2)
    assert answered_in(stack) < usual + 0.5
    stack.succeeded(stack.submit(spec))
    collector.close()
    assert answered_in(stack) < usual + 0.5
    stack.succeeded(stack.submit(spec))
    assert stack.api.records(event="traces_not_sent")
    assert stack.workers[0].records(event="traces_not_sent")
    began = time.monotonic()
    stack.api.stop()
    assert time.monotonic() - began < 15
    receiver.close()


def answered_in(stack: Stack) -> float:
    """The median of some requests, in seconds."""
    took = []
    for _ in range(15):
        began = time.monotonic()
        stack.get("/v1/jobs")
        took.append(time.monotonic() - began)
    return statistics.median(took)
