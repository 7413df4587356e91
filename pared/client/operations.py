"""Operations of the API, with retries and resumption, each a generator of the I/O that it needs.

An operation yields an `Open`, `Chunk`, `Sleep`, `Aside` or `Emit` and is sent the outcome, or thrown the transport
error. The blocking and the async client only differ in how they carry these five out. What a server answers is not
believed: where requests go, how much is read and what files are called is for the client to say.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from pared.statuses import ENDED
from pared.terminal import printable

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

CHUNK_BYTES = 1 << 20
MAX_ANSWER_BYTES = 256 << 20
"""Of an answer that is read whole, and of one event of a stream."""
_MAX_PROBLEM_BYTES = 1 << 20


# -- what can go wrong ----------------------------------------------------------------------------


class APIError(Exception):
    """The service refused a request; the fields are those of its problem (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        """Args: status: the HTTP status; problem: the body, as far as it had one."""
        self.status = status
        self.type = str(problem.get("type", "about:blank"))
        self.title = str(problem.get("title", f"HTTP status {status}"))
        self.detail = str(problem.get("detail", ""))
        self.errors: list[dict[str, str]] = list(problem.get("errors") or [])
        self.request_id = problem.get("request_id")
        lines = [f"{self.title}: {self.detail}" if self.detail else self.title]
        fields = [(str(error.get("pointer", "")), str(error.get("detail", ""))) for error in self.errors]
        if len(fields) != 1 or fields[0][1] not in self.detail:  # one alone is all of the detail
            lines += [f"  {pointer}: {detail}" for pointer, detail in fields]
        super().__init__(printable("\n".join(lines)))


class ServerUnreachable(ConnectionError):
    """Nothing answers at the address. What was submitted before is not lost by this."""


class UntrustedAnswer(Exception):
    """The server's answer would have this client go elsewhere, write elsewhere or read without end; it did not."""


class DigestMismatch(Exception):
    """The bytes that arrived are not the bytes that were sent, twice in a row."""


# -- the five kinds of I/O ------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One HTTP request; `content` makes the body anew for each try."""

    method: str
    path: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    content: Callable[[], Iterator[bytes]] | None = None
    read_timeout_s: float = 60.0


@dataclass(frozen=True)
class Open:
    """Send and read only the head: `httpx.Response`. An earlier open answer is closed."""

    request: Request


@dataclass(frozen=True)
class Chunk:
    """The next bytes of the answer opened last; `b""` at its end."""


@dataclass(frozen=True)
class Sleep:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Aside:
    """Do work that takes a while, such as reading a large file, where it holds nobody up; its result."""

    work: Callable[[], Any]


@dataclass(frozen=True)
class Emit:
    """Hand one item to whoever iterates."""

    item: Any


Effect = Open | Chunk | Sleep | Aside | Emit
Operation = Generator[Effect, Any, T]


def advance(operation: Operation[None], outcome: Any, failure: Exception | None) -> Effect | None:
    """The next effect of an operation that is told what its last one came to, or how it failed; None at its end."""
    try:
        return operation.throw(failure) if failure else operation.send(outcome)
    except StopIteration:
        return None


# -- uploads --------------------------------------------------------------------------------------


def as_parameter(architecture: Any) -> str:
    """An architecture as a query parameter: a name as it is, all else as JSON."""
    return architecture if isinstance(architecture, str) else json.dumps(architecture)


# -- jobs -----------------------------------------------------------------------------------------


def submit(spec: Mapping[str, Any]) -> Operation[dict[str, Any]]:
    """`POST /v1/jobs`; the idempotency key makes every retry the same job."""
    request = Request("POST", "/v1/jobs", headers={"Idempotency-Key": str(uuid.uuid4())}, json=dict(spec))
    response = yield from call(request)
    job: dict[str, Any] = response.json()
    return job


def plan(spec: Mapping[str, Any]) -> Operation[dict[str, Any]]:
    """`POST /v1/jobs:plan`, and look again for as long as the plan is not made."""
    request = Request("POST", "/v1/jobs:plan", json=dict(spec), read_timeout_s=90.0)
    while (response := (yield from call(request))).status_code == 202:
        address = f"/v1/plans/{segment(response.json()['id'])}"
        request = Request("GET", address, headers={"Prefer": "wait=30"}, read_timeout_s=90.0)
    made: dict[str, Any] = response.json()
    return made


def cancel(job_id: str) -> Operation[dict[str, Any]]:
    """`POST …/cancel`. That it was canceled already (by an earlier try, say) is no error."""
    refused: APIError | None = None
    try:
        yield from call(Request("POST", f"/v1/jobs/{job_id}/cancel"))
    except APIError as error:
        if error.status != 409:
            raise
        refused = error
    job: dict[str, Any] = yield from get_json(f"/v1/jobs/{job_id}")
    if refused and job["status"] != "canceled":
        raise refused
    return job


def events(job_path: str, after: int) -> Operation[None]:
    """Emit a job's events `{id, event, data}` until `done`; a broken connection goes on where it stopped."""
    failures = 0
    while True:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(after)} if after else {})}
        parser = _EventParser()
        try:
            yield from call(Request("GET", f"{job_path}/events", headers=headers), stream=True)
            while chunk := (yield Chunk()):
                for event in parser.feed(chunk):
                    failures, after = 0, event["id"]
                    yield Emit(event)
                    if event["event"] == "done":
                        return
            job = yield from get_json(job_path)
            if job["status"] in ENDED and not parser.fed:
                return  # `done` came before `after`
        except httpx.TransportError:
            pass
        failures += 1
        yield Sleep(backoff_s(failures))


