"""Streams and long polls: one poller feeds them all, and there are only so many."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from pared.state.events import add_events
from service.changes import KEPT_EVENTS, POLL_S
from tests.integration.service.conftest import Api, serving
from tests.support.processes import wait_for


@contextlib.contextmanager
def following(api: Api, job: dict[str, Any], last: int = 0) -> Iterator[socket.socket]:
    """An event stream whose answer has begun."""
    with socket.create_connection(("127.0.0.1", api.parts.settings.port), timeout=30) as connection:
        connection.sendall(
            f"GET {job['links']['events']}?last_event_id={last} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        yield connection


def ids_until_the_end(connection: socket.socket) -> list[int]:
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        part = connection.recv(1 << 16)
        assert part, received
        received += part
    return [int(line.split()[-1]) for line in received.splitlines() if line.startswith(b"id: ")]


@pytest.fixture
def statements(api: Api) -> Iterator[list[str]]:
    """What is sent to the database."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(("BEGIN", "SAVEPOINT", "PRAGMA")):
            seen.append(statement)

    engine = api.parts.sessions.engine
    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


def test_the_database_is_asked_as_often_for_many_streams_as_for_one(api: Api, statements: list[str]):
    jobs = [api.submit() for _ in range(5)]
    with contextlib.ExitStack() as stack:
        for job in jobs * 8:
            assert stack.enter_context(following(api, job)).recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        waiters = [threading.Thread(target=api.get, args=[job["links"]["self"]], kwargs=WAITING) for job in jobs]
        for waiter in waiters:
            waiter.start()
        time.sleep(0.5)  # until all of them have read for themselves
        statements.clear()
        time.sleep(1)  # the time over which is counted
        # Of the dispatcher, and of each round one statement; every second two about the queue.
        asked = [statement for statement in statements if "job_events" in statement]
        assert 0 < len(asked) <= 1 / POLL_S + 2
        assert len(statements) <= 2 / POLL_S
    for waiter in waiters:
        waiter.join(30)


WAITING = {"headers": {"prefer": "wait=3"}}


def test_all_streams_of_a_job_tell_the_same_whenever_they_began(api: Api):
    job = api.submit()
    api.parts.dispatcher.dispatch()
    with contextlib.ExitStack() as stack:
        early = [stack.enter_context(following(api, job)) for _ in range(3)]
        for round_ in range(3):
            with api.parts.sessions.begin() as session:
                add_events(session, job["id"], [("log", {"text": "x"})] * (KEPT_EVENTS // 2 + 50))
            late = stack.enter_context(following(api, job, last=100 * round_))
            early.append(late)
        ahead = stack.enter_context(following(api, job, last=1 << 30))
        api.finish(job["id"])
        last = 1 + 3 * (KEPT_EVENTS // 2 + 50) + 3
        for connection, first in zip(early, [1, 1, 1, 1, 101, 201], strict=True):
            assert ids_until_the_end(connection) == list(range(first, last + 1))
        assert ids_until_the_end(ahead) == []


def test_there_are_only_so_many_streams_and_a_long_poll_beyond_answers_at_once(tmp_path: Path):
    with serving(tmp_path, max_open_streams=2) as api:
        job = api.submit()
        with following(api, job) as first, following(api, job) as second:
            for stream in (first, second):
                assert stream.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            refused = api.get(job["links"]["events"])
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/unavailable")
            assert refused.headers["retry-after"]
            began = time.monotonic()
            assert api.get(job["links"]["self"], headers={"prefer": "wait=30"}).json()["status"] == "queued"
            assert time.monotonic() - began < 10
        wait_for(lambda: not api.parts.changes.full, "their places are free")
        with following(api, job) as stream:
            assert stream.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_a_stream_that_begins_while_the_database_is_asked_goes_on(api: Api, monkeypatch: pytest.MonkeyPatch):
    changes, jobs = api.parts.changes, [api.submit() for _ in range(2)]
    look, asked, go_on = changes._look, threading.Event(), threading.Event()

    def slow(heads: Any, followed: Any) -> Any:
        seen = look(heads, followed)
        asked.set()
        assert go_on.wait(30)
        return seen

    with monkeypatch.context() as patched, following(api, jobs[0]):
        patched.setattr(changes, "_look", slow)
        assert asked.wait(30)
        with following(api, jobs[1]) as late:
            assert late.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            go_on.set()
            api.finish(jobs[1]["id"])
            assert ids_until_the_end(late)[-1] == 4


def test_a_stream_that_begins_while_the_database_fails_goes_on_when_it_is_back(api: Api):
    job = api.submit()
    with api.parts.sessions.begin() as session:
        session.execute(text("ALTER TABLE job_events RENAME TO away"))
    with following(api, job) as stream:
        assert stream.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        time.sleep(0.3)  # in which it has asked
        with api.parts.sessions.begin() as session:
            session.execute(text("ALTER TABLE away RENAME TO job_events"))
        api.finish(job["id"])
        assert ids_until_the_end(stream) == [1, 2, 3, 4]


def test_a_poller_that_loses_the_database_goes_on_when_it_is_back(api: Api, monkeypatch: pytest.MonkeyPatch):
    job = api.submit()
    changes = api.parts.changes
    with following(api, job) as stream:
        assert stream.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        failed = threading.Event()

        def fail(*_: Any) -> None:
            failed.set()
            raise ConnectionError

        with monkeypatch.context() as patched:
            patched.setattr(changes, "_look", fail)
            assert failed.wait(30)
        api.finish(job["id"])
        assert ids_until_the_end(stream)[-1] == 4


def test_a_stream_whose_client_leaves_while_it_is_sent_to_gives_its_place_up(api: Api):
    job = api.submit()
    with api.parts.sessions.begin() as session:
        add_events(session, job["id"], [("log", {"text": "x" * 100_000})] * 200)  # more than a socket takes
    before = api.parts.changes.open_streams
    with following(api, job) as connection:
        connection.recv(1)
        wait_for(lambda: api.parts.changes.open_streams == before + 1, "it is open")
        time.sleep(0.5)  # until it waits for the client to read
    wait_for(lambda: api.parts.changes.open_streams == before, "it is closed", 30)
