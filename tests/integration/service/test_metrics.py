"""What Prometheus reads: right numbers, of few labels, for whom they are meant, and cheap to ask for."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, update

from pared.state import lifecycle
from pared.state.events import add_event
from pared.state.keys import add_key
from pared.state.owners import create_owner
from pared.state.tables import Job, WorkerHeartbeat, db_now
from service import metrics
from tests.integration.service.conftest import Api, serving
from tests.support.processes import wait_for

DEPLOY = Path(__file__).parents[3] / "deploy"


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "KEPT_S", 0.0)
    monkeypatch.setattr(metrics, "_SHARE", 0)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("counted")) as api:
        yield api


def read(api: Api) -> dict[tuple, float]:
    """Name and labels -> value."""
    answer = api.get("/metrics")
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def of(samples: dict[tuple, float], name: str, **labels: str) -> float:
    """The sum of all samples of this name with these labels."""
    return sum(value for key, value in samples.items() if key[0] == name and set(labels.items()) <= set(key[1:]))


def test_jobs_are_counted_by_what_they_wait_for_and_do(counted: Api):
    job = counted.submit(device="cpu")["id"]
    with counted.parts.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job).values(updated_at=db_now() - 100))
    seen = read(counted)
    assert of(seen, "pared_jobs", type="prune", status="queued") == 1
    assert of(seen, "pared_jobs_waiting", lane="jobs", device="cpu") == 1
    assert of(seen, "pared_jobs_waiting", lane="jobs", device="cuda") == 0
    assert of(seen, "pared_jobs_waiting", lane="quick") == 1  # the upload's inspection
    assert 99 < of(seen, "pared_oldest_waiting_job_seconds", lane="jobs", device="cpu") < 160
    assert of(seen, "pared_stored_bytes", what="models") == len(b"a model")
    assert of(seen, "pared_disk_free_bytes", folder="objects") > 0

    with counted.parts.sessions.begin() as session:
        worker = WorkerHeartbeat(name="worker", sandbox="standard", device="16 CPUs", devices=["cpu"])
        session.add(worker)
    fence = counted.claim(job)
    with counted.parts.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job).values(stage="retrain"))
        for stage in ("validate", "retrain", "\nwhat a child says"):
            add_event(session, job, "status", {"status": "running", "stage": stage})
    seen = read(counted)
    assert of(seen, "pared_jobs_running", type="prune", stage="retrain") == 1
    assert of(seen, "pared_worker_jobs", worker="worker", lane="jobs") == 1
    assert of(seen, "pared_worker_info", device="16 CPUs", runs_on="cpu", sandbox="standard") == 1
    assert of(seen, "pared_job_seconds_count") == 0

    with counted.parts.sessions.begin() as session:
        assert lifecycle.succeed(session, job, fence, {"verdict": "smaller"})
    for _ in range(2):  # each job is counted once, however often it is asked
        seen = read(counted)
        assert of(seen, "pared_job_seconds_count", type="prune", status="succeeded") == 1
        assert of(seen, "pared_job_wait_seconds_count", type="prune", device="cpu") == 1
        stages = {dict(key[1:])["stage"] for key in seen if key[0] == "pared_job_stage_seconds_count"}
        assert stages == {"validate", "retrain", "other"}
    quick = counted.submit()["id"]
    counted.finish(quick)  # between two looks
    assert of(read(counted), "pared_job_seconds_count", type="prune", status="succeeded") == 2


def test_requests_are_counted_by_route_and_never_by_what_strangers_write(counted: Api):
    before = read(counted)
    for path in ("/v1/jobs/job_0", "/v1/jobs/job_1", "/nowhere/1", "/nowhere/2", "/static/none.js"):
        assert counted.get(path).status_code == 404
    assert counted.request("PROPFIND", "/nowhere").status_code == 404
    assert counted.get("/v1/jobs?limit=0").status_code == 422
    after = read(counted)
    name = "pared_http_requests_total"

    def more(**labels: str) -> float:
        return of(after, name, **labels) - of(before, name, **labels)

    assert more(method="GET", route="/v1/jobs/{job_id}", status="404") == 2
    assert more(method="GET", route="none", status="404") == 2
    assert more(method="other", route="none", status="404") == 1
    assert more(route="/static") == 1
    assert more(route="/v1/jobs", status="422") == 1
    timed = {"route": "/v1/jobs/{job_id}", "method": "GET"}
    counts = [of(seen, "pared_http_request_seconds_count", **timed) for seen in (before, after)]
    assert counts[1] - counts[0] == 2
    assert not any("nowhere" in str(key) or "PROPFIND" in str(key) for key in after)


def test_streams_are_counted_while_open_and_their_time_is_none_of_an_answer(counted: Api):
    job = counted.submit()["id"]
    route = "/v1/jobs/{job_id}/events"
    with counted.stream("GET", f"/v1/jobs/{job}/events") as stream:
        lines = stream.iter_lines()
        next(lines)
        assert of(read(counted), "pared_open_streams") == 1
        counted.post(f"/v1/jobs/{job}/cancel")
        for _ in lines:
            pass
    wait_for(lambda: of(read(counted), "pared_http_requests_total", route=route, status="200") == 1, "it is counted")
    seen = read(counted)
    assert of(seen, "pared_open_streams") == 0
    assert of(seen, "pared_http_request_seconds_count", route=route) == 0


def test_the_database_is_looked_at_once_in_some_seconds(counted: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "KEPT_S", 3600.0)
    statements = []
    engine = counted.parts.sessions.engine

    def note(*args: Any) -> None:
        if "AnyIO" in threading.current_thread().name:  # that of webhooks asks now and then
            statements.append(args[2])

    event.listen(engine, "before_cursor_execute", note)
    try:
        read(counted)
        assert 0 < len(statements) <= 12
        statements.clear()
        for _ in range(3):
            read(counted)
        assert not statements
    finally:
        event.remove(engine, "before_cursor_execute", note)
        counted.parts.metrics._database._look_again_at = 0.0


def test_a_database_that_is_away_leaves_what_the_process_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(tmp_path) as api:
        assert of(read(api), "pared_database_up") == 1
        with api.parts.sessions.begin() as session:
            session.connection().exec_driver_sql("alter table outbox rename to gone")
        seen = read(api)
        assert of(seen, "pared_database_up") == 0
        assert of(seen, "pared_http_requests_total", route="/metrics") == 1
        assert not [key for key in seen if key[0] == "pared_jobs"]


def test_only_a_key_for_metrics_reads_them_where_keys_are_needed(guarded: Api, api: Api):
    assert guarded.get("/metrics").status_code == 401
    for scope, status in (("read", 403), ("submit", 403), ("admin", 403), ("metrics", 200)):
        owner = create_owner(guarded.parts.sessions, scope).id
        headers = {"Authorization": f"Bearer {add_key(guarded.parts.sessions, owner, scope, scopes=[scope]).secret}"}
        assert guarded.get("/metrics", headers=headers).status_code == status, scope
        if scope == "metrics":
            assert guarded.get("/v1/jobs", headers=headers).status_code == 403
            assert guarded.post("/v1/models", content=b"m", headers=headers).status_code == 403
    assert api.get("/metrics").status_code == 200
    assert api.get("/metrics", headers={"x-forwarded-for": "203.0.113.9"}).status_code == 401


def test_it_speaks_openmetrics_where_it_is_preferred(counted: Api):
    plain = counted.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    answer = counted.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_each_expression_of_the_dashboard_and_the_alerts_names_metrics_and_labels_that_exist(counted: Api):
    read(counted)
    under_way, ended = (counted.submit()["id"] for _ in range(2))
    with counted.parts.sessions.begin() as session:
        session.merge(WorkerHeartbeat(name="worker", sandbox="standard", device="16 CPUs", devices=["cpu"]))
        add_event(session, ended, "status", {"status": "running", "stage": "validate"})
    counted.claim(under_way)
    counted.finish(ended)
    families = list(text_string_to_metric_families(counted.get("/metrics").text))
    labels = {sample.name: set() for family in families for sample in family.samples}
    for family in families:
        labels.setdefault(family.name, set())
        for sample in family.samples:
            labels[sample.name] |= set(sample.labels)
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((DEPLOY / "prometheus-rules.yml").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    scaled = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "autoscaling.yaml").read_text()))
    scaling = [trigger["metadata"]["query"] for each in scaled for trigger in each["spec"]["triggers"]]
    assert (len(shown) >= 20, len(alerts) >= 6, len(scaling) >= 3) == (True, True, True)
    for expression in (*shown, *alerts, *scaling):
        named = set(re.findall(r"\b(?:pared|process)_\w+", expression))
        assert named, expression
        assert named <= set(labels), (expression, named - set(labels))
        known = set.union(*(labels[name] for name in named)) | {"instance", "job", "le"}
        by = {each.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for each in group.split(",")}
        asked = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", expression))
        assert by | asked <= known, (expression, (by | asked) - known)
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert [each["job_name"] for each in scrape["scrape_configs"]] == ["pared"]
