"""Owns what one connection may take of the server: header bytes, time, and a place among all connections."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import secrets
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.security_headers import DEFAULTS

MAX_HEADERS = 128
MAX_PIPELINED = 16
MIN_BYTES_PER_S = 500
"""A body that comes more slowly, or an answer that is taken more slowly, over the whole of its time ends."""
READ_BYTES = 1 << 20
"""Of a connection at a time: an upload that was read a quarter of that at a time took more processor time."""
_ENDED_AT_ONCE, _BETWEEN_S = 16, 0.02
_JOINED_BYTES = 64 << 10
"""What is longer is not copied behind its head."""


@dataclass(frozen=True)
class Limits:
    """Of the connections of one process."""

    connections: int
    header_s: float
    """From the opening of a connection, or the first byte of a further request, to the end of its headers."""
    header_bytes: int
    """Of the request line and all headers; also of whatever else the parser must hold together, such as trailers."""
    body_s: float
    """For so long a body, or the reader of an answer, may stay below `MIN_BYTES_PER_S`."""
    answer_s: float
    waiting: Waiting = field(init=False)
    idle: dict[Connection, None] = field(default_factory=dict)
    """Connections between two requests, the one that has waited longest first."""
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(READ_BYTES)))
    """What comes is read into this one and parsed before anything else is read: a new one for each takes time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "waiting", Waiting(self.header_s))


