"""A real HTTP server on loopback whose every answer a test writes down beforehand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import httpx


@dataclass
class Asked:
    """One request as the server saw it."""

    method: str
    path: str
    headers: httpx.Headers
    body: bytes


@dataclass
class Answer:
    """What the server says; `cut_after` closes the connection after so many bytes of the body."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None


class Scripted:
    """Answers requests in the order in which answers were given; a callable makes one from the request.

    As a context manager it is closed at the end.
    """

    def __init__(self, usual: Callable[[Asked], Answer] | None = None) -> None:
        """Args: usual: makes the answers to requests for which none was given."""
        self.asked: list[Asked] = []
        self.answers: list[Answer | Callable[[Asked], Answer]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                asked = Asked(self.command, self.path, httpx.Headers(self.headers.items()), body)
                outer.asked.append(asked)
                answer = usual if usual and not outer.answers else outer.answers.pop(0)
                answer = answer(asked) if callable(answer) else answer
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in ({"Content-Length": str(len(content))} | answer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content[: answer.cut_after])
                if answer.cut_after is not None:
                    self.close_connection = True

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - names that the base class looks for

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: Any) -> None:
                """Quiet: a client may go away in the middle."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, *answers: Answer | Callable[[Asked], Answer]) -> None:
        """Queue answers."""
        self.answers.extend(answers)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
