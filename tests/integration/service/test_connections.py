"""A connection without a key takes little: time, header bytes, and a place that it must not keep from others."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.connections import Connection
from tests.integration.service.conftest import Api, serving
from tests.support.processes import wait_for

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
QUICK = {"header_time_s": 0.5, "body_time_s": 1.0, "answer_time_s": 0.5}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server that waits for nobody."""
    with serving(tmp_path_factory.mktemp("quick"), **QUICK) as api:
        yield api


@contextlib.contextmanager
def opened(api: Api, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", api.parts.settings.port), timeout=20) as connection:
        connection.sendall(sent)
        yield connection


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            received += part
    return received


def test_headers_that_do_not_come_in_time_end_the_connection(quick: Api):
    with opened(quick) as silent, opened(quick, HEAD + b"X-A: ") as begun, opened(quick, b"\r\n") as odd:
        assert answer(silent) == answer(odd) == b""
        told = answer(begun)
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in told


def test_headers_that_trickle_in_get_no_more_time(quick: Api):
    began = time.monotonic()
    with opened(quick, HEAD + b"X-A: ") as connection, contextlib.suppress(OSError):
        while time.monotonic() - began < 10:
            connection.sendall(b"a")
            time.sleep(0.02)
    assert time.monotonic() - began < 5


def test_a_second_request_must_come_in_time_too(quick: Api):
    with opened(quick, HEAD + b"\r\n" + HEAD) as connection:
        told = answer(connection)
    assert told.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in told


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX-A: ",
    ],
)
def test_a_body_that_stalls_ends_the_connection(quick: Api, head: bytes):
    with opened(quick, head) as connection:
        assert answer(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_trickles_in_ends_the_connection(quick: Api):
    began = time.monotonic()
    head = b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    with opened(quick, head) as connection, contextlib.suppress(OSError):
        while time.monotonic() - began < 10:
            connection.sendall(b"a")
            time.sleep(0.02)
    assert time.monotonic() - began < 5


def test_a_body_that_nobody_wants_is_not_read_for_ever(quick: Api):
    """The answer has long been sent; the client only ever sends."""
    head = b"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
    began = time.monotonic()
    with opened(quick, head) as connection, contextlib.suppress(OSError):
        while time.monotonic() - began < 10:
            connection.sendall(b"a" * 1000)
            time.sleep(0.01)
    assert time.monotonic() - began < 5


def test_an_upload_that_goes_on_takes_as_long_as_it_takes(quick: Api):
    content = b"slow but steady" * 2000
    head = f"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    with opened(quick, head.encode()) as connection:
        for start in range(0, len(content), 1000):
            connection.sendall(content[start : start + 1000])
            time.sleep(0.05)
        assert answer(connection).startswith(b"HTTP/1.1 201 ")


def test_a_client_that_does_not_read_ends_its_own_connection(quick: Api):
    job = quick.submit()
    quick.finish(job["id"], {"model.pt": bytes(32 << 20)})
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", quick.parts.settings.port))
        connection.sendall(
            b"GET /v1/jobs/%s/artifacts/model.pt HTTP/1.1\r\nHost: localhost\r\n\r\n" % job["id"].encode()
        )
        wait_for(lambda: _is_gone(connection), "the server has given up", 20)


def _is_gone(connection: socket.socket) -> bool:
    """Whether the server has reset the connection, found out without reading from it."""
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD + b"X-A: " + b"a" * (8 << 20), 431),
        (b"GET /" + b"a" * (8 << 20), 431),
        (HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(129)) + b"\r\n", 431),
        (
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: "
            + b"a" * (8 << 20),
            431,
        ),
        (b"HELLO\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ],
)
def test_headers_have_a_size(quick: Api, head: bytes, status: int):
    began = time.process_time()  # of the server too, which is in this process
    with opened(quick) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head)
        told = answer(connection)
    assert told.startswith(f"HTTP/1.1 {status} ".encode())
    assert time.process_time() - began < 2
    assert quick.get("/healthz").status_code == 200


