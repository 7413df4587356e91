"""Uploads in pieces: the tus protocol, real clients of it, and what becomes of pieces that nobody finished."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import socket
import threading
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import update
from tusclient.client import TusClient

import pared
from pared.client import uploading
from pared.state import partial_uploads
from pared.state.keys import create_key
from pared.state.sweep import Sweep
from pared.state.tables import Model, PartialUpload, db_now
from service import upload_stream
from tests.integration.service.conftest import Api, serving
from tests.support.processes import wait_for
from tests.support.scripted_server import Answer, Scripted

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = TUS | {"Content-Type": "application/offset+octet-stream"}
FILE = random.Random(0).randbytes(300_000)


def b64(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def metadata(**said: str) -> dict[str, str]:
    said = {"kind": "model", "filename": "m.pt"} | said
    return {"Upload-Metadata": ",".join(f"{name} {b64(text)}" for name, text in said.items())}


def create(api: httpx.Client, size: int = len(FILE), **said: str) -> str:
    answer = api.post("/v1/uploads", headers=TUS | {"Upload-Length": str(size)} | metadata(**said))
    assert answer.status_code == 201, answer.text
    assert answer.headers["tus-resumable"] == "1.0.0"
    return answer.headers["location"]


def send(api: httpx.Client, address: str, offset: int, content: Any, **headers: str) -> httpx.Response:
    merged = httpx.Headers(PIECE | {"Upload-Offset": str(offset)})
    merged.update({name.replace("_", "-"): value for name, value in headers.items()})
    return api.patch(address, content=content, headers=merged)


def offset(api: httpx.Client, address: str) -> int:
    answer = api.head(address, headers=TUS)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


def assert_is_the_file(api: Api, answer: httpx.Response, content: bytes = FILE) -> dict[str, Any]:
    row = api.get(answer.headers["upload-result"]).json()
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert row["size_bytes"] == len(content)
    stored = b"".join(api.parts.store.read(f"sha256/{row['sha256'][:2]}/{row['sha256']}"))
    assert stored == content
    return row


# -- the protocol ---------------------------------------------------------------------------------


def test_pieces_become_the_model_that_one_request_would_have_made(api: Api):
    address = create(api, architecture="lenet5", weights="ema", prefix="net.", filename="../dir/lenet.pt")
    assert send(api, address, 0, FILE[:1000]).headers["upload-offset"] == "1000"
    assert offset(api, address) == 1000
    last = send(api, address, 1000, FILE[1000:])
    assert last.status_code == 204
    assert last.headers["upload-offset"] == str(len(FILE))
    row = assert_is_the_file(api, last)
    assert (row["architecture"], row["weights"], row["prefix"], row["filename"]) == (
        "lenet5",
        "ema",
        "net.",
        "lenet.pt",
    )
    params = {"filename": "lenet.pt", "architecture": "lenet5", "weights": "ema", "prefix": "net."}
    again = api.post("/v1/models", params=params, content=FILE)
    assert (again.status_code, again.json()["id"]) == (200, row["id"])
    view = api.get(address).json()
    assert (view["offset"], view["result"]) == (len(FILE), f"/v1/models/{row['id']}")
    assert send(api, address, len(FILE), b"").headers["upload-result"] == f"/v1/models/{row['id']}"
    assert not api.parts.partial.path(address.rpartition("/")[2]).exists()


def test_a_data_set_is_inspected_as_any_other(api: Api):
    address = create(api, 5, kind="dataset", filename="d.npz")
    row = assert_is_the_file(api, send(api, address, 0, b"12345"), b"12345")
    assert row["id"].startswith("dst_")
    assert row["status"] == "inspecting"


def test_options_tell_what_the_server_can_do_without_a_version(api: Api):
    answer = api.options("/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert set(answer.headers["tus-extension"].split(",")) == {"creation", "termination", "expiration", "checksum"}
    assert "sha1" in answer.headers["tus-checksum-algorithm"].split(",")
    assert answer.headers["tus-max-size"] == str(16 * 2**30)


def test_another_version_is_refused_and_nothing_is_done(api: Api):
    address = create(api)
    wrong = {"Tus-Resumable": "0.2.2"}
    for answer in (
        api.post("/v1/uploads", headers=wrong | {"Upload-Length": "5"} | metadata()),
        api.patch(address, content=b"x", headers=PIECE | {"Upload-Offset": "0"} | wrong),
        api.head(address, headers=wrong),
        api.delete(address, headers=wrong),
    ):
        assert answer.status_code == 412
        assert (answer.headers["tus-version"], answer.headers["tus-resumable"]) == ("1.0.0", "1.0.0")
    assert offset(api, address) == 0


def test_a_piece_is_only_taken_where_the_upload_is(api: Api):
    address = create(api)
    send(api, address, 0, FILE[:10])
    for wrong in (0, 9, 11, len(FILE)):
        assert send(api, address, wrong, b"x").status_code == 409
    assert send(api, address, 10, FILE[10:] + b"x").status_code == 413
    assert send(api, address, 10, b"x", content_type="text/plain").status_code == 415
    by_post = PIECE | {"X-HTTP-Method-Override": "PATCH"}
    for nowhere in (api.patch(address, content=b"x", headers=PIECE), api.post(address, content=b"x", headers=by_post)):
        assert (nowhere.status_code, nowhere.json()["errors"][0]["pointer"]) == (422, "/header/upload-offset")
    assert offset(api, address) == 10
    assert_is_the_file(api, send(api, address, 10, FILE[10:]))


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_piece_whose_checksum_is_wrong_is_thrown_away(api: Api, algorithm: str):
    address = create(api)
    digest = b64(hashlib.new(algorithm, FILE[:1000]).digest())
    answer = send(api, address, 0, FILE[1:1001], upload_checksum=f"{algorithm} {digest}")
    assert (answer.status_code, answer.json()["type"]) == (460, "/problems/checksum-mismatch")
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert offset(api, address) == 0
    unreadable = send(api, address, 0, FILE[:1000], upload_checksum=f"{algorithm} ".encode() + b"\xed")
    assert (unreadable.status_code, unreadable.json()["type"]) == (400, "/problems/unsupported-checksum")
    assert send(api, address, 0, FILE[:1000], upload_checksum=f"{algorithm} {digest}").status_code == 204
    for unknown in ("md5 aGVsbG8=", "sha256", "sha256 ?", "crc32 AAAA"):
        assert send(api, address, 1000, b"x", upload_checksum=unknown).status_code == 400
    assert offset(api, address) == 1000
    assert_is_the_file(api, send(api, address, 1000, FILE[1000:]))


def test_a_file_that_is_not_the_one_announced_is_thrown_away(api: Api):
    address = create(api, 3, sha256=hashlib.sha256(b"abc").hexdigest())
    assert send(api, address, 0, b"abd").status_code == 460
    assert api.head(address, headers=TUS).status_code == 404


def test_deleted_uploads_are_gone_and_what_they_became_stays(api: Api):
    begun, done = create(api), create(api, 4)
    row = assert_is_the_file(api, send(api, done, 0, b"done"), b"done")
    for address in (begun, done):
        assert api.delete(address, headers=TUS).status_code == 204
        assert api.head(address, headers=TUS).status_code == 404
        assert send(api, address, 0, b"x").status_code == 404
    assert api.get(f"/v1/models/{row['id']}").status_code == 200


def test_the_description_says_which_headers_must_be_there(api: Api):
    operations = api.get("/openapi.json").json()["paths"]
    required = {
        (method, parameter["name"].lower())
        for path in ("/v1/uploads", "/v1/uploads/{upload_id}")
        for method, operation in operations[path].items()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "header" and parameter.get("required")
    }
    assert required == {("post", "upload-length"), ("post", "upload-metadata"), ("patch", "upload-offset")}


def test_other_methods_may_be_named_in_a_header(api: Api):
    address = create(api, 2)
    override = PIECE | {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0"}
    assert api.post(address, content=b"1", headers=override).headers["upload-offset"] == "1"
    assert api.post(address, headers=TUS | {"X-HTTP-Method-Override": "DELETE"}).status_code == 204
    assert api.post(address, headers=TUS).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Length": "0"} | metadata(), 422),
        ({"Upload-Length": "x"} | metadata(), 422),
        ({"Upload-Length": "-1"} | metadata(), 422),
        ({"Upload-Length": str(2**50)} | metadata(), 413),
        (metadata(), 422),
        ({"Upload-Length": "5"}, 422),
        ({"Upload-Length": "5"} | metadata(kind="file"), 422),
        ({"Upload-Length": "5"} | metadata(sha256="00"), 422),
        ({"Upload-Length": "5"} | metadata(architecture="{"), 422),
        ({"Upload-Length": "5"} | metadata(prefix="x" * 300), 422),
        ({"Upload-Length": "5", "Upload-Metadata": "kind ***"}, 422),
        ({"Upload-Length": "5", "Upload-Metadata": b"kind \xed"}, 422),
        ({"Upload-Length": "5", "Upload-Defer-Length": "1", "Upload-Metadata": "kind /w=="}, 422),
    ],
)
def test_what_cannot_be_begun_is_refused_before_a_byte_is_sent(api: Api, headers: dict, status: int):
    answer = api.post("/v1/uploads", headers=TUS | headers)
    assert answer.status_code == status
    assert answer.json()["detail"]
    assert answer.headers["tus-resumable"] == "1.0.0"


# -- connections that break -----------------------------------------------------------------------


def half_a_piece(api: Api, address: str, at: int, content: bytes, announced: int) -> socket.socket:
    """A connection that announces more bytes than it brings, still open."""
    connection = socket.create_connection(("127.0.0.1", api.parts.settings.port))
    head = f"PATCH {address} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {announced}\r\nUpload-Offset: {at}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in PIECE.items())
    connection.sendall(head.encode() + b"\r\n" + content)
    return connection


def test_what_came_before_a_connection_broke_is_kept(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(upload_stream, "BATCH_BYTES", 1)
    address, at = create(api), 0
    path = api.parts.partial.path(address.rpartition("/")[2])
    for length in (1, 70_000, 100_000):
        with contextlib.closing(half_a_piece(api, address, at, FILE[at : at + length], len(FILE) - at)):
            at += length
            wait_for(lambda want=at: path.stat().st_size == want, f"{at} bytes arrived")
        wait_for(lambda want=at: offset(api, address) == want, f"{at} bytes are kept")
    assert_is_the_file(api, send(api, address, at, FILE[at:]))


def test_a_connection_that_was_thought_lost_writes_over_nothing(api: Api, monkeypatch: pytest.MonkeyPatch):
    address = create(api)
    lost = half_a_piece(api, address, 0, b"z" * 10, len(FILE))
    wait_for(lambda: fence(api, address) == 1, "the first connection has begun")
    assert send(api, address, 0, FILE[:1000]).status_code == 204
    lost.sendall(b"z" * (len(FILE) - 10))  # all that it announced: an answer comes
    assert b" 409 " in lost.recv(1 << 16)
    lost.close()
    assert offset(api, address) == 1000
    assert_is_the_file(api, send(api, address, 1000, FILE[1000:]))


def fence(api: Api, address: str) -> int:
    with api.parts.sessions() as session:
        return session.get(PartialUpload, address.rpartition("/")[2]).fence


def test_bytes_are_kept_while_a_long_request_goes_on(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(partial_uploads, "COMMIT_BYTES", 1 << 20)
    size = 12 << 20
    address = create(api, size)
    with contextlib.closing(half_a_piece(api, address, 0, bytes(9 << 20), size)):
        wait_for(lambda: offset(api, address) >= 8 << 20, "batches of the open request are kept")


def test_an_upload_whose_api_died_before_the_row_was_made_is_completed_by_the_next_look(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    class Died(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Died

    parts = api.parts.partial
    for step in ("adopt", "_result"):
        address = create(api, filename=f"{step}.pt")
        upload_id = address.rpartition("/")[2]
        receiver = parts.receive("local", upload_id, 0)
        receiver.write([FILE])
        with monkeypatch.context() as patch:
            patch.setattr(parts._store if step == "adopt" else parts, step, die)
            with pytest.raises(Died):
                receiver.finish(whole=True)
        assert_is_the_file(api, api.head(address, headers=TUS))


# -- what is here already -------------------------------------------------------------------------


def test_a_file_that_is_here_needs_no_bytes_but_only_for_its_owner(guarded: Api):
    mine, other = ({"Authorization": f"Bearer {create_key(guarded.parts.sessions, name)}"} for name in ("a", "b"))
    content = b"of one owner"
    digest = hashlib.sha256(content).hexdigest()
    name = f"/v1/objects/sha256:{digest}"
    assert guarded.head(name, headers=mine).status_code == 404
    model = guarded.post("/v1/models", params={"filename": "m.pt"}, content=content, headers=mine).json()
    assert guarded.head(name, headers=mine).status_code == 204
    strangers, unknown = (guarded.head(path, headers=other) for path in (name, f"/v1/objects/sha256:{'0' * 64}"))
    assert strangers.status_code == unknown.status_code == 404
    differing = {"x-request-id", "date"}
    assert {k: v for k, v in strangers.headers.items() if k not in differing} == {
        k: v for k, v in unknown.headers.items() if k not in differing
    }
    announced = TUS | {"Upload-Length": str(len(content))} | metadata(sha256=digest)
    known = guarded.post("/v1/uploads", headers=announced | mine)
    assert known.headers["upload-result"] == f"/v1/models/{model['id']}"
    assert known.headers["upload-offset"] == str(len(content))
    assert guarded.head(known.headers["location"], headers=TUS | mine).headers["upload-result"]
    asked = guarded.post("/v1/uploads", headers=announced | other)
    assert "upload-result" not in asked.headers
    assert guarded.head(known.headers["location"], headers=TUS | other).status_code == 404
    guarded.delete(f"/v1/models/{model['id']}", headers=mine)
    assert guarded.head(name, headers=mine).status_code == 404


def test_what_a_job_made_needs_no_bytes_and_damaged_bytes_are_sent_again(api: Api):
    job = api.submit()["id"]
    api.finish(job, {"model.pt": b"made by a job"})
    digest = hashlib.sha256(b"made by a job").hexdigest()
    announced = TUS | {"Upload-Length": "13"} | metadata(sha256=digest, filename="small.pt")
    made = api.post("/v1/uploads", headers=announced)
    row = assert_is_the_file(api, made, b"made by a job")
    api.delete(f"/v1/models/{row['id']}")
    content = b"damaged later"
    model = api.upload(content, "damaged.pt")
    path = api.parts.store.path(f"sha256/{model['sha256'][:2]}/{model['sha256']}")
    path.write_bytes(b"damaged LATER")
    announced = TUS | {"Upload-Length": "13"} | metadata(sha256=model["sha256"], filename="damaged.pt")
    again = api.post("/v1/uploads", headers=announced)
    assert "upload-result" not in again.headers
    assert_is_the_file(api, send(api, again.headers["location"], 0, content), content)


# -- what nobody finishes -------------------------------------------------------------------------


def test_uploads_expire_and_leave_nothing(tmp_path: Path):
    with serving(tmp_path, max_unfinished_uploads=2, sweep_s=1000, lease_s=2000) as api:
        addresses = [create(api), create(api)]
        send(api, addresses[0], 0, FILE[:100])
        assert api.head(addresses[0], headers=TUS).headers["upload-expires"].endswith(" GMT")
        more = api.post("/v1/uploads", headers=TUS | {"Upload-Length": "5"} | metadata())
        assert (more.status_code, more.json()["limit"]) == (429, "uploads_unfinished")
        folder = api.parts.store.partial_folder
        assert len(list(folder.iterdir())) == 2
        with api.parts.sessions.begin() as session:
            session.execute(update(PartialUpload).values(expires_at=db_now() - 1))
        assert [api.head(address, headers=TUS).status_code for address in addresses] == [404, 404]
        Sweep(api.parts.sessions, api.parts.settings).collect()
        assert not list(folder.iterdir())
        with api.parts.sessions() as session:
            assert not session.query(PartialUpload).count()
        create(api)


def test_a_file_for_which_there_is_no_room_is_refused_before_it_is_sent(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(api.parts.store), "free_bytes", lambda self: 1000)
    answer = api.post("/v1/uploads", headers=TUS | {"Upload-Length": "1001"} | metadata())
    assert (answer.status_code, answer.json()["type"]) == (507, "/problems/storage-full")


def test_unfinished_uploads_count_towards_the_bytes_of_their_owner(tmp_path: Path):
    with serving(tmp_path, max_stored_bytes=1000) as api:
        address = create(api, 600)
        more = api.post("/v1/uploads", headers=TUS | {"Upload-Length": "401"} | metadata())
        assert (more.status_code, more.json()["limit"]) == (429, "bytes_stored")
        assert_is_the_file(api, send(api, address, 0, FILE[:600]), FILE[:600])
        used = {row["name"]: row["used"] for row in api.get("/v1/limits").json()["limits"]}
        assert (used["bytes_stored"], used["uploads_unfinished"]) == (600, 0)


def test_an_upload_whose_bytes_are_lost_is_forgotten(api: Api):
    address = create(api)
    api.parts.partial.path(address.rpartition("/")[2]).unlink()
    assert api.head(address, headers=TUS).status_code == 404
    assert send(api, address, 0, b"x").status_code == 404


# -- clients --------------------------------------------------------------------------------------


def test_tuspy_uploads_and_resumes(api: Api, tmp_path: Path):
    path = tmp_path / "m.pt"
    path.write_bytes(FILE)
    client = TusClient(f"{api.base_url}/v1/uploads")
    said = {"kind": "model", "filename": "from tuspy.pt"}
    first = client.uploader(str(path), chunk_size=100_000, metadata=said, upload_checksum=True)
    first.upload_chunk()
    assert first.offset == 100_000
    resumed = client.uploader(str(path), chunk_size=100_000, url=first.url, metadata=said, upload_checksum=True)
    assert resumed.offset == 100_000
    resumed.upload()
    assert_is_the_file(api, api.head(first.url, headers=TUS))


@pytest.fixture
def above(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files above a hundred thousand bytes are sent in pieces."""
    monkeypatch.setattr(uploading, "RESUMABLE_ABOVE", 100_000)
    monkeypatch.setattr(uploading, "backoff_s", lambda tries: 0.01)


