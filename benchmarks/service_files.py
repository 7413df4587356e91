"""Uploads and downloads beside the same work done plainly, in a folder and in a bucket, and what the API holds.

Plain work is, for an upload, to write, hash and sync the bytes here, or to write, hash and put them into the bucket;
for a download, what a server of a few lines reads and sends. All of it is done in turns with the API's.
"""

from __future__ import annotations

import hashlib
import http.client
import multiprocessing
import os
import socket
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic

import obstore
from bucket import write_hash_put
from obstore.store import S3Store
from results import machine, table, write_section
from services import BACKENDS, Backends, Service
from upload import BLOCK, peak_growth, seconds, upload, write_hash_fsync

from pared.state.objects import DirectoryStore, content_key
from pared.state.owners import LOCAL_OWNER
from pared.state.session import make_engine, make_sessions
from pared.state.settings import Settings
from pared.state.tables import Artifact, Job, Model, db_now, new_id
from tests.support.s3 import S3Server

LEAST = 0.8
FOLDER, BUCKET = "a folder", "a bucket"
PLACES = {"embedded": (FOLDER,), "servers": (FOLDER, BUCKET)}
_BUCKET = "pared-tests"  # the server's own, of which each service has a part


def measure(on: Backends, size: int, large: int, rounds: int) -> None:
    """Measure, print, and write the section `service-files`."""
    rows, held = [], []
    for backend in on.chosen:
        for place in PLACES[backend]:
            with _service(on, backend, place) as (service, s3):
                state = f"{BACKENDS[backend]}, {place}"
                upload(service.port, 64 * BLOCK, seed=0)  # what a first request loads is not memory of the upload
                rows += [[state, *cells] for cells in _in_turns(service, s3, size, rounds)]
                for row in rows[-3:]:
                    print(*row, sep="\t", flush=True)
                if backend == "embedded" or place == BUCKET:
                    held.append([state, *_memory(service, large)])
                    print(*held[-1], sep="\t", flush=True)
    first = ["state in", f"{size >> 20} MiB", "plain, s", "API, s", "ratio", "goal", "met"]
    second = [f"{large / 2**30:g} GiB, state in", "up, s", "down, s", "API grew while up, MiB", "while down, MiB"]
    text = (
        f"## Files\n\n{table(first, rows)}\n\n"
        f"Medians of {rounds} in turns, and the range. Plain uploads are written, hashed and synced here, or put "
        "into the bucket; a plain download is read and sent by a server of a few lines. A "
        "first download is hashed before "
        "it is sent; the others are what clients get from then on, and what the goal is of.\n\n"
        f"{table(second, held)}\n\n"
        "One upload and two downloads of one file; memory is the API process's own. Clients, API, database and the "
        f"bucket's server share {machine()}, load {os.getloadavg()[0]:.0f} at the end.\n\n"
        "`python benchmarks/service_jobs.py files`"
    )
    write_section("service-files", text)


@contextmanager
def _service(on: Backends, backend: str, place: str) -> Iterator[tuple[Service, S3Server | None]]:
    """A service without workers, whose objects are in this place, and the bucket's server."""
    if place == FOLDER:
        with on.running(backend, workers=0) as service:
            yield service, None
        return
    folder = on.folder / "s3"
    folder.mkdir()
    s3 = S3Server(folder, on.processes)
    try:
        with on.running(backend, workers=0, PARED_OBJECTS_URL=s3.new_url(), **s3.environment) as service:
            yield service, s3
    finally:
        s3.process.kill()


def _in_turns(service: Service, s3: S3Server | None, size: int, rounds: int) -> list[list[str]]:
    """The rows of uploads, first downloads and further ones."""
    plain_up, up, plain_down, first, down = [], [], [], [], []
    on_disk = service.folder / "plain"
    store = None if s3 is None else S3Store(**_of_bucket(s3))
    for seed in range(1, rounds + 1):
        plain_up.append(
            write_hash_fsync(on_disk, size, seed) if store is None else write_hash_put(store, on_disk, size, seed)
        )
        up.append(upload(service.port, size, seed))
        path, key = _as_artifact(service, f"big{seed}.bin")
        first.append(_downloaded(service.port, path, size, hash_it=True))
        source: Callable[[], Iterator[bytes]]
        if s3 is None:
            source = partial(_from_folder, DirectoryStore(service.folder / "data/objects").path(key))
        else:
            source = partial(_from_bucket, _of_bucket(s3))
        with _plain_server(source, size) as port:
            plain_down.append(_downloaded(port, "/", size))
        down.append(_downloaded(service.port, path, size))
    return [
        _row("up", plain_up, up),
        ["down, first", seconds(plain_down), seconds(first), f"{_ratio(plain_down, first):.2f}", "", ""],
        _row("down", plain_down, down),
    ]