def test_headers_behind_a_body_have_the_same_size(quick: Api):
    body = bytes(300_000)
    with opened(quick, b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n") as connection:
        time.sleep(0.2)  # the head is read alone, and all else at once
        with contextlib.suppress(ConnectionError):
            connection.sendall(body + HEAD + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n")
        assert b"HTTP/1.1 431 " in answer(connection)


@pytest.mark.parametrize(("version", "status"), [(b"1.1", b"413"), (b"1.0", b"401")])
def test_a_client_that_sends_on_and_closes_after_it_reads_the_refusal(quick: Api, version: bytes, status: bytes):
    head = b"POST /v1/jobs HTTP/%s\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with opened(quick, head % (version, 32 << 20)) as connection:
        connection.sendall(bytes(32 << 20))
        told = answer(connection)
    assert told.startswith(b"HTTP/1.1 %s " % status)
    assert told.endswith(b"}")


def test_a_client_that_leaves_as_it_is_refused_does_not_break_the_round_of_refusals(api: Api):
    ended = threading.Event()
    with opened(api, HEAD + b"X-A: ") as leaving:
        its_own = _connection_of(leaving)

        def leave_and_refuse() -> None:
            leaving.close()
            its_own.end_late()
            ended.set()

        its_own.loop.call_soon_threadsafe(leave_and_refuse)
        assert ended.wait(20), "nothing was raised"


def _connection_of(client: socket.socket) -> Connection:
    """The server's end, which is in this process; its request has begun."""

    def look() -> Connection | None:
        its_own = client.getsockname()
        ends = (each for each in gc.get_objects() if isinstance(each, Connection) and each.transport)
        return next((end for end in ends if end.client == its_own and end._in_headers), None)

    return wait_for(look, "the server has the connection")


def test_large_headers_within_the_limit_are_read(quick: Api):
    answered = quick.get("/healthz", headers={"x-a": "a" * 60_000})
    assert answered.status_code == 200


def test_an_answer_leaves_in_one_piece_and_a_head_alone_where_nothing_follows(quick: Api):
    with opened(quick, HEAD + b"\r\n") as connection:
        head, _, body = connection.recv(1 << 16).partition(b"\r\n\r\n")
        assert body
        assert f"content-length: {len(body)}".encode() in head.lower()
        connection.sendall(HEAD.replace(b"GET /healthz", b"HEAD /static/pages/job_form.js") + b"\r\n")
        assert connection.recv(1 << 16).endswith(b"\r\n\r\n")


def test_many_requests_sent_at_once_are_answered_in_turn(quick: Api):
    with opened(quick, (HEAD + b"\r\n") * 8 + HEAD + b"Connection: close\r\n\r\n") as connection:
        assert answer(connection).count(b"HTTP/1.1 200 ") == 9
    with opened(quick, (HEAD + b"\r\n") * 10_000) as connection:
        assert answer(connection).count(b"HTTP/1.1 200 ") < 100


def test_who_only_opens_connections_keeps_nobody_out(tmp_path: Path):
    with serving(tmp_path, max_connections=16) as api, contextlib.ExitStack() as stack:
        held = [stack.enter_context(opened(api, HEAD)) for _ in range(60)]
        for _ in range(3):
            assert api.get("/healthz").status_code == 200
        wait_for(lambda: sum(map(_still_open, held)) <= 16, "the oldest were closed")


def _still_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_where_every_connection_is_in_use_a_new_one_is_told_so(tmp_path: Path):
    with serving(tmp_path, max_connections=16) as api, contextlib.ExitStack() as stack:
        job = api.submit()
        follow = f"GET /v1/jobs/{job['id']}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        api.close()  # its own connection has a place too
        for _ in range(16):
            stream = stack.enter_context(opened(api, follow))
            assert stream.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        with opened(api, HEAD + b"\r\n") as connection:
            told = answer(connection)
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in told
