"""Uploads: whole or not there, once for the same file, flat in memory, advice when refused."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from pared.state.objects import content_key
from pared.state.tables import Job, Model
from tests.integration.service.conftest import Api, serving
from tests.support.processes import wait_for


def test_an_upload_is_stored_under_its_digest_and_inspected(api: Api):
    content = os.urandom(100_000)
    answer = api.post("/v1/models", params={"filename": "lenet.pt"}, content=content)
    assert answer.status_code == 201
    model = answer.json()
    assert answer.headers["location"] == f"/v1/models/{model['id']}" == model["links"]["self"]
    assert model["sha256"] == hashlib.sha256(content).hexdigest()
    assert (model["size_bytes"], model["status"], model["filename"]) == (100_000, "inspecting", "lenet.pt")
    assert b"".join(api.parts.store.read(content_key(model["sha256"]))) == content
    with api.parts.sessions() as session:
        specs = session.scalars(select(Job.spec).where(Job.type == "inspect")).all()
    assert {"type": "inspect", "subject": model["id"], "architecture": None} in specs


def test_the_same_file_under_the_same_name_is_the_same_model(api: Api):
    first = api.post("/v1/models?filename=a.pt", content=b"same bytes")
    again = api.post("/v1/models?filename=a.pt", content=b"same bytes")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    others = [
        api.post("/v1/models?filename=b.pt", content=b"same bytes"),
        api.post("/v1/models?filename=a.pt&architecture=lenet5", content=b"same bytes"),
        api.post("/v1/models?filename=a.pt", content=b"other bytes"),
    ]
    assert [answer.status_code for answer in others] == [201] * 3
    api.inspected(first.json()["id"], status="rejected")
    assert api.post("/v1/models?filename=a.pt", content=b"same bytes").status_code == 201


def test_another_part_of_the_same_checkpoint_is_another_model(api: Api):
    ids = set()
    for part in ("", "&weights=ema", "&prefix=net.", "&weights=ema&prefix=net."):
        first, again = (api.post(f"/v1/models?filename=a.ckpt{part}", content=b"checkpoint") for _ in range(2))
        assert (first.status_code, again.status_code) == (201, 200)
        ids.add(first.json()["id"])
    assert len(ids) == 4
    assert (again.json()["weights"], again.json()["prefix"]) == ("ema", "net.")
    assert api.get(f"/v1/models/{again.json()['id']}").json()["weights"] == "ema"
    form = api.post("/v1/models", files={"file": ("a.ckpt", b"checkpoint")}, data={"weights": "ema", "prefix": "net."})
    assert (form.status_code, form.json()["id"]) == (200, again.json()["id"])
    for bad in ("x" * 256, "a\0b"):
        answer = api.post("/v1/models", files={"file": ("a.ckpt", b"checkpoint")}, data={"weights": bad})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/weights")


def test_forms_and_puts_are_taken_too(api: Api):
    content = os.urandom(9_000_000)  # several batches, with the boundary anywhere
    form = api.post("/v1/datasets", files={"file": ("digits.npz", content)}, data={"note": "ignored"})
    assert form.status_code == 201
    assert form.json()["sha256"] == hashlib.sha256(content).hexdigest()
    assert form.json()["filename"] == "digits.npz"
    put = api.put("/v1/datasets?filename=digits.npz", content=content)  # curl -T
    assert (put.status_code, put.json()["id"]) == (200, form.json()["id"])
    state_dict = api.post("/v1/models", files={"file": ("w.pt", b"weights")}, data={"architecture": "lenet5"})
    assert state_dict.json()["architecture"] == "lenet5"


def test_a_body_of_unknown_length_is_taken(api: Api):
    answer = api.post("/v1/models?filename=chunked.pt", content=(b"x" * 1000 for _ in range(50)))
    assert (answer.status_code, answer.json()["size_bytes"]) == (201, 50_000)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\models\\a.pt", "a.pt"),
        ("a\x00b\n.pt", "ab.pt"),
        ("é 模型.pt", "é 模型.pt"),
        ("/", "upload"),
        ("x" * 400, "x" * 255),
    ],
)
def test_a_file_name_is_only_shown(api: Api, given: str, shown: str):
    assert api.upload(b"name test", given)["filename"] == shown


def test_what_cannot_be_an_upload_is_refused_with_advice(api: Api):
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
    two_files = [("file", ("a", b"1")), ("file", ("b", b"2"))]
    refused = [
        (api.post("/v1/models", content=b""), 422, "empty"),
        (api.post("/v1/models", files={"file": ("a.pt", b"")}), 422, "empty"),
        (api.post("/v1/models", data={"x": "y"}, files={}), 201, ""),  # a urlencoded form is just bytes
        (api.post("/v1/models", files={"x": (None, b"text")}), 422, "no file"),
        (api.post("/v1/models", files=two_files), 422, "several"),
        (api.post("/v1/models", content=part, headers=boundary), 422, "ends too early"),
        (api.post("/v1/models", content=b"nonsense", headers=boundary), 422, "cannot be read"),
        (api.post("/v1/models", content=b"x", headers={"content-type": "multipart/form-data"}), 422, "boundary"),
        (api.post("/v1/models", content=b"x", headers={"content-encoding": "gzip"}), 422, "Content-Encoding"),
        (api.post("/v1/models?architecture={", content=b"x"), 422, "JSON"),
        (api.post('/v1/models?architecture={"layers":[]}', content=b"x"), 422, "architecture"),
        (api.post("/v1/models?architecture=a b", content=b"x"), 422, "name"),
    ]
    for answer, status, text in refused:
        assert answer.status_code == status, answer.text
        if status != 201:
            assert answer.headers["content-type"] == "application/problem+json"
            assert text in answer.json()["detail"]


def test_too_large_is_told_at_once_and_while_it_streams(tmp_path: Path):
    with serving(tmp_path, max_upload_bytes=1_000_000) as api:
        for content in (b"x" * 1_000_001, (b"x" * 100_000 for _ in range(20))):
            answer = api.post("/v1/models", content=content)
            assert answer.status_code == 413
            assert "1,000,000 bytes" in answer.json()["detail"]
        assert api.post("/v1/models", content=b"x" * 1_000_000).status_code == 201
        with socket.create_connection(("127.0.0.1", api.parts.settings.port)) as raw:
            raw.sendall(b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
            assert b" 413 " in raw.recv(100)  # before any of the body
        assert list((tmp_path / "objects" / ".incoming").iterdir()) == []


def test_a_client_that_leaves_in_the_middle_leaves_nothing(api: Api):
    incoming = api.parts.store.root / ".incoming"
    before = _count_models(api)
    with socket.create_connection(("127.0.0.1", api.parts.settings.port)) as raw:
        raw.sendall(
            b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n\r\n" + b"x" * 9_000_000
        )
        wait_for(lambda: any(path.stat().st_size > 4_000_000 for path in incoming.iterdir()), "half is written")
    wait_for(lambda: not list(incoming.iterdir()), "the half is gone")
    assert _count_models(api) == before


def _count_models(api: Api) -> int:
    with api.parts.sessions() as session:
        return len(session.scalars(select(Model.id)).all())


def test_memory_stays_flat_whatever_the_size(api: Api):
    """400 MB through this very process, which is the server and the client."""
    block = os.urandom(1 << 20)
    api.upload(block)
    process, most, over = psutil.Process(), 0, threading.Event()
    base = process.memory_info().rss

    def watch():
        nonlocal most
        while not over.is_set():
            most = max(most, process.memory_info().rss)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    answer = api.post("/v1/models?filename=big", content=(block for _ in range(400)))
    over.set()
    watcher.join()
    assert answer.json()["size_bytes"] == 400 << 20
    assert most - base < 64 << 20


def test_uploads_are_listed_newest_first_in_pages(tmp_path: Path):
    with serving(tmp_path) as api:
        ids = [api.upload(filename=f"{number}.pt")["id"] for number in range(5)]
        seen, after = [], None
        while True:
            page = api.get("/v1/models", params={"limit": 2} | ({"after": after} if after else {})).json()
            seen += [model["id"] for model in page["data"]]
            after = page["next_cursor"]
            if not page["has_more"]:
                break
            if len(seen) == 2:
                api.upload(filename="while.pt")  # neither repeats nor skips what was there
        assert seen == sorted(ids, reverse=True)
        assert after is None


def test_a_deleted_upload_is_gone_unless_a_job_needs_it(api: Api):
    model = api.upload(b"to be deleted")
    dataset = api.upload(b"data", "d.npz", "datasets")
    job = api.submit(model=model["id"], dataset=dataset["id"])
    for path in (model["links"]["self"], dataset["links"]["self"]):
        answer = api.delete(path)
        assert answer.status_code == 409
        assert job["id"] in answer.json()["detail"]
    api.post(f"/v1/jobs/{job['id']}/cancel")
    for path in (model["links"]["self"], dataset["links"]["self"]):
        assert api.delete(path).status_code == 204
        assert api.get(path).status_code == 404
        assert api.delete(path).status_code == 404
    answer = api.post("/v1/jobs", json={"type": "prune", "model": model["id"], "amount": 0.5})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (404, "/model")


def test_a_student_given_by_id_is_in_use_too(api: Api):
    teacher, student = api.upload(b"teacher"), api.upload(b"student")
    spec = {"type": "distill", "teacher": teacher["id"], "student": student["id"], "dataset": "builtin:digits"}
    assert api.post("/v1/jobs", json=spec).status_code == 202
    assert [api.delete(one["links"]["self"]).status_code for one in (teacher, student)] == [409, 409]


def test_waiting_for_the_inspection_ends_with_it(api: Api):
    model = api.upload(b"to be inspected")
    look = api.get(model["links"]["self"])
    assert look.headers["retry-after"] == "1"
    threading.Timer(0.4, api.inspected, [model["id"]], {"format": "torchscript"}).start()
    began = time.monotonic()
    answer = api.get(model["links"]["self"], headers={"prefer": "wait=20"})
    assert (answer.json()["status"], answer.json()["format"]) == ("ready", "torchscript")
    assert answer.headers["preference-applied"] == "wait=20"
    assert "retry-after" not in answer.headers
    assert 0.3 < time.monotonic() - began < 18
    assert api.get(model["links"]["self"], headers={"if-none-match": answer.headers["etag"]}).status_code == 304


def test_the_built_in_data_set_is_always_there(api: Api):
    answer = api.get("/v1/datasets/builtin:digits")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert api.delete("/v1/datasets/builtin:digits").status_code == 409


@pytest.mark.parametrize(
    "upload_id", ["x", "mdl_1", "dst_" + "0" * 26, "mdl_" + "0" * 26, "mdl_%00" + "0" * 25, "..%2f"]
)
def test_absent_models_are_not_found(api: Api, upload_id: str):
    for answer in (api.get(f"/v1/models/{upload_id}"), api.delete(f"/v1/models/{upload_id}")):
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")
