"""A real receiver of webhooks on loopback, which fails in whichever way a URL names before it takes a notice."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from standardwebhooks.webhooks import Webhook


class Receiver:
    """Answers `/{way}` in that way as often as `failures` says, for each notice by itself, and takes it then."""

    def __init__(self, failures: int = 0, certificate: Path | None = None) -> None:
        """Args: certificate: with its key, for TLS."""
        self.failures = failures
        self.secrets: dict[str, str] = {}
        """Path -> the secret that the signatures are checked with."""
        self.tried: Counter[str] = Counter()
        self.taken: defaultdict[str, list[bytes]] = defaultdict(list)
        """Id -> the body, each time that it was taken."""
        self.paths: list[str] = []
        self._ended = threading.Event()
        self._context = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate, certificate.with_name("key.pem"))
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Until now connections are refused."""
        self._socket.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening, and let go of who is kept waiting."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(30)
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            path, headers, body = _request(connection)
            way = path.strip("/").replace("%20", " ")
            if path in self.secrets:
                Webhook(self.secrets[path]).verify(body, headers)  # raises, and then nobody takes it
            delivery = headers["webhook-id"]
            self.paths.append(path)
            self.tried[delivery] += 1
            if way in WAYS and self.tried[delivery] <= self.failures:
                WAYS[way](connection, self._ended)
                return
            self.taken[delivery].append(body)
            TAKES.get(way, TAKES["well"])(connection, self._ended)


def _request(connection: socket.socket) -> tuple[str, dict[str, str], bytes]:
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError
        head += received
    head, _, body = head.partition(b"\r\n\r\n")
    line, *rows = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return line.split()[1], headers, body


def _wait(ended: threading.Event) -> None:
    ended.wait(60)


def _flood(connection: socket.socket, ended: threading.Event, first: bytes, again: bytes) -> None:
    connection.sendall(first)
    while not ended.is_set():
        connection.sendall(again)


def _drip(connection: socket.socket, ended: threading.Event, content: bytes) -> None:
    for number in content:
        connection.sendall(bytes([number]))
        if ended.wait(0.2):
            return


def _promise(connection: socket.socket, ended: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    _wait(ended)


REDIRECT = b"HTTP/1.1 301 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
WAYS: dict[str, Callable[[socket.socket, threading.Event], None]] = {
    "resets": lambda connection, ended: connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    ),
    "closes": lambda connection, ended: None,
    "hangs": lambda connection, ended: _wait(ended),
    "breaks": lambda connection, ended: connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"),
    "redirects": lambda connection, ended: connection.sendall(REDIRECT),
    "floods": lambda connection, ended: _flood(connection, ended, b"HTTP/1.1 503 No\r\n\r\n", b"x" * 65536),
    "floods headers": lambda connection, ended: _flood(connection, ended, b"HTTP/1.1 200 OK\r\n", b"x: " + b"y" * 4096),
    "goes on": lambda connection, ended: _flood(connection, ended, b"", b"HTTP/1.1 103 Hints\r\n\r\n"),
    "talks nonsense": lambda connection, ended: connection.sendall(b"SSH-2.0-x\r\n\r\n"),
    "is slow": lambda connection, ended: _drip(connection, ended, b"HTTP/1.1 200 OK\r\n\r\n" * 100),
}
"""How a request can fail."""
TAKES: dict[str, Callable[[socket.socket, threading.Event], None]] = {
    "well": lambda connection, ended: connection.sendall(b"HTTP/1.1 204 Good\r\n\r\n"),
    "and talks on": lambda connection, ended: _flood(connection, ended, b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
    "and falls asleep": _promise,
}
"""How a notice can be taken: the first line decides, whatever comes after it."""