class Breaking:
    """A TCP proxy that breaks the connections that bring pieces, each after so many bytes."""

    def __init__(self, port: int, *budgets: int) -> None:
        self.budgets, self.passed = list(budgets), 0
        self._port, self._listener = port, socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server, contextlib.suppress(OSError):
            threading.Thread(target=self._answers, args=(server, client), daemon=True).start()
            left = None
            while data := client.recv(1 << 16):
                if data.startswith(b"PATCH /v1/uploads") and self.budgets:
                    left = self.budgets.pop(0)
                if left is not None and left <= len(data):
                    break
                server.sendall(data)
                self.passed += len(data)
                left = None if left is None else left - len(data)
            for each in (server, client):
                each.shutdown(socket.SHUT_RDWR)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)

    def close(self) -> None:
        self._listener.close()


def test_the_clients_send_large_files_in_pieces_over_connections_that_break(api: Api, tmp_path: Path, above: None):
    content = random.Random(1).randbytes(400_000)
    path = tmp_path / "large.pt"
    path.write_bytes(content)
    seen: list[tuple[int, int]] = []

    async def awaited(url: str) -> Any:
        async with pared.AsyncClient(url) as client:
            return await client.models.upload(path, progress=lambda done, total: seen.append((done, total)))

    with contextlib.closing(Breaking(api.parts.settings.port, 90_000, 200_000, 0, 130_000)) as proxy:
        model = anyio.run(awaited, proxy.url)
        assert not proxy.budgets, "every break was met"
        assert model.sha256 == hashlib.sha256(content).hexdigest()
        assert seen[-1] == (len(content), len(content))
        proxy.passed = 0
        assert pared.Client(proxy.url).models.upload(path).id == model.id
        assert proxy.passed < 10_000, "what is here is not sent again"
        path.write_bytes(content[::-1])
        proxy.budgets[:] = [90_000, 200_000]
        other = pared.Client(proxy.url).models.upload(path)
        assert other.sha256 == hashlib.sha256(content[::-1]).hexdigest()
        assert not proxy.budgets


