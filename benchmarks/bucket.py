"""What objects in a bucket cost: an upload and a download of 512 MiB, against the same work done plainly.

Plain work is, for an upload, to write and hash the bytes and put the file into the bucket; for a download, to get it in
a stream and hash it. Both go to the same SeaweedFS of a wheel, alternately, in the same run. Run it with
`python benchmarks/bucket.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store
from results import machine, table, write_section
from upload import BLOCK, blocks, peak_growth, running_api, seconds, upload

BUCKET = "pared-benchmark"


def main(size: int = 512 << 20, rounds: int = 3) -> None:
    """Measure, print, and write the section `bucket`."""
    with tempfile.TemporaryDirectory(prefix="pared-bucket-") as name, running_s3(Path(name)) as plain:
        os.environ["PARED_OBJECTS_URL"] = f"s3://{BUCKET}/pared"
        with running_api(Path(name)) as (port, api):
            upload(port, 64 * BLOCK, seed=0)  # what a first request loads is not memory of the upload
            put, posted, got, read, growth = [], [], [], [], 0
            for seed in range(1, rounds + 1):
                put.append(write_hash_put(plain, Path(name) / "plain", size, seed))
                with peak_growth(api) as peak:
                    posted.append(upload(port, size, seed))
                growth = max(growth, peak[0])
                got.append(get_hash(plain))
                read.append(pieces_of(Path(name) / "reader", size, seed))
        rows = [
            ["write + SHA-256, put", seconds(put), ""],
            ["POST /v1/models", seconds(posted), f"{growth / 2**20:.0f}"],
            ["get in a stream + SHA-256", seconds(got), ""],
            ["as workers and downloads read", seconds(read), ""],
        ]
        up, down = (statistics.median(a) / statistics.median(b) for a, b in ((put, posted), (got, read)))
        shown = table([f"{size >> 20} MiB", "seconds", "API memory grew, MiB"], rows)
        print(f"{shown}\nratios {up:.2f} up, {down:.2f} down")
        text = (
            f"## Objects in a bucket\n\n{shown}\n\nMedian of {rounds} rounds, taken alternately on {machine()}, with "
            f"the bucket's server on the same cores. An upload runs at **{up:.2f}**, reading at **{down:.2f}** of the "
            "speed of the same work done plainly.\n\n`python benchmarks/bucket.py`"
        )
        write_section("bucket", text)


@contextmanager
def running_s3(folder: Path) -> Iterator[S3Store]:
    """A SeaweedFS with its files in `folder`, as this process and what it starts find it: its bucket."""
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    identity = {
        "name": "benchmark",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "objects").mkdir()
    ports = dict(zip(("s3", "master", "volume", "filer"), range(19_330, 19_334), strict=True))
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
    }
    command = [str(Path(sys.executable).with_name("weed")), "server", "-s3", "-dir=objects", "-s3.config=s3.json"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.iam=false", "-master.telemetry=false", "-volume.max=50"]
    command += ["-master.volumeSizeLimitMB=1000", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"]
    command += [f"-{part}.port={port}" for part, port in ports.items()]
    command += [f"-{part}.port.grpc={port + 10}" for part, port in ports.items()]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        store = S3Store(BUCKET, prefix="plain", client_options={"allow_http": True})
        until = time.monotonic() + 60
        while True:
            try:
                obstore.put(store, "ready", b"")
                break
            except BaseError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)
        yield store
    finally:
        server.terminate()
        server.wait(30)


def write_hash_put(store: S3Store, path: Path, size: int, seed: int) -> float:
    """Seconds of the least that an upload whose name is its digest must do."""
    started, digest = time.monotonic(), hashlib.sha256()
    with path.open("wb") as file:
        for block in blocks(size, seed):
            digest.update(block)
            file.write(block)
    obstore.put(store, "file", path, chunk_size=16 << 20, max_concurrency=4)
    path.unlink()
    return time.monotonic() - started


def get_hash(store: S3Store) -> float:
    """Seconds of a plain download."""
    started, digest = time.monotonic(), hashlib.sha256()
    for chunk in obstore.get(store, "file").stream(min_chunk_size=1 << 20):
        digest.update(chunk)
    return time.monotonic() - started


def pieces_of(folder: Path, size: int, seed: int) -> float:
    """Seconds of reading the upload of this seed by the store itself, whose digest is checked."""
    from pared.state.objects import content_key, open_store
    from pared.state.settings import Settings

    expected = hashlib.sha256()
    for block in blocks(size, seed):
        expected.update(block)
    store = open_store(Settings(data_dir=folder))
    started, digest = time.monotonic(), hashlib.sha256()
    for chunk in store.read(content_key(expected.hexdigest())):
        digest.update(chunk)
    taken = time.monotonic() - started
    if digest.hexdigest() != expected.hexdigest():
        raise RuntimeError("the store gave back other bytes")
    return taken


if __name__ == "__main__":
    main()