class Waiting:
    """The connections whose next request is not whole, the one that has waited longest first.

    Those that have waited too long are ended a few at a time: thousands may have come at one moment, and others are
    served in between.
    """

    def __init__(self, header_s: float) -> None:
        """Args: header_s: how long each may wait."""
        self._header_s = header_s
        self._until: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._until)

    def add(self, connection: Connection) -> None:
        """It begins to wait, behind all others."""
        now = connection.loop.time()
        self._until[connection] = now + self._header_s
        self._look_again(connection.loop, self._header_s)

    def discard(self, connection: Connection) -> None:
        """It waits no more, if it did."""
        self._until.pop(connection, None)

    def _look_again(self, loop: asyncio.AbstractEventLoop, after_s: float) -> None:
        if self._timer is None:
            self._timer = loop.call_later(after_s, self._end_late_ones, loop)

    def _end_late_ones(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for connection in list(islice(self._until, _ENDED_AT_ONCE)):
            if self._until[connection] > now:
                break
            connection.end_late()
        if self._until:
            self._look_again(loop, max(next(iter(self._until.values())) - now, _BETWEEN_S))


class Connection(HttpToolsProtocol, asyncio.BufferedProtocol):
    """uvicorn's protocol with bounds: it has none for headers, unfinished requests and clients that do not read.

    Where all places are taken, a new connection gets that of the one which has waited longest without a whole request,
    or else longest between two requests, so whoever only opens connections keeps nobody out. If every connection has a
    request, the new one is answered 503.
    """

    def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
        """Args: limits: shared by all connections of the process."""
        super().__init__(*args, **options)
        self._limits = limits
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._held = 0  # bytes since the parser last gave out something
        self._received = 0  # bytes since the present window of a body began
        self._body_left = 0  # bytes to come of a body whose length was told
        self._waits = False  # for a whole request
        self._in_headers = False
        self._in_body = False
        self._too_much: str | None = None

    # -- opening and closing --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` tells of every byte that is not taken
        with contextlib.suppress(OSError, AttributeError):  # a Unix socket; a system without the option
            transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._limits.answer_s * 1000)
            )
        while len(self.connections) > self._limits.connections:
            if not self._make_room():
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "All connections of this server are in use.", retry_s=2)
                return
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._stop_timers()
        super().connection_lost(exc)

    def _make_room(self) -> bool:
        """Close the connection that has waited longest. False: none waits."""
        for waiting in (self._limits.waiting, self._limits.idle):
            for oldest in waiting:
                oldest.drop()
                return True
        return False

    def drop(self) -> None:
        """Close at once, whatever is under way; the kernel too forgets what the client did not take."""
        self._closed = True
        self._stop_timers()
        self.connections.discard(self)
        with contextlib.suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.transport.abort()

    def end_after_answer(self) -> None:
        """Close, as an answer says; if the client still sends its request, once it has had time to read the answer.

        The kernel answers what comes to a closed connection by a reset, for which the client's machine, or a proxy,
        throws away what it has not read. So what comes is read and dropped for a while.
        """
        if self._in_body and self.cycle.response_complete:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        self._closed = True
        self._stop_timers()
        self.pipeline.clear()
        try:
            self.transport.write_eof()
        except OSError:  # the client has left, and the loop has not been told yet
            self.drop()
            return
        self.flow.resume_reading()
        self._limits.idle[self] = None  # its place is the next one's who needs it
        self._set_timer(self._limits.body_s, self.drop)

    def _refuse(self, status: HTTPStatus, detail: str, *, retry_s: int | None = None) -> None:
        """Answer for a request that never reached the app, and close."""
        cycle = self._answering()
        if self._closed or (cycle and cycle.response_started):
            self.drop()  # words of ours would land in the middle of another answer
            return
        self.transport.write(_problem(status, detail, retry_s))
        self._linger()
        if cycle:
            cycle.disconnected = True
            cycle.message_event.set()

    # -- reading --------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport writes what it reads next."""
        return self._limits.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes are there."""
        if self._closed:
            return
        self._unset_keepalive_if_required()
        if not self._waits and self._timer is None and self._idle():
            self._wait_for_request()
        self._received += nbytes
        rest = self._limits.buffer[:nbytes]
        while rest and not self._closed:
            # A body to its end at once; all else no further than it may go, so that the parser holds no more.
            part = rest[: max(1, self._body_left or self._limits.header_bytes + 1 - self._held)]
            rest = rest[len(part) :]
            self._held += len(part)
            try:
                self.parser.feed_data(part)
            except httptools.HttpParserUpgrade:
                pass  # no upgrade is known here; the request itself is answered as any other
            except httptools.HttpParserError:
                if self._too_much:
                    self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, self._too_much)
                else:
                    self._refuse(HTTPStatus.BAD_REQUEST, "This is not a request of HTTP/1.1.")
            if self._held > self._limits.header_bytes:
                self._refuse(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"The request line and the headers have at most {self._limits.header_bytes:,} bytes together. "
                    "Send what is longer in the body, such as `architecture` as a field of a form.",
                )
        if self._in_body and self._timer is None and not self._closed:  # most requests have none, and need no timer
            self._watch_body()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers, self._body_left = True, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS:
            self._too_much = f"A request has at most {MAX_HEADERS} headers."
            raise ValueError(self._too_much)
        if self._in_headers:  # trailers, which come after the body, are read and dropped
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.transport.is_closing():
            raise ValueError  # what came behind a request that was refused
        self._in_headers, self._in_body, self._held = False, True, 0
        self._forget()
        if len(self.pipeline) >= MAX_PIPELINED:
            self.drop()
            return
        super().on_headers_complete()
        self.cycle.transport = _Answer(self)  # type: ignore[assignment] # all that a cycle uses of one
        self._received = 0
        self._body_left = int(next((value for name, value in self.headers if name == b"content-length"), 0))

    def on_chunk_header(self) -> None:
        """Called by the parser at each chunk of a body."""
        self._held = 0

    def on_body(self, body: bytes) -> None:
        self._held = 0
        left, self._body_left = self._body_left, max(self._body_left - len(body), 0)
        if left and not self.cycle.body:  # what comes is passed on as it is, where uvicorn copies it twice
            self.cycle.body = body  # type: ignore[assignment] # uvicorn's own is a bytearray
            body = b""
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._held = False, 0
        self._set_timer(None)
        if self._closed:
            return
        super().on_message_complete()
        if self.cycle.response_complete:  # the rest of a body that nobody wanted
            self._wait_for_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._closed or self.transport.is_closing():
            self._unset_keepalive_if_required()
            return
        if self._in_headers:  # of the next request
            self._unset_keepalive_if_required()
            self._wait_for_request()
        elif self._in_body and self.cycle.response_complete:
            # Reading on for a while lets a client that only sends get to reading the answer.
            self._set_timer(self._limits.body_s, self.transport.close)
        elif self._idle():
            self._limits.idle[self] = None  # uvicorn has started its time for idle connections

    def _idle(self) -> bool:
        return not self._answering() and not self._in_body

    def _answering(self) -> RequestResponseCycle | None:
        """The newest request, if its answer is not complete."""
        newest: RequestResponseCycle | None = self.cycle
        return newest if newest and not newest.response_complete else None

    # -- time -----------------------------------------------------------------------------------

    def _wait_for_request(self) -> None:
        self._forget()
        self._set_timer(None)
        self._waits = True
        self._limits.waiting.add(self)

    def end_late(self) -> None:
        """End it for headers that have not come."""
        self._forget()
        if self._in_headers:
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT, f"The headers did not come within {self._limits.header_s:g} seconds."
            )
        else:
            self.transport.close()

    def _watch_body(self) -> None:
        self._received = 0
        self._set_timer(self._limits.body_s, self._check_body)

    def _check_body(self) -> None:
        # A body that nobody reads yet waits for us, not we for it.
        if self.flow.read_paused or self._received >= MIN_BYTES_PER_S * self._limits.body_s:
            self._watch_body()
        else:
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                f"Less than {MIN_BYTES_PER_S} bytes a second came over {self._limits.body_s:g} seconds. Send it again.",
            )

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_answer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_answer(self) -> None:
        pending = self._not_taken()
        self._write_timer = self.loop.call_later(self._limits.answer_s, self._check_answer, pending)

    def _check_answer(self, pending: int) -> None:
        taken = pending - self._not_taken()
        if taken >= MIN_BYTES_PER_S * self._limits.answer_s:
            self._watch_answer()
        else:
            self.drop()

    def _not_taken(self) -> int:
        """Bytes written that the client's machine has not acknowledged: here, and in the kernel's buffer."""
        buffered = self.transport.get_write_buffer_size()
        with contextlib.suppress(OSError, ValueError):
            descriptor = self.transport.get_extra_info("socket").fileno()
            answer: bytes = fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0")
            buffered += struct.unpack("i", answer)[0]
        return buffered

    def _set_timer(self, seconds: float | None, late: Callable[[], None] | None = None) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, late) if seconds is not None and late else None

    def _forget(self) -> None:
        self._waits = False
        self._limits.waiting.discard(self)
        self._limits.idle.pop(self, None)

    def _stop_timers(self) -> None:
        self._forget()
        self._unset_keepalive_if_required()
        self._set_timer(None)
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None


class _Answer:
    """What a request's answer is written to: its head leaves in one piece with what follows it, and most is one write.

    Where nothing follows at once, as in an event stream that is silent, the head leaves by itself.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport = connection.transport
        self._head = b""
        self._begun = False
        self.is_closing = connection.transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._begun:
            self._begun, self._head = True, data
            self._connection.loop.call_soon(self._send_head)
        elif self._head and len(data) <= _JOINED_BYTES:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._send_head()
            self._transport.write(data)

    def _send_head(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        self._send_head()
        self._connection.end_after_answer()


def _problem(status: HTTPStatus, detail: str, retry_s: int | None) -> bytes:
    """A whole answer with a problem document."""
    request_id = secrets.token_hex(8)
    members = {
        "type": f"/problems/{status.phrase.lower().replace(' ', '-')}",
        "title": status.phrase,
        "status": status.value,
        "detail": detail,
        "request_id": request_id,
    }
    content = json.dumps(members).encode()
    headers = {
        **DEFAULTS,
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(content)),
        "X-Request-Id": request_id,
        "Connection": "close",
    }
    if retry_s is not None:
        headers["Retry-After"] = str(retry_s)
    head = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*head, "", ""]).encode() + content
