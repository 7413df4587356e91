"""The service with its objects in the bucket of a real S3-compatible server: handed out whole or not at all, none lost."""

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
from tests.support.servers import Servers
from tests.support.stack import Stack, new_stack


@pytest.fixture(scope="module")
def stack(processes: Processes, scratch: Path, servers: Servers, s3: S3Server) -> Iterator[Stack]:
    """One worker, PostgreSQL, Redis and a bucket; what is collected is soon old enough."""
    settings = {"objects_url": s3.new_url(), "keep_unreferenced_s": "2", "lease_s": "8", "heartbeat_s": "0.5"}
    started = new_stack(scratch / "bucket", processes, servers, **settings)
    yield started
    started.stop()


@pytest.fixture
def store(stack: Stack, tmp_path: Path) -> BucketStore:
    """The stack's own bucket, as another machine sees it."""
    opened = open_store(Settings(data_dir=tmp_path, objects_url=stack.env["PARED_OBJECTS_URL"]))
    assert isinstance(opened, BucketStore)
    return opened


def key_of(stack: Stack, job: str, name: str = "model.pt") -> str:
    found = stack.rows("SELECT object_key FROM artifacts WHERE job_id = :id AND name = :name", id=job, name=name)
    return str(found[0].object_key)


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_results_come_from_the_bucket_whole_in_part_and_with_their_digest(
    stack: Stack, s3: S3Server, store: BucketStore
) -> None:
    job = stack.submit(tiny(stack))
    stack.succeeded(job)
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
    name = base64.b64encode(b"large.pt").decode()
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(content)), "Upload-Metadata": f"filename {name}"}
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


def test_damaged_and_missing_objects_are_found_and_never_handed_out(stack: Stack, store: BucketStore) -> None:
    jobs = [stack.submit(tiny(stack) | {"seed": seed}) for seed in (1, 2)]
    for job in jobs:
        stack.succeeded(job)
    damaged, missing = (key_of(stack, job) for job in jobs)
    size = store.size(damaged)
    store.put([b"x" * size], key=damaged)
    store.delete(missing)
    for job in jobs:
        answer = stack.http.get(f"/v1/jobs/{job}/artifacts/model.pt")
        assert (answer.status_code, answer.json()["type"]) == (500, "/problems/corrupt-object")
    content = zoo.upload("mlp", "scripted") + b"\0"
    upload = stack.upload_model(content, "mlp.pt")
    stack.inspected(upload)
    key = content_key(hashlib.sha256(content).hexdigest())
    store.put([b"y" * len(content)], key=key)
    failed = stack.ended(stack.submit(tiny(stack) | {"model": upload}))
    assert (failed["status"], failed["error"]["code"]) == ("failed", "corrupt-object")
    report = run_pared(["fsck", "--json"], cwd=stack.folder, env=stack.env)
    assert report.returncode == 1
    found = {finding["what"]: finding["problem"] for finding in json.loads(report.stdout)["findings"]}
    assert found.items() >= {damaged: "damaged", missing: "missing", key: "damaged"}.items()
    stack.upload_model(content, "mlp.pt")
    assert b"".join(store.read(key)) == content, "an upload mends its object"


def test_what_is_deleted_is_collected(stack: Stack, store: BucketStore) -> None:
    content = os.urandom(1000)
    upload = stack.upload_model(content, "some.pt")
    stack.inspected(upload)
    key = content_key(hashlib.sha256(content).hexdigest())
    assert stack.http.delete(f"/v1/models/{upload}").status_code == 204

    def collected() -> bool:
        stack.run("gc")
        return not store.exists(key)

    wait_for(collected, "the object is collected")
    assert "0 objects" in stack.run("gc", "--dry-run")


def test_while_the_bucket_is_away_requests_are_told_so_and_jobs_wait(stack: Stack, s3: S3Server) -> None:
    spec = tiny(stack)
    done = stack.submit(spec)
    stack.succeeded(done)
    half = threading.Event()

    def body() -> Iterator[bytes]:
        yield os.urandom(20 << 20)
        half.set()
        s3.process.kill()
        yield content

    content = os.urandom(20 << 20)
    answer = stack.post_model(body())
    assert half.is_set()
    download = stack.http.get(f"/v1/jobs/{done}/artifacts/model.pt")
    for told in (answer, download):
        assert (told.status_code, told.json()["type"]) == (503, "/problems/unavailable"), told.text
        assert int(told.headers["retry-after"]) > 0
    assert files_of(stack.data / "staging") == []
    job = stack.submit(spec | {"seed": 3})
    ready = wait_for(lambda: _not_ready(stack), "/readyz says that the store is away")
    assert ready["checks"]["store"]["status"] == "failed"
    assert stack.job(job)["status"] == "queued"
    s3.start()
    stack.succeeded(job)
    stack.download(done)
    assert stack.post_model(content).status_code == 201
    assert_settled(stack, [job, done], once=False)


def _not_ready(stack: Stack) -> dict | None:
    answer = stack.http.get("/readyz")
    return answer.json() if answer.status_code == 503 and answer.json()["checks"]["store"]["status"] != "ok" else None


@pytest.mark.campaign
def test_a_bucket_that_is_away_under_a_job_costs_it_nothing(stack: Stack, s3: S3Server) -> None:
    job = stack.submit(training(stack, 40))
    wait_for(lambda: checkpoint_step(stack, job) >= 1, "a checkpoint")
    s3.process.kill()
    wait_for(lambda: stack.workers[0].records(event="result_not_stored"), "the result waits")
    s3.start()
    stack.succeeded(job)
    assert_settled(stack, [job])
    print("\nbucket away from the first checkpoint until the result was made: the job succeeded in one attempt")


def test_downloads_may_be_redirected_to_the_bucket(stack: Stack, s3: S3Server, processes: Processes) -> None:
    job = stack.submit(tiny(stack))
    stack.succeeded(job)
    whole = stack.download(job)
    stack.api.stop()
    stack.env["PARED_PRESIGNED_DOWNLOADS"] = "1"
    stack.start_api()
    try:
        stack.wait_ready()
        path = f"/v1/jobs/{job}/artifacts/model.pt"
        answer = stack.http.get(path)
        assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
        assert answer.headers["location"].startswith(f"{s3.endpoint}/")
        assert httpx.get(answer.headers["location"], headers={"Range": "bytes=5-9"}).content == whole[5:10]
        assert stack.http.head(path).status_code == 200
    finally:
        stack.api.stop()
        del stack.env["PARED_PRESIGNED_DOWNLOADS"]
        stack.start_api()
        stack.wait_ready()


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
