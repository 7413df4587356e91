"""The service with its objects in a S3-compatible server's bucket: handed out whole or not at all; none is lost."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import obstore
import pytest

from pared.errors import Unavailable
from pared.state.buckets import BucketStore
from pared.state.objects import content_key, open_store
from pared.state.settings import Settings
from tests.faults.test_faults import assert_settled, checkpoint_step, tiny, training
from tests.support.forks import run_pared
from tests.support.models import zoo
from tests.support.processes import Processes, wait_for
from tests.support.s3 import S3Server
from tests.support.servers import Servers, free_port
from tests.support.stack import Stack, new_stack


@pytest.fixture(scope="module")
def stack(processes: Processes, scratch: Path, servers: Servers, s3: S3Server) -> Iterator[Stack]:
    """One worker, PostgreSQL, Redis and a bucket."""
    settings = {"objects_url": s3.new_url(), "lease_s": "8", "heartbeat_s": "0.5"}
    started = new_stack(scratch / "bucket", processes, servers, **settings)
    yield started
    started.stop()


@pytest.fixture
def store(stack: Stack, tmp_path: Path) -> BucketStore:
    """The stack's own bucket, as another machine sees it."""
    opened = open_store(Settings(data_dir=tmp_path, objects_url=stack.env["PARED_OBJECTS_URL"]))
    assert isinstance(opened, BucketStore)
    return opened


@pytest.fixture(scope="module")
def job(stack: Stack) -> str:
    """A job that succeeded."""
    submitted = stack.submit(tiny(stack))
    stack.succeeded(submitted)
    return submitted


def key_of(stack: Stack, job: str) -> str:
    found = stack.rows("SELECT object_key FROM artifacts WHERE job_id = :id AND name = 'model.pt'", id=job)
    return str(found[0].object_key)


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_results_come_from_the_bucket_whole_in_part_and_with_their_digest(
    stack: Stack, s3: S3Server, store: BucketStore, job: str
) -> None:
    whole = stack.download(job)
    assert b"".join(store.read(key_of(stack, job))) == whole
    path = f"/v1/jobs/{job}/artifacts/model.pt"
    part = stack.http.get(path, headers={"Range": "bytes=10-99"})
    assert (part.status_code, part.content) == (206, whole[10:100])
    assert part.headers["content-range"] == f"bytes 10-99/{len(whole)}"
    sha256 = hashlib.sha256(whole)
    assert part.headers["etag"] == f'"{sha256.hexdigest()}"'
    assert part.headers["repr-digest"] == f"sha-256=:{base64.b64encode(sha256.digest()).decode()}:"
    assert stack.http.get(path, headers={"If-None-Match": part.headers["etag"]}).status_code == 304
    assert stack.http.head(path).headers["content-length"] == str(len(whole))
    assert files_of(stack.data / "staging") == []
    assert not (stack.data / "objects").exists()
    # Children get neither the server's address nor what opens it.
    children = [process.environ() for process in stack.workers[0].tree() if process.environ().get("USER") == "pared"]
    assert children
    assert not [name for environ in children for name in environ if name.startswith("AWS_")]
    logged = "".join(log.read_text() for log in stack.folder.glob("*.log"))
    assert not [secret for secret in s3.secrets if secret in logged]


def test_a_large_upload_in_pieces_becomes_an_object(stack: Stack, store: BucketStore) -> None:
    content = os.urandom(40 << 20)
    kind, name = (base64.b64encode(text).decode() for text in (b"model", b"large.pt"))
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": str(len(content)),
        "Upload-Metadata": f"kind {kind},filename {name}",
    }
    begun = stack.http.post("/v1/uploads", headers=headers)
    assert begun.status_code == 201, begun.text
    sent = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
    for offset in (0, 20 << 20):
        piece = content[offset : offset + (20 << 20)]
        answer = stack.http.patch(
            begun.headers["location"], content=piece, headers=sent | {"Upload-Offset": str(offset)}
        )
        assert answer.status_code == 204, answer.text
    sha256 = hashlib.sha256(content).hexdigest()
    assert store.size(content_key(sha256)) == len(content)
    assert files_of(stack.data / "staging") == []


def test_damaged_and_missing_objects_are_found_and_never_handed_out(stack: Stack, store: BucketStore, job: str) -> None:
    key, whole = key_of(stack, job), stack.download(job)

    def is_refused_as(problem: str) -> None:
        answer = stack.http.get(f"/v1/jobs/{job}/artifacts/model.pt")
        assert (answer.status_code, answer.json()["type"]) == (500, "/problems/corrupt-object")
        report = run_pared(["fsck", "--json"], cwd=stack.folder, env=stack.env)
        assert report.returncode == 1
        assert {"what": key, "problem": problem}.items() <= json.loads(report.stdout)["findings"][0].items()

    store.put([b"x" * len(whole)], key=key)
    is_refused_as("damaged")
    store.delete(key)
    is_refused_as("missing")
    store.put([whole], key=key)
    assert stack.download(job) == whole
    assert "0 findings" in stack.run("fsck")


def test_a_job_never_works_on_a_damaged_upload_and_another_upload_mends_it(stack: Stack, store: BucketStore) -> None:
    spec, content = tiny(stack), zoo.upload("mlp", "scripted")
    key = content_key(hashlib.sha256(content).hexdigest())
    store.put([b"y" * len(content)], key=key)
    failed = stack.ended(stack.submit(spec | {"seed": 1}))
    assert (failed["status"], failed["error"]["code"]) == ("failed", "corrupt-object")
    stack.upload_model(content, "mlp.pt")
    assert b"".join(store.read(key)) == content