def _memory(service: Service, size: int) -> list[str]:
    with peak_growth(service.api.psutil) as grew_up:
        up = upload(service.port, size, seed=999)
    path, _ = _as_artifact(service, "big999.bin")
    with peak_growth(service.api.psutil) as grew_down:
        _downloaded(service.port, path, size)
        down = _downloaded(service.port, path, size)
    return [f"{up:.0f}", f"{down:.0f}", f"{grew_up[0] / 2**20:.0f}", f"{grew_down[0] / 2**20:.0f}"]


def _row(what: str, plain: list[float], ours: list[float]) -> list[str]:
    ratio = _ratio(plain, ours)
    return [what, seconds(plain), seconds(ours), f"**{ratio:.2f}**", f"{LEAST}", "yes" if ratio >= LEAST else "**no**"]


def _ratio(plain: list[float], ours: list[float]) -> float:
    return statistics.median(plain) / statistics.median(ours)


# -- downloads ----------------------------------------------------------------------------------


def _as_artifact(service: Service, filename: str) -> tuple[str, str]:
    """Make an upload the file of a job that has ended. Returns its path at the API, and its object's key."""
    settings = Settings(
        data_dir=service.folder / "data", database_url=service.environment.get("PARED_DATABASE_URL", "")
    )
    engine = make_engine(settings.effective_database_url)
    with make_sessions(engine).begin() as session:
        model = session.query(Model).filter_by(filename=filename).one()
        key, job = content_key(model.sha256), new_id("job")
        session.add(
            Job(
                id=job, owner=LOCAL_OWNER, type="prune", status="succeeded", spec={"type": "prune", "model": model.id},
                finished_at=db_now(),
            )
        )  # fmt: skip
        session.flush()
        session.add(
            Artifact(
                id=new_id("art"), job_id=job, name=filename, media_type="application/octet-stream", object_key=key,
                sha256=model.sha256, size_bytes=model.size_bytes,
            )
        )  # fmt: skip
    engine.dispose()
    return f"/v1/jobs/{job}/artifacts/{filename}", key


def _downloaded(port: int, path: str, size: int, *, hash_it: bool = False) -> float:
    """Seconds of a download, whose bytes are counted, and hashed where they are to be checked."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    buffer, left, digest = memoryview(bytearray(BLOCK)), size, hashlib.sha256()
    began = monotonic()
    connection.request("GET", path)
    answer = connection.getresponse()
    while left and (count := answer.readinto(buffer)):
        left -= count
        if hash_it:
            digest.update(buffer[:count])
    taken = monotonic() - began
    connection.close()
    if answer.status != 200 or left or (hash_it and answer.headers["ETag"] != f'"{digest.hexdigest()}"'):
        raise RuntimeError(f"{path} was answered {answer.status}, and {left} bytes are missing or others")
    return taken


@contextmanager
def _plain_server(source: Callable[[], Iterator[bytes]], size: int) -> Iterator[int]:
    """The port of a process that sends what `source` reads to whoever connects."""
    context = multiprocessing.get_context("spawn")  # this one has threads
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, source, size))
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(parent: Connection, source: Callable[[], Iterator[bytes]], size: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        parent.send(listener.getsockname()[1])
        while True:
            client, _ = listener.accept()
            with client:
                client.recv(1 << 16)
                client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
                for chunk in source():
                    client.sendall(chunk)


def _from_folder(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(BLOCK):
            yield chunk


def _from_bucket(where: dict[str, object]) -> Iterator[bytes]:
    """What `write_hash_put` has put there last."""
    yield from map(bytes, obstore.get(S3Store(**where), "file").stream(min_chunk_size=BLOCK))


def _of_bucket(s3: S3Server) -> dict[str, object]:
    key, secret = s3.secrets
    return {
        "bucket": _BUCKET,
        "prefix": "plain",
        "endpoint": s3.endpoint,
        "access_key_id": key,
        "secret_access_key": secret,
        "region": "us-east-1",
        "client_options": {"allow_http": True},
    }