def pages(path: str, params: Mapping[str, str | int]) -> Operation[None]:
    """Emit every row of a list, page after page."""
    cursor: dict[str, str] = {}
    while True:
        page = yield from get_json(path, {**params, **cursor})
        for row in page["data"]:
            yield Emit(row)
        if not page["has_more"]:
            return
        cursor = {"after": page["next_cursor"]}


_ENDINGS = {"image/png": ".png", "application/json": ".json"}


def preview(dataset_id: str, destination: Path) -> Operation[Path]:
    """Fetch a data set's preview to a file, or into a folder under the data set's id; with the ending of its kind."""
    response = yield from call(Request("GET", f"/v1/datasets/{dataset_id}/preview"))
    ending = _ENDINGS.get(response.headers.get("content-type", "").partition(";")[0], "")
    path = destination / f"{dataset_id}{ending}" if destination.is_dir() else destination.with_suffix(ending)
    path.write_bytes(response.content)
    return path


def download(path: str, sha256: str, size_bytes: int, destination: Path, progress: Progress | None) -> Operation[Path]:
    """Fetch a file to `destination`, which appears only whole and with the right digest.

    What an earlier, broken-off download left in `….part` is continued, not fetched again.
    """
    part = destination.with_name(destination.name + ".part")
    for _ in range(2):
        digest = yield from _fill(part, path, f'"{sha256}"', size_bytes, progress)
        if digest == sha256:
            os.replace(part, destination)
            return destination
        part.unlink()  # left by another file, or damaged: once more from the start
    raise DigestMismatch(f"{path} arrived damaged twice: its SHA-256 is not {sha256}")


def _fill(part: Path, path: str, etag: str, size_bytes: int, progress: Progress | None) -> Operation[str]:
    """Append what is missing to `part`; returns the SHA-256 of the whole."""
    failures = 0
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("a+b") as file:
        sha256, done = _digest_so_far(part)
        while done < size_bytes:
            # Compressed on the way, ranges would count other bytes; and this client goes nowhere else for them.
            headers = {"Accept-Encoding": "identity", "Prefer": "no-redirect"}
            if done:
                headers |= {"Range": f"bytes={done}-", "If-Range": etag}
            try:
                response = yield from call(Request("GET", path, headers=headers), stream=True)
                if response.status_code == 200 and done:
                    file.truncate(0)
                    sha256, done = hashlib.sha256(), 0
                while chunk := (yield Chunk()):
                    if done + len(chunk) > size_bytes:
                        raise UntrustedAnswer(f"{path} has more than the {size_bytes:,} bytes that were announced")
                    file.write(chunk)
                    sha256.update(chunk)
                    done, failures = done + len(chunk), 0
                    if progress:
                        progress(done, size_bytes)
            except httpx.TransportError:
                pass
            if done < size_bytes:
                failures += 1
                if failures > 8:
                    raise ServerUnreachable(f"The download to {part} broke off; run it again to go on.")
                yield Sleep(backoff_s(failures))
        file.flush()
        os.fsync(file.fileno())
    return str(sha256.hexdigest())


def _digest_so_far(part: Path) -> tuple[Any, int]:
    sha256, done = hashlib.sha256(), 0
    with part.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            done += len(chunk)
    return sha256, done


class _EventParser:
    """Makes events of the bytes of an event stream, as they come."""

    def __init__(self) -> None:
        self.fed = False
        self._rest = b""
        self._fields: dict[str, str] = {}

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > MAX_ANSWER_BYTES:
            raise UntrustedAnswer(f"an event of the stream has more than {MAX_ANSWER_BYTES:,} bytes")
        for line in lines:
            text = line.rstrip(b"\r").decode()
            if text:
                name, _, value = text.partition(":")
                # A comment has no name; `data` over several lines is one text.
                value = value.removeprefix(" ")
                self._fields[name] = f"{self._fields[name]}\n{value}" if name in self._fields else value
                continue
            fields, self._fields = self._fields, {}
            if "data" in fields and "id" in fields:
                data, self.fed = json.loads(fields["data"]), True
                yield {"id": int(fields["id"]), "event": fields.get("event", "message"), "data": data}


# -- one request, until it is answered ------------------------------------------------------------


def get_json(
    path: str, params: Mapping[str, str | int] | None = None, *, retry_not_ready: bool = True
) -> Operation[Any]:
    """GET a JSON body."""
    response = yield from call(Request("GET", path, params or {}), retry_not_ready=retry_not_ready)
    return response.json()


