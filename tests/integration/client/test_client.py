from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import anyio
import httpx
import pytest

import pared
from pared.cli.demo import _own_environment
from pared.client import UploadRejected, operations
from pared.client.operations import DigestMismatch, ServerUnreachable
from tests.support.scripted_server import Answer, Asked, Scripted

JOB = {"id": "job_1", "type": "prune", "status": "queued", "spec": {}, "progress": None}
FILE = bytes(range(256)) * 400
ARTIFACTS = {"data": [{"name": "model.pt", "sha256": hashlib.sha256(FILE).hexdigest(), "size_bytes": len(FILE)}]}


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture
def client(server: Scripted) -> Iterator[pared.Client]:
    with pared.Client(server.url) as client:
        yield client


@pytest.fixture
def job(server: Scripted, client: pared.Client) -> pared.Job:
    server.say(Answer(body=JOB | {"status": "succeeded"}))
    found = client.jobs.get("job_1")
    server.asked.clear()
    return found


def problem(status: int, name: str, **headers: str) -> Answer:
    body = {"type": f"/problems/{name}", "title": "No", "status": status, "detail": "because"}
    return Answer(status, body, {key.replace("_", "-"): value for key, value in headers.items()})


def test_a_submit_is_retried_with_the_same_idempotency_key(server: Scripted, client: pared.Client) -> None:
    server.say(problem(503, "unavailable"), problem(429, "too-many-requests", retry_after="0"), Answer(202, JOB))
    assert client.prune("mdl_1", "builtin:digits", amount=0.5).id == "job_1"
    assert len(server.asked) == 3
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 1
    spec = {"type": "prune", "model": "mdl_1", "dataset": "builtin:digits", "amount": 0.5}
    assert json.loads(server.asked[-1].body) == spec


PLAN = {
    "verdict": "smaller",
    "amount": 0.5,
    "exact": True,
    "before": {"parameters": 4, "nonzero_parameters": 4, "macs": 4, "file_bytes": 40},
    "after": {"parameters": 2, "nonzero_parameters": 2, "macs": 2, "file_bytes": 20},
    "files": {"model.pt": {"size_bytes": 20, "exact": True}},
    "layers": [{"name": "fc", "shape_before": [4, 1], "shape_after": [2, 1], "removed_units": 2}],
}


def test_a_plan_is_waited_for_where_it_is_to_be(server: Scripted, client: pared.Client) -> None:
    pending = Answer(202, {"id": "job_1", "status": "queued"}, {"Location": "/v1/plans/job_1"})
    server.say(pending, problem(503, "unavailable"), pending, Answer(body=PLAN))
    plan = client.plan("mdl_1", amount=0.5)
    assert (plan.exact, plan.after.file_bytes) == (True, 20)
    assert "2 channels" in str(plan)
    assert [f"{asked.method} {asked.path}" for asked in server.asked] == [
        "POST /v1/jobs:plan",
        *["GET /v1/plans/job_1"] * 3,
    ]
    assert json.loads(server.asked[0].body) == {"type": "prune", "model": "mdl_1", "dataset": None, "amount": 0.5}
    assert server.asked[1].headers["prefer"] == "wait=30"


def test_a_plan_is_awaited(server: Scripted) -> None:
    async def plan() -> pared.Plan:
        async with pared.AsyncClient(server.url) as client:
            return await client.plan("mdl_1", "builtin:digits", amount=0.5)

    server.say(Answer(body=PLAN))
    assert anyio.run(plan).amount == 0.5


def test_two_submits_have_different_keys(server: Scripted, client: pared.Client) -> None:
    server.say(Answer(202, JOB), Answer(202, JOB))
    client.prune("mdl_1")
    client.prune("mdl_1")
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 2


def test_retry_after_is_honoured(server: Scripted, client: pared.Client) -> None:
    server.say(problem(429, "too-many-requests", retry_after="1"), Answer(body=JOB))
    begun = time.monotonic()
    client.jobs.get("job_1")
    assert time.monotonic() - begun >= 1.0


def test_a_lost_connection_is_retried(server: Scripted, client: pared.Client) -> None:
    server.say(Answer(body=JOB, cut_after=5), Answer(body=JOB))
    assert client.jobs.get("job_1").id == "job_1"


def test_not_ready_is_retried_but_other_conflicts_are_not(server: Scripted, client: pared.Client) -> None:
    server.say(problem(409, "not-ready", retry_after="0"), Answer(202, JOB))
    client.prune("mdl_1")
    server.say(problem(409, "conflict"))
    with pytest.raises(pared.APIError) as caught:
        client.prune("mdl_1")
    assert (caught.value.status, caught.value.detail) == (409, "because")


