"""What an upload costs: a body of 2 GiB sent to the API, against write + SHA-256 + fsync of the same bytes here.

Both write to the same disk, alternately, in the same run. Run it with `python benchmarks/upload.py`.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from results import machine, table, write_section

GIB = 1 << 30
BLOCK = 1 << 20


def main(size: int = 2 * GIB, rounds: int = 3) -> None:
    """Measure, print, and write the section `upload`."""
    with tempfile.TemporaryDirectory(prefix="pared-upload-") as folder, running_api(Path(folder)) as (port, api):
        upload(port, 64 * BLOCK, seed=0)  # what a first request loads is not memory of the upload
        ours, plain, growth = [], [], 0
        for seed in range(1, rounds + 1):
            plain.append(write_hash_fsync(Path(folder) / "plain", size, seed))
            with peak_growth(api) as peak:
                ours.append(upload(port, size, seed))
            growth = max(growth, peak[0])
        ratio = statistics.median(plain) / statistics.median(ours)
        rows = [
            ["write + SHA-256 + fsync", seconds(plain), f"{size / statistics.median(plain) / 2**20:.0f}", ""],
            [
                "POST /v1/models",
                seconds(ours),
                f"{size / statistics.median(ours) / 2**20:.0f}",
                f"{growth / 2**20:.0f}",
            ],
        ]
        shown = table([f"{size / GIB:g} GiB", "seconds", "MiB/s", "API memory grew, MiB"], rows)
        print(f"{shown}\nratio {ratio:.2f}")
        text = (
            f"## Upload\n\n{shown}\n\nMedian of {rounds} rounds, taken alternately on {machine()}. An upload runs at "
            f"**{ratio:.2f}** of the speed of writing, hashing and syncing the same bytes in one loop; client and "
            "server share the cores, and the server hashes and writes one batch while it receives the next.\n\n"
            "`python benchmarks/upload.py`"
        )
        write_section("upload", text)


@contextmanager
def running_api(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """An API with its state under `folder`: its port and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"PARED_DATA_DIR": str(folder / "data"), "PARED_PORT": str(port)}
    pared = str(Path(sys.executable).with_name("pared"))
    subprocess.run([pared, "migrate"], env=env, check=True)
    api = subprocess.Popen([pared, "api"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port, psutil.Process(api.pid)
    finally:
        api.send_signal(signal.SIGTERM)
        api.wait(30)


def blocks(size: int, seed: int) -> Iterator[bytes]:
    """`size` bytes that do not compress and differ by seed, cheap to make: one random block, numbered."""
    block = bytearray(random.Random(seed).randbytes(BLOCK))
    for number in range(size // BLOCK):
        block[:8] = number.to_bytes(8, "big")
        yield bytes(block)


def upload(port: int, size: int, seed: int) -> float:
    """Seconds from the first byte sent to the answer, whose digest is checked."""
    expected = hashlib.sha256()
    for block in blocks(size, seed):
        expected.update(block)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    started = time.monotonic()
    headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
    connection.request("POST", f"/v1/models?filename=big{seed}.bin", body=blocks(size, seed), headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    taken = time.monotonic() - started
    if answer.status != 201 or expected.hexdigest() not in text:
        raise RuntimeError(f"the upload was answered {answer.status}: {text[:500]}")
    return taken


def write_hash_fsync(path: Path, size: int, seed: int) -> float:
    """Seconds of the least that any store must do with the bytes."""
    started = time.monotonic()
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in blocks(size, seed):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    taken = time.monotonic() - started
    path.unlink()
    return taken


@contextmanager
def peak_growth(process: psutil.Process) -> Iterator[list[int]]:
    """Watches a process's resident memory: afterwards the list holds its largest growth in bytes."""
    before, peak, done = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def seconds(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


if __name__ == "__main__":
    main()