def test_what_is_deleted_is_collected(stack: Stack, store: BucketStore) -> None:
    content = os.urandom(1000)
    upload = stack.upload_model(content, "some.pt")
    stack.inspected(upload)
    key = content_key(hashlib.sha256(content).hexdigest())
    assert stack.http.delete(f"/v1/models/{upload}").status_code == 204

    env = stack.env | {"PARED_KEEP_UNREFERENCED_S": "1"}

    def collected() -> bool:
        assert run_pared(["gc"], cwd=stack.folder, env=env).returncode == 0
        return not store.exists(key)

    wait_for(collected, "the object is collected")


def test_while_the_bucket_is_away_requests_are_told_so_and_jobs_wait(stack: Stack, s3: S3Server, job: str) -> None:
    spec, half = tiny(stack), threading.Event()

    def body() -> Iterator[bytes]:
        yield os.urandom(20 << 20)
        half.set()
        s3.process.kill()
        yield content

    content = os.urandom(20 << 20)
    answer = stack.post_model(body())
    assert half.is_set()
    download = stack.http.get(f"/v1/jobs/{job}/artifacts/model.pt")
    for told in (answer, download):
        assert (told.status_code, told.json()["type"]) == (503, "/problems/unavailable"), told.text
        assert int(told.headers["retry-after"]) > 0
    assert files_of(stack.data / "staging") == []
    ready = wait_for(lambda: _not_ready(stack), "/readyz says that the store is away")
    assert ready["checks"]["store"]["status"] == "failed"
    wait_for(lambda: _takes_no_jobs(stack), "the worker knows it too")
    waiting = stack.submit(spec | {"seed": 3})
    assert stack.job(waiting)["status"] == "queued"
    s3.start()
    stack.succeeded(waiting)
    # The worker may look while the server answers and has not yet found its volumes: tried again, at no cost.
    assert_settled(stack, [waiting], once=False)
    assert stack.job_row(waiting).crash_count == 0
    stack.download(job)
    assert stack.post_model(content).status_code == 201


def _not_ready(stack: Stack) -> dict | None:
    answer = stack.http.get("/readyz")
    return answer.json() if answer.status_code == 503 and answer.json()["checks"]["store"]["status"] != "ok" else None


def _takes_no_jobs(stack: Stack) -> bool:
    return [json.loads(row.devices) for row in stack.rows("SELECT CAST(devices AS text) AS devices FROM workers")] == [
        []
    ]


@pytest.mark.campaign
def test_a_bucket_that_is_away_under_a_job_costs_it_nothing(stack: Stack, s3: S3Server) -> None:
    job = stack.submit(training(stack, 10))
    wait_for(lambda: checkpoint_step(stack, job) >= 1, "a checkpoint")
    s3.process.kill()
    wait_for(lambda: stack.workers[0].records(event="result_not_stored"), "the result waits")
    s3.start()
    stack.succeeded(job)
    assert_settled(stack, [job])
    print("\nbucket away from the first checkpoint until the result was made: the job succeeded in one attempt")


def test_downloads_may_be_redirected_to_the_bucket(stack: Stack, s3: S3Server, processes: Processes, job: str) -> None:
    whole, port = stack.download(job), free_port()
    env = stack.env | {"PARED_PRESIGNED_DOWNLOADS": "1", "PARED_PORT": str(port)}
    log = stack.folder / "presigning.log"
    api = processes.fork("pared.cli", ["api"], name="presigning", log=log, cwd=stack.folder, env=env)
    url = f"http://127.0.0.1:{port}/v1/jobs/{job}/artifacts/model.pt"
    answer = wait_for(lambda: _answer(url), "the second API answers")
    assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
    assert answer.headers["location"].startswith(f"{s3.endpoint}/")
    assert httpx.get(answer.headers["location"], headers={"Range": "bytes=5-9"}).content == whole[5:10]
    assert httpx.head(url).status_code == 200
    assert httpx.get(url, headers={"Prefer": "no-redirect"}).content == whole
    api.kill()


def _answer(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url)
    except httpx.TransportError:
        return None


def test_who_puts_again_what_is_being_deleted_has_it_afterwards(
    store: BucketStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delete of one machine is held back between its look at the object's age and its request."""
    key = store.put([b"again"]).key
    looked, go_on, delete = threading.Event(), threading.Event(), obstore.delete

    def held_back(bucket: object, path: str) -> None:
        if path == key:
            looked.set()
            assert go_on.wait(60)
        delete(bucket, path)

    monkeypatch.setattr(obstore, "delete", held_back)
    deleting = threading.Thread(target=store.delete, args=(key,))
    deleting.start()
    assert looked.wait(60)
    putting = threading.Thread(target=store.put, args=([b"again"],))
    putting.start()
    putting.join(1.0)
    assert putting.is_alive(), "it waits for whoever may delete what it put"
    go_on.set()
    deleting.join(60)
    putting.join(60)
    assert store.exists(key)


def test_a_bucket_that_refuses_us_is_told_apart_from_an_object_that_is_gone(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused = open_store(Settings(data_dir=tmp_path, objects_url="s3://pared-tests/refused"))
    for use in (refused.check, lambda: refused.put([b"abc"]), lambda: list(refused.list_older_than(0))):
        with pytest.raises(Unavailable):
            use()