def test_a_refusal_carries_the_pointers(server: Scripted, client: pared.Client) -> None:
    body = {"title": "Wrong", "detail": "see below", "errors": [{"pointer": "/amount", "detail": "must be below 1"}]}
    server.say(Answer(422, body))
    with pytest.raises(pared.APIError, match="/amount: must be below 1") as caught:
        client.prune("mdl_1", amount=2)
    assert caught.value.errors[0]["pointer"] == "/amount"
    assert len(server.asked) == 1


def test_a_server_that_never_answered_is_named_at_once(server: Scripted) -> None:
    server.close()
    begun = time.monotonic()
    with pytest.raises(ServerUnreachable, match="pared up"):
        pared.Client(server.url).jobs.get("job_1")
    assert time.monotonic() - begun < 30


def test_an_address_without_a_scheme_is_told_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("localhost:8000", "127.0.0.1:8000", "http://", "ftp://a"):
        with pytest.raises(httpx.InvalidURL, match="http://"):
            pared.Client(address)
    monkeypatch.setenv("PARED_URL", "localhost:8000")
    with pytest.raises(httpx.InvalidURL, match="http://"):
        pared.AsyncClient()


def test_the_time_that_a_file_takes_to_send_is_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1 << 30, 3600))  # every look at the clock is an hour after the last
    monkeypatch.setattr(operations, "time", SimpleNamespace(monotonic=lambda: next(now)))
    upload = operations.call(operations.Request("POST", "/v1/models", content=lambda: iter([b"x"])), patience_s=20.0)
    pauses: list[float] = []

    def send_and_lose() -> None:
        while next(upload):
            pause = upload.throw(httpx.WriteError("lost"))
            assert isinstance(pause, operations.Sleep)
            pauses.append(pause.seconds)

    with pytest.raises(ServerUnreachable):
        send_and_lose()
    assert 10 < sum(pauses) <= 20
    look = operations.call(operations.Request("GET", "/v1/models"))
    next(look)
    with pytest.raises(ServerUnreachable):
        look.throw(httpx.ReadTimeout("late"))


def test_what_is_built_in_has_no_size(server: Scripted, client: pared.Client) -> None:
    row = {"id": "builtin:digits", "filename": "builtin:digits", "sha256": None, "size_bytes": None, "status": "ready"}
    server.say(Answer(body=row))
    assert str(client.datasets.get("builtin:digits")) == "builtin:digits builtin:digits (ready)"


