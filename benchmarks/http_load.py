"""Asks a server over HTTP as fast as it answers, and prints how fast: `python http_load.py < what.json`.

Clients are connections that stay open and send their next request when the last one is answered. They know no more of
HTTP than a server's length of an answer, so that most of the time of two cores is the server's.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any


def rate(port: int, requests: list[dict[str, Any]], *, clients: int, seconds: float) -> dict[str, Any]:
    """Answers a second and their latencies in ms, as seen by a process of its own.

    Args:
        requests: each with `path` and perhaps `method`, `headers` and `body` (text); a client sends one of them, the
            next client the next one, and so on.
    """
    what = {"port": port, "requests": requests, "clients": clients, "seconds": seconds}
    ran = subprocess.run(
        [sys.executable, str(Path(__file__))], input=json.dumps(what), capture_output=True, text=True, check=True
    )
    return json.loads(ran.stdout)


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, latencies: list[float], statuses: Counter[bytes]) -> None:
        self._request, self._latencies, self._statuses = request, latencies, statuses
        self._got, self._missing = b"", -1
        self.ended = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._got, self._missing = b"", -1
        self._asked_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._got += data
            head, found, body = self._got.partition(b"\r\n\r\n")
            if not found:
                return
            lower = head.lower()
            at = lower.find(b"\r\ncontent-length:")
            length = int(lower[at + 17 : lower.find(b"\r\n", at + 17) % (len(lower) + 1)]) if at >= 0 else 0
            self._statuses[head[9:12]] += 1
            self._missing = length - len(body)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            self._latencies.append(time.perf_counter() - self._asked_at)
            if not self.ended:
                self._ask()


async def _run(what: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    statuses: Counter[bytes] = Counter()
    clients = []
    for number in range(what["clients"]):
        request = _as_http(what["requests"][number % len(what["requests"])])
        client = _Client(request, latencies, statuses)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", what["port"])
        clients.append(client)
    await asyncio.sleep(0.3)
    before, began = len(latencies), time.perf_counter()
    await asyncio.sleep(what["seconds"])
    count, took = len(latencies) - before, time.perf_counter() - began
    for client in clients:
        client.ended = True
    await asyncio.sleep(0.2)
    seen = sorted(latencies[before : before + count])
    return {
        "per_s": count / took,
        "p50_ms": seen[len(seen) // 2] * 1000,
        "p99_ms": seen[int(len(seen) * 0.99)] * 1000,
        "statuses": {status.decode(): times for status, times in statuses.items()},
    }


def _as_http(request: dict[str, Any]) -> bytes:
    body = request.get("body", "").encode()
    headers = {"Host": "localhost", **request.get("headers", {})}
    if body:
        headers["Content-Length"] = str(len(body))
    lines = [f"{request.get('method', 'GET')} {request['path']} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(json.load(sys.stdin)))))
