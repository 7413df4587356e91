"""One trace leads from the request of a job to its end, and whoever collects traces can hold up nothing."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pared.state.objects import open_store
from pared.state.session import make_engine, make_sessions
from pared.state.settings import Settings
from pared.state.tables import Model, new_id
from tests.support.collector import Collector, Seen
from tests.support.processes import Processes, environment, wait_for
from tests.support.receiver import Receiver
from tests.support.servers import Servers
from tests.support.stack import Stack, new_stack

ROOT = Path(__file__).parents[2]
TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "secret-name-of-a-file"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(params=["embedded", pytest.param("servers", marks=pytest.mark.campaign)])
def stack(request: pytest.FixtureRequest, processes: Processes, scratch: Path, collector: Collector) -> Iterator[Stack]:
    """A stack with a worker whose jobs need no torch; it is killed once, after a child has ended well."""
    servers: Servers | None = request.getfixturevalue("servers") if request.param == "servers" else None
    settings = {"otlp_url": collector.url, "allow_private_webhooks": "1", "lease_s": "6", "sweep_s": "1"}
    once = scratch / f"once-{request.param}"
    folder = scratch / f"traced-{request.param}"
    started = new_stack(folder, processes, servers, workers=0, failpoints=f"child.ended={once}", **settings)
    command = ["-A", "tests.support.celery_worker", "worker", "-c", "1", "-l", "INFO"]
    log = started.folder / "worker.log"
    worker = processes.fork("celery.__main__", command, name="worker", log=log, cwd=ROOT, env=started.env)
    started.workers.append(worker)
    yield started
    started.stop()


def ready_model(stack: Stack) -> str:
    """Whose file only the child of these tests takes for a model."""
    settings = Settings(data_dir=stack.data, database_url=stack.env.get("PARED_DATABASE_URL", ""))
    stored = open_store(settings).put([b"a model"])
    model = Model(
        id=new_id("mdl"), owner="local", filename=f"{SECRET}.pt", sha256=stored.sha256, size_bytes=7, status="ready"
    )
    sessions = make_sessions(make_engine(settings.effective_database_url))
    with sessions.begin() as session:
        session.add(model)
    sessions.engine.dispose()
    return model.id


def test_a_trace_leads_from_the_request_over_every_attempt_to_the_end(stack: Stack, collector: Collector) -> None:
    receiver = Receiver()
    receiver.listen()
    asked = {"url": f"{receiver.url}/well", "events": ["job.succeeded"]}
    stack.http.post("/v1/webhooks", json=asked).raise_for_status()
    spec = {"type": "prune", "model": ready_model(stack), "amount": 0.5}
    job = stack.submit(spec | {"include": ["staged"]}, traceparent=f"00-{TRACE}-{CLIENT}-01")
    stack.succeeded(job)
    failing = stack.submit(spec | {"include": ["raise_named"]})
    assert stack.ended(failing)["status"] == "failed"
    stack.http.get(f"/v1/models/{SECRET}", params={"filename": SECRET})

    wait_for(lambda: attempts(collector, failing), "the attempt that failed is there")
    wait_for(lambda: any(span.name == "webhook" for span in collector.of_trace(TRACE)), "the notice is there")
    spans = collector.of_trace(TRACE)
    [posted] = [span for span in spans if span.name == "POST /v1/jobs"]
    assert (posted.service, posted.kind, posted.parent) == ("pared-api", "SERVER", CLIENT)
    told = {"http.route": "/v1/jobs", "http.response.status_code": 202, "pared.owner.id": "local", "pared.job.id": job}
    assert told.items() <= posted.attributes.items()

    lost, good = attempts(collector, job)
    first, second = (span for span in spans if span.name == "queued")
    [notice] = [span for span in spans if span.name == "webhook"]
    assert {span.parent for span in (lost, good, first, second, notice)} == {posted.id}
    assert {span.attributes["pared.job.id"] for span in spans} == {job}
    assert [span.attributes["pared.attempt"] for span in (first, lost, second, good)] == [1, 1, 2, 2]
    assert (lost.failed, lost.attributes["error.type"]) == (True, "worker-lost")
    assert (good.failed, good.attributes["pared.ending"], good.service) == (False, "Succeeded", "pared-worker")
    assert ":" in good.attributes["pared.worker"]
    assert (notice.kind, notice.attributes["http.response.status_code"]) == ("CLIENT", 204)
    assert first.end_s <= lost.start_s + 0.001
    assert lost.end_s <= second.start_s + 0.001
    assert second.end_s == good.start_s

    assert [span.name for span in spans if span.parent == lost.id] == ["validate", "compress", "export"]
    parts = [span for span in spans if span.parent == good.id]
    assert [span.name for span in parts] == ["fetch", "start", "validate", "compress", "export", "publish"]
    assert all(a.end_s <= b.start_s + 0.001 for a, b in itertools.pairwise(parts))
    assert good.start_s <= parts[0].start_s
    assert parts[-1].end_s <= good.end_s

    [failed] = attempts(collector, failing)
    assert (failed.failed, failed.attributes["error.type"], failed.said) == (True, "nothing-to-prune", "")
    assert failed.trace != TRACE
    assert not any(SECRET.encode() in body for body in collector.bodies)
    assert not any("readyz" in span.name or "healthz" in span.name for span in collector.spans)
    receiver.close()
    if stack.backend == "embedded":
        outage(stack, collector, spec | {"include": ["succeed"]})


def outage(stack: Stack, collector: Collector, spec: dict[str, Any]) -> None:
    """A collector that does not answer, and then does not listen, holds up neither requests nor jobs nor an end."""
    usual = answered_in(stack)
    collector.hang()
    wait_for(lambda: answered_in(stack) and collector.waiting, "the API waits for the collector")
    assert answered_in(stack) < usual + 0.5
    stack.succeeded(stack.submit(spec))
    collector.close()
    assert answered_in(stack) < usual + 0.5
    stack.succeeded(stack.submit(spec))
    wait_for(lambda: stack.api.records(event="traces_not_sent"), "the API says so")
    wait_for(lambda: stack.workers[0].records(event="traces_not_sent"), "the worker says so")
    for process in (stack.api, *stack.workers):
        began = time.monotonic()
        process.stop()
        assert time.monotonic() - began < 15


def attempts(collector: Collector, job: str) -> list[Seen]:
    found = [span for span in collector.spans if span.name == "attempt" and span.attributes["pared.job.id"] == job]
    return sorted(found, key=lambda span: span.start_s)


def answered_in(stack: Stack) -> float:
    """The median of some requests, in seconds."""
    took = []
    for _ in range(15):
        began = time.monotonic()
        stack.get("/v1/jobs")
        took.append(time.monotonic() - began)
    return statistics.median(took)


UNSET = """
import sys
import worker.tasks
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
from pathlib import Path
from pared.state import tracing
from pared.state.session import migrate
from pared.state.settings import Settings
from service.app import create_app
from service.server import config_for
settings = Settings(data_dir=Path(sys.argv[1]))
migrate(settings)
for service in ("pared-api", "pared-worker"):
    tracing.start(settings, service)
create_app(settings)
with tracing.serving("POST", {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}):
    assert tracing.traceparent() is None
# FastAPI has the interface of the libraries loaded, which by itself does nothing.
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
"""
WITHOUT_EXTRA = """
import sys
sys.modules["opentelemetry.exporter"] = None
from pared.cli import main
for command in ("api", "worker", "up"):
    sys.argv = ["pared", command]
    try:
        main()
    except SystemExit as end:
        print(command, end.code)
"""


def test_unless_it_is_set_nothing_of_it_is_loaded(tmp_path: Path) -> None:
    done = python(UNSET, str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_what_is_missing_is_said_at_the_start(tmp_path: Path) -> None:
    settings = {"PARED_OTLP_URL": "http://127.0.0.1:4318", "PARED_DATA_DIR": str(tmp_path)}
    done = python(WITHOUT_EXTRA, **settings)
    said = done.stdout.splitlines()
    assert [line.split()[0] for line in said] == ["api", "worker", "up"], done.stderr
    assert all("pip install 'pared[tracing]'" in line for line in said)


def python(code: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    env = environment(**settings, PYTHONPATH=str(ROOT))
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("url", ["localhost:4318", "grpc://127.0.0.1:4317", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be an address such as"):
        Settings(otlp_url=url)