def test_a_wrong_answer_of_the_store_is_found_at_upload(server: Scripted, client: pared.Client, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(FILE)

    def stored(asked: Asked, *, damage: bytes = b"") -> Answer:
        sha256 = hashlib.sha256(asked.body + damage).hexdigest()
        row = {"id": "mdl_1", "filename": "m.pt", "sha256": sha256, "size_bytes": 1, "status": "inspecting"}
        return Answer(201, row)

    seen: list[tuple[int, int]] = []
    server.say(stored)
    upload = client.models.upload(tmp_path / "m.pt", "lenet5", progress=lambda done, total: seen.append((done, total)))
    assert upload.sha256 == hashlib.sha256(FILE).hexdigest()
    assert server.asked[0].path == "/v1/models?filename=m.pt&architecture=lenet5"
    assert seen[-1] == (len(FILE), len(FILE))

    server.say(lambda asked: stored(asked, damage=b"!"))
    with pytest.raises(DigestMismatch):
        client.models.upload(tmp_path / "m.pt")


def test_waiting_for_a_rejected_upload_says_why(server: Scripted, client: pared.Client) -> None:
    row = {"id": "mdl_1", "filename": "m.pt", "sha256": "", "size_bytes": 1, "status": "inspecting"}
    reason = {"code": "unsupported-model", "detail": "This is a pickled module."}
    server.say(Answer(body=row), Answer(body=row | {"status": "rejected", "reason": reason}))
    with pytest.raises(UploadRejected, match="pickled module") as caught:
        client.models.get("mdl_1").wait()
    assert caught.value.code == "unsupported-model"


def test_wait_tells_each_change_and_raises_the_jobs_own_error(server: Scripted, client: pared.Client) -> None:
    running = JOB | {"status": "running", "stage": "retrain"}
    error = {"code": "diverged", "title": "Training diverged", "detail": "Lower lr."}
    server.say(
        Answer(body=JOB),
        Answer(body=JOB, headers={"ETag": 'W/"1"', "Preference-Applied": "wait=30"}),
        Answer(304, b"", {"Preference-Applied": "wait=30"}),
        problem(502, "bad-gateway"),
        Answer(body=running, headers={"ETag": 'W/"2"', "Preference-Applied": "wait=30"}),
        Answer(body=JOB | {"status": "failed", "error": error}),
    )
    seen: list[str] = []
    with pytest.raises(pared.JobFailed, match=r"diverged.*Lower lr") as caught:
        client.jobs.get("job_1").wait(on_update=lambda job: seen.append(job.status))
    assert seen == ["queued", "running", "failed"]
    assert caught.value.code == "diverged"
    assert server.asked[2].headers["if-none-match"] == 'W/"1"'
    assert server.asked[1].headers["prefer"] == "wait=30"


def test_a_timeout_is_not_a_failure(server: Scripted, client: pared.Client) -> None:
    server.say(*[Answer(body=JOB)] * 4)
    job = client.jobs.get("job_1")
    with pytest.raises(TimeoutError, match="goes on"):
        job.wait(timeout=0.2)
    assert job.status == "queued"


def test_the_list_follows_the_cursor(server: Scripted, client: pared.Client) -> None:
    server.say(
        Answer(body={"data": [JOB, JOB | {"id": "job_2"}], "has_more": True, "next_cursor": "job_2"}),
        Answer(body={"data": [JOB | {"id": "job_3"}], "has_more": False, "next_cursor": None}),
    )
    assert [job.id for job in client.jobs.list(status="queued")] == ["job_1", "job_2", "job_3"]
    assert server.asked[1].path == "/v1/jobs?status=queued&after=job_2"


def test_cancel_twice_is_no_error_but_cancel_after_the_end_is(server: Scripted, client: pared.Client) -> None:
    server.say(problem(409, "conflict"), Answer(body=JOB | {"status": "canceled"}))
    assert client.jobs.cancel("job_1").status == "canceled"
    server.say(problem(409, "conflict"), Answer(body=JOB | {"status": "succeeded"}))
    with pytest.raises(pared.APIError):
        client.jobs.cancel("job_1")


def test_events_reconnect_behind_the_last_one_seen(server: Scripted, job: pared.Job) -> None:
    first = b': hello\n\nid: 1\nevent: status\ndata: {"status": "queued"}\n\n'
    first += b'id: 2\nevent: log\r\ndata: {"text": "\xc3\xa4"}\n\n'
    unfinished = b'id: 3\nevent: log\ndata: {"te'
    rest = b'id: 3\nevent: log\ndata: {"text": "b"}\n\nid: 4\nevent: done\ndata: {"status": "succeeded"}\n\n'
    server.say(
        Answer(body=first + unfinished + b" " * 50, cut_after=len(first + unfinished)),
        Answer(body=rest),
    )
    events = list(job.events())
    assert [(event.id, event.event) for event in events] == [(1, "status"), (2, "log"), (3, "log"), (4, "done")]
    assert events[1].data == {"text": "ä"}
    assert "last-event-id" not in server.asked[0].headers
    assert server.asked[1].headers["last-event-id"] == "2"


def test_events_behind_the_last_one_end(server: Scripted, job: pared.Job) -> None:
    server.say(Answer(body=b""), Answer(body=JOB | {"status": "succeeded"}))
    assert list(job.events(after=9)) == []


def ranged(asked: Asked, *, cut: int | None = None, content: bytes = FILE) -> Answer:
    start = int(asked.headers.get("range", "bytes=0-")[6:-1])
    return Answer(206 if start else 200, content[start:], cut_after=cut)


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server: Scripted, job: pared.Job, tmp_path: Path) -> None:
    server.say(Answer(body=ARTIFACTS), lambda asked: ranged(asked, cut=50_000), ranged)
    assert job.download(tmp_path / "small.pt").read_bytes() == FILE
    assert server.asked[2].headers["range"] == "bytes=50000-"
    assert server.asked[2].headers["if-range"] == f'"{hashlib.sha256(FILE).hexdigest()}"'
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt"]


def test_a_part_of_another_file_is_not_believed(server: Scripted, job: pared.Job, tmp_path: Path) -> None:
    (tmp_path / "model.pt.part").write_bytes(b"x" * 1000)
    server.say(Answer(body=ARTIFACTS), ranged, ranged)
    assert job.download(tmp_path).read_bytes() == FILE
    assert "range" not in server.asked[2].headers


def test_a_damaged_download_is_never_put_in_place(server: Scripted, job: pared.Job, tmp_path: Path) -> None:
    damaged = b"!" + FILE[1:]
    server.say(Answer(body=ARTIFACTS), *[lambda asked: ranged(asked, content=damaged)] * 2)
    with pytest.raises(DigestMismatch):
        job.download(tmp_path / "small.pt")
    assert list(tmp_path.iterdir()) == []


