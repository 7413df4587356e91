"""The API behind nginx and Caddy with TLS, as the files of `deploy/` set them up."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import pared
from pared.client import ServerUnreachable, uploading
from pared.state.events import add_events
from pared.state.keys import create_key
from tests.integration.service.conftest import Api, serving
from tests.integration.service.test_tus import create, offset, send
from tests.support.processes import Processes, wait_for
from tests.support.proxies import KINDS, Proxy, certificate, start_proxy, trusting
from tests.support.scripted_server import Answer, Scripted

MIB = 2**20
PIECE_OF_FILE = random.Random(1).randbytes(MIB)
HALF = PIECE_OF_FILE * 6  # the API writes four MiB at once
LIMIT = 201 * MIB
LIES = {
    "X-Forwarded-For": "127.0.0.1, 203.0.113.9",
    "X-Real-IP": "127.0.0.1",
    "Forwarded": "for=127.0.0.1",
    "X-Forwarded-Host": "localhost",
}


@pytest.fixture(scope="module")
def cert(scratch: Path) -> Path:
    return certificate(scratch)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The API as the files say that it must run."""
    with serving(
        tmp_path_factory.mktemp("behind"), require_keys=True, max_upload_bytes=LIMIT, max_waiting_jobs=1
    ) as api:
        yield api


@pytest.fixture(scope="module")
def proxy(kind: str, behind: Api, cert: Path, scratch: Path, processes: Processes) -> Iterator[Proxy]:
    with _before(kind, behind.parts.settings.port, cert, scratch, processes) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Proxy, behind: Api, cert: Path) -> Iterator[Api]:
    """A client of the API through the proxy, with a key of its own owner."""
    key = create_key(behind.parts.sessions, f"ann{next(_NUMBERS)}")
    headers = {"Authorization": f"Bearer {key}"}
    with Api(behind.parts, verify=trusting(cert), headers=headers) as client:
        client.base_url = httpx.URL(proxy.url)
        yield client


_NUMBERS = itertools.count()


@contextlib.contextmanager
def _before(kind: str, api_port: int, cert: Path, scratch: Path, processes: Processes) -> Iterator[Proxy]:
    proxy = start_proxy(kind, scratch / f"proxy{next(_NUMBERS)}", api_port, cert, processes)
    try:
        yield proxy
    finally:
        proxy.process.kill()


# -- keys and addresses ---------------------------------------------------------------------------


def test_keys_work_and_nothing_is_answered_without_one(through: Api, proxy: Proxy, cert: Path):
    model = through.upload()["id"]
    assert through.get(f"/v1/models/{model}").json()["id"] == model
    assert through.get("/healthz").headers["strict-transport-security"]
    with httpx.Client(base_url=proxy.url, verify=trusting(cert)) as nobody:
        assert nobody.get(f"/v1/models/{model}").status_code == 401
        assert nobody.get(f"/v1/models/{model}", headers=LIES).status_code == 401
        assert nobody.post("/v1/models", content=b"x" * MIB).status_code == 401
        for path in ("/readyz", "/readyz?x", "/%72eadyz", "//readyz"):
            assert nobody.get(proxy.url + path).status_code == 404, path
        assert nobody.get("/docs").status_code == 200


def test_a_refused_upload_is_answered_each_time(proxy: Proxy, cert: Path):
    for _ in range(100):
        with httpx.Client(base_url=proxy.url, verify=trusting(cert)) as nobody:
            assert nobody.post("/v1/models", content=PIECE_OF_FILE[:300_000]).status_code == 401


def test_the_browser_page_of_the_service_itself_may_send_to_it(through: Api, proxy: Proxy):
    assert through.post("/v1/models", content=b"m", headers={"Origin": proxy.url}).status_code == 201


@pytest.mark.parametrize("believed", ["", "127.0.0.0/8"])
def test_a_service_without_keys_is_not_opened(
    kind: str, believed: str, tmp_path: Path, cert: Path, scratch: Path, processes: Processes
):
    with serving(tmp_path, trusted_proxies=believed) as api:
        assert api.get("/v1/models").status_code == 200
        with (
            _before(kind, api.parts.settings.port, cert, scratch, processes) as proxy,
            httpx.Client(base_url=proxy.url, verify=trusting(cert)) as client,
        ):
            statuses = [client.get("/v1/models", headers=lies).status_code for lies in ({}, LIES)]
    # The test's own address is this machine's: who believes the proxy lets it in.
    assert statuses == ([200, 200] if believed else [401, 401])


def test_the_api_is_told_the_address_that_the_proxy_saw(kind: str, cert: Path, scratch: Path, processes: Processes):
    with Scripted(lambda _: Answer()) as upstream, _before(kind, upstream.port, cert, scratch, processes) as proxy:
        transport = httpx.HTTPTransport(verify=trusting(cert), local_address="127.0.0.7")
        with httpx.Client(base_url=proxy.url, transport=transport) as client:
            client.get("/v1/models", headers=LIES | {"X-Request-Id": "mine"})
        headers = upstream.asked[-1].headers
    assert headers.get_list("x-forwarded-for") == ["127.0.0.7"]
    assert headers["x-real-ip"] == "127.0.0.7"
    assert headers["host"] == headers["x-forwarded-host"] == f"localhost:{proxy.port}"
    assert headers["x-forwarded-proto"] == "https"
    assert headers["x-request-id"] == "mine"
    assert "forwarded" not in headers


# -- uploads and events ---------------------------------------------------------------------------