def poll(
    path: str,
    *,
    ended: Callable[[dict[str, Any]], bool],
    timeout_s: float | None,
    still: str,
    on_update: Callable[[dict[str, Any]], None] | None = None,
) -> Operation[dict[str, Any]]:
    """Long-poll a row until `ended` says so; `TimeoutError(still)` when that takes too long, which is no failure."""
    give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
    # A long poll ends with the job, or with any change where the last look is named.
    etag = ""
    while True:
        left_s = 30.0 if give_up_at is None else give_up_at - time.monotonic()
        wait_s = max(0, round(min(30.0, left_s)))
        headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
        if on_update and etag:
            headers["If-None-Match"] = etag
        response = yield from call(Request("GET", path, headers=headers, read_timeout_s=wait_s + 30.0))
        if response.status_code != 304:
            row: dict[str, Any] = response.json()
            etag = response.headers.get("etag", "")
            if on_update:
                on_update(row)
            if ended(row):
                return row
        if give_up_at is not None and time.monotonic() >= give_up_at:
            raise TimeoutError(still)
        if not wait_s or "preference-applied" not in response.headers:
            yield Sleep(min(1.0, max(0.05, left_s)))


@dataclass(frozen=True)
class Answer:
    """A good answer; where it is read as a stream, `content` is empty."""

    status_code: int
    headers: httpx.Headers
    content: bytes

    def json(self) -> Any:
        """The JSON of the body."""
        return json.loads(self.content)


def segment(text: Any) -> str:
    """A text as one step of a path: of whatever a server sends, nothing leads to another place."""
    return quote(str(text), safe="")


def check_path(path: str) -> None:
    """Raise UntrustedAnswer for what is not a path of this client's own server."""
    steps = path.split("/")
    if steps[0] or not steps[1:] or not steps[1] or {".", ".."} & set(steps) or set(path) & set("?#\\"):
        raise UntrustedAnswer(f"{path!r} is no path of the server that this client is for, so nothing was sent there")


def call(
    request: Request, *, stream: bool = False, retry_not_ready: bool = True, patience_s: float = 120.0
) -> Operation[Answer]:
    """Send a request until it is answered for good.

    Connection loss, 408, 425, 429, 502–504 and 409 of the type `not-ready` are tried again with back-off, or when
    `Retry-After` says; a 500 only twice, since it may be about the very thing asked for.

    Raises:
        APIError: the service's refusal.
        ServerUnreachable: no answer within `patience_s`.
        UntrustedAnswer: an answer without end.
    """
    left_s, tries = patience_s, 0
    while True:
        tries, began = tries + 1, time.monotonic()
        try:
            response: httpx.Response = yield Open(request)
            good = response.is_success or response.status_code == 304
            if good and stream:
                return Answer(response.status_code, response.headers, b"")
            body = yield from _whole(MAX_ANSWER_BYTES if good else _MAX_PROBLEM_BYTES)
        except httpx.TransportError as error:
            failure: Exception = ServerUnreachable(f"The server does not answer: {str(error) or type(error).__name__}")
            failure.__cause__ = error
            delay_s = backoff_s(tries)
        else:
            if good:
                return Answer(response.status_code, response.headers, body)
            failure = refusal = APIError(response.status_code, _problem(response, body))
            if not _worth_another_try(refusal, tries, retry_not_ready):
                raise refusal
            delay_s = _retry_after_s(response) or backoff_s(tries)
        # To send a file may take hours, and that is no waiting for an answer.
        left_s -= delay_s if request.content else delay_s + time.monotonic() - began
        if left_s < 0:
            raise failure
        yield Sleep(delay_s)


def _whole(most: int) -> Operation[bytes]:
    """What is left of the answer opened last."""
    body = bytearray()
    while chunk := (yield Chunk()):
        body += chunk
        if len(body) > most:
            raise UntrustedAnswer(f"the server's answer has more than {most:,} bytes")
    return bytes(body)


def _problem(response: httpx.Response, body: bytes) -> dict[str, Any]:
    if response.has_redirect_location:
        where = response.headers["location"]
        return {
            "title": "The server is elsewhere",
            "detail": f"It redirects to {where}. Redirects are not followed, for your key would go along. If that is "
            "the server that you mean, set PARED_URL to its address.",
        }
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    return problem if isinstance(problem, dict) else {"detail": body[:500].decode(errors="replace")}


def _worth_another_try(refusal: APIError, tries: int, retry_not_ready: bool) -> bool:
    if refusal.status == 409:
        return retry_not_ready and refusal.type.endswith("/not-ready")
    return refusal.status in (408, 425, 429, 502, 503, 504) or (refusal.status == 500 and tries <= 2)


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return min(float(response.headers.get("retry-after", 0)), 60.0)
    except ValueError:  # an HTTP date: our service sends seconds, a proxy may not
        return 0.0


def backoff_s(tries: int) -> float:
    """Seconds to wait before the next try."""
    return min(8.0, 0.25 * 2.0 ** min(tries, 10)) * random.uniform(0.5, 1.0)