def test_the_ending_of_the_path_chooses_the_artifact(server: Scripted, job: pared.Job, tmp_path: Path) -> None:
    row = ARTIFACTS["data"][0]
    server.say(Answer(body={"data": [row, row | {"name": "model.onnx"}]}), ranged)
    job.download(tmp_path / "small.onnx")
    assert server.asked[1].path == "/v1/jobs/job_1/artifacts/model.onnx"
    server.say(Answer(body=ARTIFACTS))
    with pytest.raises(FileNotFoundError, match=r"only: model\.pt"):
        job.download(tmp_path, name="model.safetensors")
    server.say(Answer(body={"data": [row, row | {"name": "architecture.json"}]}), ranged)
    job.download(tmp_path / "architecture.json")
    assert server.asked[-1].path == "/v1/jobs/job_1/artifacts/architecture.json"
    server.say(Answer(body=ARTIFACTS))
    with pytest.raises(FileNotFoundError, match=r"no artifact 'model\.onnx', only: model\.pt"):
        job.download(tmp_path / "small.onnx")


def test_a_job_without_one_of_its_formats_has_succeeded_and_says_so(
    server: Scripted, client: pared.Client, tmp_path: Path
) -> None:
    failed = {"format": "onnx", "code": "export-failed", "detail": "ONNX cannot hold this model."}
    result = {"verdict": "smaller", "artifacts": ARTIFACTS["data"], "failed_outputs": [failed]}
    server.say(Answer(body=JOB), Answer(body=JOB | {"status": "succeeded", "result": result}))
    job = client.jobs.get("job_1")
    assert job.failed_outputs == []
    assert [each.model_dump() for each in job.wait().failed_outputs] == [failed]
    assert str(job) == "job_1 prune succeeded without onnx"
    server.say(Answer(body=ARTIFACTS))
    with pytest.raises(FileNotFoundError, match=r"only: model\.pt\. onnx could not be written: ONNX cannot hold"):
        job.download(tmp_path / "small.onnx")


def test_a_folder_takes_the_model_in_whatever_format_it_has(server: Scripted, job: pared.Job, tmp_path: Path) -> None:
    server.say(Answer(body={"data": [ARTIFACTS["data"][0] | {"name": "model.pt2"}]}), ranged)
    assert job.download(tmp_path) == tmp_path / "model.pt2"


def test_the_key_is_sent(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARED_URL", server.url + "/")
    monkeypatch.setenv("PARED_API_KEY", "pared_secret")
    server.say(Answer(body=JOB))
    pared.Client().jobs.get("job_1")
    assert server.asked[0].headers["authorization"] == "Bearer pared_secret"
    assert server.asked[0].path == "/v1/jobs/job_1"
    server.say(Answer(body=JOB))
    pared.Client(api_key="").jobs.get("job_1")
    assert "authorization" not in server.asked[1].headers


def test_the_demos_own_server_is_told_nothing_that_was_meant_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PARED_API_KEY", "PARED_HOST", "PARED_DATABASE_URL", "PARED_ALLOW_WEAK_SANDBOX"):
        monkeypatch.setenv(name, "1")
    told = _own_environment()
    assert [name for name in told if name.startswith("PARED_")] == ["PARED_ALLOW_WEAK_SANDBOX"]
    assert told["PATH"] == os.environ["PATH"]


def test_neither_file_nor_id_is_said_before_anything_is_sent(server: Scripted, client: pared.Client) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        client.prune("nowhere.pt", "builtin:digits")
    assert server.asked == []


def test_the_async_client_does_the_same(server: Scripted, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(FILE)
    row = {"id": "mdl_1", "filename": "m.pt", "size_bytes": 1, "status": "ready"}
    rest = b'id: 3\nevent: done\ndata: {"status": "succeeded"}\n\n'
    server.say(
        lambda asked: Answer(201, row | {"sha256": hashlib.sha256(asked.body).hexdigest()}),
        problem(503, "unavailable"),
        Answer(202, JOB),
        Answer(body=b'id: 2\nevent: log\ndata: {"text": "a"}\n\n' + b" " * 9, cut_after=40),
        Answer(body=rest),
        Answer(body=JOB | {"status": "succeeded"}),
        Answer(body=ARTIFACTS),
        lambda asked: ranged(asked, cut=50_000),
        ranged,
        Answer(body={"data": [JOB], "has_more": False, "next_cursor": None}),
    )

    async def journey() -> None:
        async with pared.AsyncClient(server.url) as client:
            job = await client.prune(tmp_path / "m.pt", "builtin:digits", amount=0.5)
            assert [event.id async for event in job.events()] == [2, 3]
            assert (await job.wait()).status == "succeeded"
            assert (await job.download(tmp_path / "small.pt")).read_bytes() == FILE
            assert [job.id async for job in client.jobs.list()] == ["job_1"]

    anyio.run(journey)
    assert server.answers == []