def test_an_upload_that_was_interrupted_goes_on_at_the_next_try(api: Api, tmp_path: Path, above: None):
    content = random.Random(2).randbytes(200_000)
    path = tmp_path / "again.pt"
    path.write_bytes(content)
    said = {"kind": "models", "filename": "again.pt", "sha256": hashlib.sha256(content).hexdigest()}
    address = create(api, len(content), **said)
    send(api, address, 0, content[:150_000])
    begun: list[int] = []
    with pared.Client(str(api.base_url)) as client:
        client.models.upload(path, progress=lambda done, total: begun.append(done))
    assert begun[0] > 150_000
    assert api.head(address, headers=TUS).headers["upload-result"]


def test_a_file_that_changes_while_it_is_sent_is_told(api: Api, tmp_path: Path, above: None):
    path = tmp_path / "changing.pt"
    path.write_bytes(os.urandom(200_000))

    def change(done: int, total: int) -> None:
        with path.open("r+b") as file:
            file.seek(199_999)
            file.write(b"!" if done else b"?")

    with pared.Client(str(api.base_url)) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploading, "CHUNK_BYTES", 50_000)
        with pytest.raises(pared.client.DigestMismatch, match="changed"):
            client.models.upload(path, progress=change)


def test_a_service_without_uploads_in_pieces_gets_the_file_at_once(tmp_path: Path, above: None):
    content = bytes(150_000)
    (tmp_path / "m.pt").write_bytes(content)
    old = Scripted()
    row = {"id": "mdl_1", "filename": "m.pt", "status": "ready", "sha256": hashlib.sha256(content).hexdigest()}
    old.say(Answer(404, {"title": "Not Found"}), Answer(201, row))
    with pared.Client(old.url) as client:
        assert client.models.upload(tmp_path / "m.pt").id == "mdl_1"
    assert [asked.path.partition("?")[0] for asked in old.asked] == ["/v1/uploads", "/v1/models"]
    old.close()


def test_rows_that_point_to_a_model_are_its_owners(api: Api):
    address = create(api, 3)
    send(api, address, 0, b"own")
    with api.parts.sessions() as session:
        row = session.get(PartialUpload, address.rpartition("/")[2])
        assert session.get(Model, row.result_id).owner == row.owner == "local"
