"""Whatever goes wrong, the answer is a problem document that says what to do."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from pared.state.settings import Settings
from service.app import create_app
from tests.integration.service.conftest import Api, serving
from tests.support.servers import Servers

MODEL = "mdl_" + "0" * 26
PRUNE = {"type": "prune", "model": MODEL, "amount": 0.5}
DISTILL = {"type": "distill", "teacher": MODEL, "student": MODEL, "dataset": "builtin:digits"}


def terms(*each: dict) -> dict:
    return {"loss": {"kind": "combined", "terms": list(each)}}


@pytest.mark.parametrize(
    ("body", "pointer", "text"),
    [
        (PRUNE | {"amount": 0}, "/amount", "must be above 0 and below 1"),
        (PRUNE | {"amount": 1}, "/amount", "must be above 0 and below 1"),
        (PRUNE | {"amount": -1}, "/amount", "must be above 0 and below 1"),
        (PRUNE | {"amount": 1.5}, "/amount", "must be above 0 and below 1"),
        (PRUNE | {"amount": None, "target": {"params": 1.5}}, "/target/params", "must be above 0 and below 1"),
        (PRUNE | {"amount": None, "target": {"weights": 0.5}}, "/target/weights", "there are params, macs"),
        (PRUNE | {"target": {"params": 0.5}}, "/amount", "give one of the two"),
        (PRUNE | {"amount": "half"}, "/amount", "must be a number"),
        (PRUNE | {"amont": 0.5}, "/amont", "did you mean amount?"),
        (PRUNE | {"retrain": {"epoch": 1}}, "/retrain/epoch", "did you mean epochs?"),
        (PRUNE | {"retrain": {"epochs": -1}}, "/retrain/epochs", "must be at least 0 and at most 1,000"),
        (
            PRUNE | {"granularity": "filter"},
            "/granularity",
            "must be 'weight', 'n:m', 'block', 'channel', 'head' or 'residual_block'",
        ),
        (PRUNE | {"model": "dst_" + "0" * 26}, "/model", "id of an uploaded model"),
        (PRUNE | {"model": 7}, "/model", "must be a valid string"),
        (PRUNE | {"dataset": "digits"}, "/dataset", "builtin:digits"),
        (PRUNE | {"outputs": ["torchscript", "torchscript"]}, "", "twice"),
        (
            PRUNE | {"outputs": ["keras"]},
            "/outputs/0",
            "'torchscript', 'state_dict', 'exported_program'",
        ),
        (PRUNE | {"preprocess": {"std": [1, 0]}}, "/preprocess/std/1", "greater than 0"),
        (PRUNE | {"example_inputs": [{"shape": [0]}]}, "/example_inputs/0/shape/0", "greater than or equal to 1"),
        (PRUNE | {"a/b~c": 1}, "/a~1b~0c", "is not a known field"),
        (PRUNE | {"steps": 3}, "/steps", "one_shot"),
        (PRUNE | {"retrain": {"epochs": 1}}, "/retrain", "name a `dataset`"),
        (PRUNE | {"preprocess": {"scale": 0.5}}, "/preprocess", "name a `dataset`"),
        (PRUNE | {"dataset": "builtin:digits", "example_inputs": [{"shape": [1]}]}, "/example_inputs", "beside a data"),
        (PRUNE | {"dataset": "dst_" + "\0" * 26}, "/dataset", "uploaded data set"),
        ({"type": "prune", "amount": 0.5}, "/model", "is required"),
        ({"type": "prone"}, "/type", "must be one of 'prune', 'distill'"),
        ({"type": "inspect", "subject": MODEL}, "/type", "must be one of 'prune', 'distill'"),
        ({}, "/type", "is required"),
        (DISTILL | {"loss": {"kind": "mse"}}, "/loss/kind", "must be one of 'output_mse', 'knowledge'"),
        (DISTILL | {"loss": {"kind": "knowledge", "alpha": 2}}, "/loss/alpha", "less than or equal to 1"),
        (DISTILL | {"student": {"from_teacher": {"width": 2}}}, "/student/from_teacher/width", "above 0 and at most 1"),
        (DISTILL | {"student": "lenet5"}, "/student", "id of an uploaded model"),
        (DISTILL | {"loss": "knowledge"}, "/loss", "must be an object"),
        (DISTILL | {"task": "regression", "loss": {"kind": "knowledge"}}, "/loss", '{"kind": "output_mse"}'),
        (DISTILL | terms({"kind": "magic"}), "/loss/terms/0/kind", "'kl', 'decoupled', 'dist'"),
        (DISTILL | terms({"kind": "kl"}, {"kind": "hint", "weight": 0}), "/loss/terms/1/weight", "greater than 0"),
        (DISTILL | terms({"kind": "hint", "features": []}), "/loss/terms/0/features", '"auto"'),
        (DISTILL | terms({"kind": "labels"}), "/loss/terms", "a teacher has no part"),
        (DISTILL | {"task": "regression"} | terms({"kind": "kl"}), "/loss/terms/0", "odds of classes"),
        (DISTILL | {"task": "embedding"} | terms({"kind": "cosine"}, {"kind": "labels"}), "/loss/terms/1", "labels"),
        (DISTILL | {"task": "match"} | terms({"kind": "relational"}), "/loss/terms/0", "task=embedding"),
        (
            PRUNE | {"dataset": "builtin:digits", "retrain": {"teach": terms({"kind": "hint"})["loss"]}},
            "/retrain/teach/terms/0",
            "inner layers",
        ),
        (
            DISTILL | {"student": {"from_teacher": {"width": 0.5}}, "student_architecture": "lenet5"},
            "/student_architecture",
            "leave it out",
        ),
    ],
)
def test_each_bad_field_is_pointed_at(api: Api, body: dict, pointer: str, text: str):
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "/problems/validation"
    told = {error["pointer"]: error["detail"] for error in problem["errors"]}
    assert pointer in told, told
    assert text in told[pointer]
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "pointer", "text"),
    [
        (DISTILL | {"student": {"layers": [["ReLU", {}]], "name": "x"}}, "/student/name", "there are layers"),
        (DISTILL | {"student": {"layers": []}}, "/student/layers", "at least 1 item"),
        (DISTILL | {"student": {"name": "mlp", "kwarg": {}}}, "/student/kwarg", "did you mean kwargs?"),
        (DISTILL | {"student": {"kwargs": {}}}, "/student/name", "is required"),
        (DISTILL | {"student": {"from_teacher": {}}}, "/student/from_teacher/width", "is required"),
        (DISTILL | {"student": {"from_teacher": 0.5}}, "/student/from_teacher", "must be an object"),
        (DISTILL | {"student": {"width": 0.5}}, "/student", '{"from_teacher": {"width": 0.5}}'),
        (DISTILL | {"student": [["ReLU", {}]]}, "/student", '{"layers": [["Linear", {…}], …]}'),
        (DISTILL | {"student": None}, "/student", "id of an uploaded model"),
        (PRUNE | {"architecture": {"layers": []}}, "/architecture/layers", "at least 1 item"),
        (PRUNE | {"architecture": {"layer": [["ReLU", {}]]}}, "/architecture", '{"layers": [["Linear", {…}], …]}'),
        (DISTILL | {"student_architecture": 7}, "/student_architecture", "must be a name"),
    ],
)
def test_only_the_alternative_that_was_meant_complains(api: Api, body: dict, pointer: str, text: str):
    (error,) = api.post("/v1/jobs", json=body).json()["errors"]
    assert error["pointer"] == pointer
    assert text in error["detail"]


def test_a_stored_spec_may_be_posted_again(api: Api):
    """It names every field, also those that have no effect at their defaults."""
    for job in (api.submit(), api.submit(dataset="builtin:digits", retrain=None)):
        assert api.post("/v1/jobs", json=job["spec"]).json()["spec"] == job["spec"]


def test_an_unknown_query_parameter_is_refused_by_name(api: Api):
    for method, path, name, known in [
        ("POST", "/v1/models?architecure=lenet5", "architecure", "filename, architecture"),
        ("PUT", "/v1/datasets?format=npz", "format", "filename"),
        ("GET", "/v1/models?typo=1&limit=5", "typo", "after, limit"),
        ("GET", "/v1/jobs?state=failed", "state", "status, type, after, limit"),
        ("GET", "/v1/jobs/job_1?wait=30", "wait", "none"),
    ]:
        answer = api.request(method, path)
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/validation")
        (error,) = answer.json()["errors"]
        assert error["pointer"] == f"/query/{name}"
        assert known in error["detail"]
    assert api.get("/healthz?probe=1").status_code == 200


def test_what_postgresql_cannot_compare_is_no_bug(servers: Servers, tmp_path: Path):
    with serving(tmp_path, database_url=servers.new_database()) as api:
        job = api.submit()
        api.finish(job["id"], {"model.pt": b"x"}, {"verdict": "2× smaller"})
        assert api.get(job["links"]["self"]).json()["result"]["verdict"] == "2× smaller"
        assert api.upload(b"odd", "a\0b.pt")["filename"] == "ab.pt"
        file = {"file": ("m\0.pt", b"y")}
        assert api.post("/v1/models", files=file, data={"architecture": '{"name": "a\\u0000"}'}).status_code == 201
        statuses = [
            (api.get(f"{job['links']['artifacts']}/%00"), 404),
            (api.get(f"{job['links']['artifacts']}/%ff"), 404),
            (api.get("/v1/jobs/job_%00" + "0" * 25), 404),
            (api.get("/v1/models/mdl_%00" + "0" * 25), 404),
            (api.delete("/v1/datasets/dst_%00" + "0" * 25), 404),
            (api.get("/v1/models?after=%00"), 422),
            (api.get("/v1/models", headers={"x-api-key": b"\xff"}), 401),
            (api.get(f"{job['links']['events']}?last_event_id={1 << 31}"), 422),
            (api.get(job["links"]["events"], headers={"last-event-id": str(1 << 31)}), 422),
            (api.get(job["links"]["events"], headers={"last-event-id": str((1 << 31) - 1)}), 200),
            (api.post("/v1/jobs", json=PRUNE | {"dataset": "dst_" + "\0" * 26}), 422),
            (api.post("/v1/jobs", json=PRUNE, headers={"idempotency-key": b"\xff"}), 422),
        ]
        assert [answer.status_code for answer, _ in statuses] == [status for _, status in statuses]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'"\\ud800"',
        b"[" * 100_000,
        b'{"type": "prune", "model": "\\ud800"}',
        b"{}x",
    ],
)
def test_what_is_no_json_object_is_refused(api: Api, content: bytes):
    answer = api.post("/v1/jobs", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/validation")


@pytest.mark.parametrize(
    ("value", "text"),
    [("[" * 65 + "]" * 65, "deeper than 64"), ("[" * 9000 + "]" * 9000, "deeper than 64"), ("1" * 5000, "300 digits")],
)
def test_json_that_could_not_be_answered_again_is_refused(api: Api, value: str, text: str):
    architecture = f'{{"name": "mlp", "kwargs": {{"a": {value}}}}}'
    spec = f'{{"type": "prune", "model": "{MODEL}", "amount": 0.5, "architecture": {architecture}}}'
    form = {"file": ("m.pt", b"x")}
    for answer in (
        api.post("/v1/jobs", content=spec),
        api.post("/v1/models", files=form, data={"architecture": architecture}),
    ):
        assert answer.status_code == 422
        assert text in answer.json()["errors"][0]["detail"]


def test_headers_that_make_no_sense_are_no_bug(api: Api):
    assert api.get("/healthz", headers={"host": "["}).status_code == 403
    assert api.get("/v1/models", headers={"authorization": "Basic eDp5"}).status_code == 200
    assert api.get("/v1/models", headers={"prefer": "wait=" + "9" * 5000}).status_code == 200


def test_numbers_that_are_none_are_refused(api: Api):
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        content = f'{{"type": "prune", "model": "{MODEL}", "amount": {number}}}'
        answer = api.post("/v1/jobs", content=content)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/amount")


def test_a_spec_has_a_size_and_a_type(api: Api):
    large = api.post("/v1/jobs", json=PRUNE | {"include": ["x" * (1 << 20)]})
    assert (large.status_code, large.json()["type"]) == (413, "/problems/too-large")
    plain = api.post("/v1/jobs", content=b"{}", headers={"content-type": "text/plain"})
    assert (plain.status_code, "application/json" in plain.json()["detail"]) == (422, True)


def test_a_rejected_model_is_a_conflict_that_says_why(api: Api):
    model = api.upload(b"a picture", "cat.png")["id"]
    api.inspected(model, status="rejected", reason={"code": "x", "title": "x", "detail": "This is a picture."})
    answer = api.post("/v1/jobs", json=PRUNE | {"model": model})
    assert answer.status_code == 409
    assert "This is a picture." in answer.json()["errors"][0]["detail"]


def test_unknown_paths_and_methods_are_problems_too(api: Api):
    for method, path, status in [("GET", "/v1/nothing", 404), ("PATCH", "/v1/jobs", 405), ("GET", "/static/no", 404)]:
        answer = api.request(method, path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert "/docs" in answer.json()["detail"]
    assert "GET" in api.patch("/v1/jobs").headers["allow"]


def test_a_request_id_of_ones_own_is_kept_if_it_is_harmless(api: Api):
    assert api.get("/healthz", headers={"x-request-id": "trace-1.a"}).headers["x-request-id"] == "trace-1.a"
    assert api.get("/healthz", headers={"x-request-id": "a b<script>"}).headers["x-request-id"] != "a b<script>"


def test_a_bug_is_our_fault_and_tells_nothing_else(tmp_path: Path):
    with serving(tmp_path) as api:
        with api.parts.sessions.begin() as session:
            session.execute(text("ALTER TABLE models RENAME TO models_elsewhere"))
        answer = api.get("/v1/models")
        assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal")
        assert answer.json()["request_id"] in answer.json()["detail"]
        assert "models_elsewhere" not in answer.text
        assert "Traceback" not in answer.text
        assert api.get("/healthz").status_code == 200


def test_a_database_that_is_away_is_503_and_comes_back(tmp_path: Path):
    with serving(tmp_path) as api:
        assert api.get("/v1/jobs").status_code == 200
        database = tmp_path / "pared.db"
        api.parts.sessions.engine.dispose()
        away = [path.rename(path.with_name("away" + path.name)) for path in tmp_path.glob("pared.db*")]
        database.mkdir()
        answer = api.get("/v1/jobs")
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
        assert answer.headers["retry-after"]
        ready = api.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["database"]["status"]) == (503, "failed")
        database.rmdir()
        for path in away:
            path.rename(path.with_name(path.name.removeprefix("away")))
        assert api.get("/v1/jobs").status_code == 200


def test_the_app_never_imports_torch():
    import subprocess
    import sys

    code = (
        "import sys, service.app, pared.state.sweep, pared.state.keys, migrations.versions;"
        "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_app_starts_nothing_until_it_is_served(tmp_path: Path):
    app = create_app(Settings(data_dir=tmp_path))
    assert not app.state.parts.dispatcher.is_alive()


@pytest.mark.parametrize(
    "body",
    [
        PRUNE | {f"amoun{number}": 0 for number in range(9000)},
        PRUNE | {"include": [0] * 9000},
        PRUNE | {"x" * 1_000_000: 0},
        PRUNE | {"model": "m" * 1_000_000},
        PRUNE | {f"amount{number}": 0 for number in range(60_000)},
        PRUNE | {"include": [[]] * 300_000},
    ],
    ids=["unknown fields", "bad values", "a long name", "a long value", "too many fields", "too many values"],
)
def test_a_megabyte_of_mistakes_is_answered_shortly_and_holds_nobody_up(api: Api, body: dict):
    content = json.dumps(body, separators=(",", ":")).encode()
    api.get("/healthz")
    with serving_meanwhile(api) as longest_ms:
        answer = api.post("/v1/jobs", content=content)
    assert answer.status_code == 422
    assert len(answer.content) < 20_000
    assert len(answer.json()["errors"]) <= 21
    assert answer.text.count("did you mean") <= 6
    assert longest_ms() < 1000  # tens of milliseconds; as much as this on a machine that is busy with other tests


@contextlib.contextmanager
def serving_meanwhile(api: Api) -> Iterator[Callable[[], float]]:
    """Ask for something else again and again. Gives the longest time that one answer took, in milliseconds."""
    done, waited = threading.Event(), [0.0]

    def ask() -> None:
        with httpx.Client(base_url=api.base_url) as other:
            while not done.is_set():
                began = time.perf_counter()
                assert other.get("/healthz").status_code == 200
                waited.append((time.perf_counter() - began) * 1000)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield lambda: max(waited)
    finally:
        done.set()
        thread.join(60)


def test_one_entry_says_how_many_mistakes_are_not_named(api: Api):
    problem = api.post("/v1/jobs", json=PRUNE | {f"x{number}": 0 for number in range(100)}).json()
    assert problem["errors"][-1] == {"pointer": "", "detail": "and 80 more; mend these first"}
    assert "(and 99 more)" in problem["detail"]
    problem = api.get("/v1/jobs?" + "&".join(f"x{number}=" for number in range(5000))).json()
    assert problem["errors"][-1]["detail"] == "and 4,980 more; mend these first"