def test_an_upload_reaches_the_api_while_it_is_sent(through: Api):
    incoming = through.parts.settings.data_dir / "objects" / ".incoming"

    def in_two_halves() -> Iterator[bytes]:
        yield HALF
        wait_for(
            lambda: sum(path.stat().st_size for path in incoming.iterdir()) >= 4 * MIB, "the API has the first half"
        )
        yield HALF

    answer = through.post("/v1/models", content=in_two_halves(), headers={"Content-Length": str(2 * len(HALF))})
    assert answer.json()["sha256"] == hashlib.sha256(HALF * 2).hexdigest()


@pytest.mark.parametrize("mib", [16, pytest.param(200, marks=pytest.mark.campaign)])
def test_large_uploads_and_downloads_stay_in_no_buffer(through: Api, proxy: Proxy, mib: int):
    through.upload(PIECE_OF_FILE)  # its processes are warm
    before, sent = proxy.resident_bytes(), hashlib.sha256()
    grown = []

    def pieces() -> Iterator[bytes]:
        for n in range(mib):
            piece = n.to_bytes(4, "big") + PIECE_OF_FILE[4:]
            sent.update(piece)
            yield piece
            if n % 8 == 7:
                assert not proxy.files_written()
                grown.append(proxy.resident_bytes() - before)

    model = through.post("/v1/models", content=pieces(), headers={"Content-Length": str(mib * MIB)}).json()
    assert (model["sha256"], model["size_bytes"]) == (sent.hexdigest(), mib * MIB)
    through.inspected(model["id"])
    job = through.submit(model=model["id"])["id"]
    through.finish(job, {"model.pt": PIECE_OF_FILE * mib})
    received = hashlib.sha256()
    with through.stream("GET", f"/v1/jobs/{job}/artifacts/model.pt") as answer:
        for chunk in answer.iter_bytes():
            received.update(chunk)
        grown.append(proxy.resident_bytes() - before)
    assert not proxy.files_written()
    assert received.hexdigest() == hashlib.sha256(PIECE_OF_FILE * mib).hexdigest()
    print(f"\n{proxy.kind}: {mib} MiB up and down, memory +{max(grown) / MIB:.1f} MiB, nothing on disk")
    assert max(grown) < 48 * MIB


def test_an_upload_in_pieces_goes_on_after_the_proxy_was_killed(through: Api, proxy: Proxy, processes: Processes):
    content = HALF * 2
    address = create(through, len(content))

    def broken() -> Iterator[bytes]:
        yield HALF
        wait_for(lambda: _received(through, address) >= 4 * MIB, "the API has the first half")
        proxy.process.kill()
        yield HALF

    try:
        with pytest.raises(httpx.TransportError):
            send(through, address, 0, broken(), Content_Length=str(len(content)))
    finally:
        proxy.start_again(processes)
    wait_for(lambda: offset(through, address) >= 4 * MIB, "what came is acknowledged")
    there = offset(through, address)
    answer = send(through, address, there, content[there:])
    assert answer.status_code == 204, answer.text
    model = through.get(answer.headers["upload-result"]).json()
    assert model["sha256"] == hashlib.sha256(content).hexdigest()


def _received(api: Api, address: str) -> int:
    partial = api.parts.settings.data_dir / "objects" / ".partial"
    name = address.rpartition("/")[2]
    return sum(path.stat().st_size for path in partial.iterdir() if name in path.name)


def test_the_client_uploads_in_pieces(
    through: Api, proxy: Proxy, cert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(uploading, "RESUMABLE_ABOVE", MIB)
    (tmp_path / "m.pt").write_bytes(PIECE_OF_FILE * 3)
    key = through.headers["authorization"].removeprefix("Bearer ")
    with (
        pared.Client(proxy.url, key) as client,
        pytest.raises(ServerUnreachable, match="self-signed certificate"),
    ):
        client.models.upload(tmp_path / "m.pt")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with pared.Client(proxy.url, key) as client:
        model = client.models.upload(tmp_path / "m.pt")
        assert model.sha256 == hashlib.sha256(PIECE_OF_FILE * 3).hexdigest()


def test_events_arrive_one_by_one(through: Api):
    job = through.submit()["id"]

    def told(text: str) -> None:
        with through.parts.sessions.begin() as session:
            add_events(session, job, [("log", {"text": text})])

    with through.stream("GET", f"/v1/jobs/{job}/events") as answer:
        lines = answer.iter_lines()
        for text in ("first", "second", "third"):
            told(text)
            # The stream is open and the job waits: nothing but passing each event on brings it here.
            assert any(text in line for line in lines)
    through.post(f"/v1/jobs/{job}/cancel")


# -- limits ---------------------------------------------------------------------------------------


def test_limits_are_told_through_the_proxy(through: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(through.parts.settings, "max_upload_bytes", MIB)
    # A proxy may close the connection of a body that was refused before its end, just when the next request is sent.
    alone = {"Connection": "close"}
    with_length = through.post("/v1/models", content=HALF, headers=alone)
    chunked = through.post("/v1/models", content=iter([HALF]), headers=alone)
    for answer in (with_length, chunked):
        assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
    model = through.upload()["id"]
    job = through.submit(model=model)["id"]
    refused = through.post("/v1/jobs", json={"type": "prune", "model": model, "amount": 0.5})
    assert (refused.status_code, refused.json()["limit"]) == (429, "jobs_waiting")
    assert int(refused.headers["retry-after"]) > 0
    through.post(f"/v1/jobs/{job}/cancel")
    assert through.get("/v1/models", headers=alone | {"X-Large": "x" * 200_000}).status_code in {400, 431}
    large = through.post("/v1/jobs", content=b" " * (2 * MIB), headers=alone | {"Content-Type": "application/json"})
    assert large.status_code == 413
    assert through.get("/v1/models").status_code == 200
