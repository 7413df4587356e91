"""Large uploads: memory stays flat, and the digest is that of the bytes."""

from __future__ import annotations

import hashlib
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Processes
from tests.support.stack import new_stack

SIZE = 2 << 30
MIB = 1 << 20


def blocks() -> Iterator[bytes]:
    """2 GiB of numbered random blocks."""
    block = bytearray(random.Random(0).randbytes(MIB))
    for number in range(SIZE // MIB):
        block[:8] = number.to_bytes(8, "big")
        yield bytes(block)


@pytest.mark.parametrize("form", ["raw", "multipart"])
def test_two_gib_grow_the_api_by_less_than_64_mib(form: str, processes: Processes, scratch: Path) -> None:
    stack = new_stack(scratch / "large", processes, workers=0)
    try:
        stack.upload_model(b"".join([bytes(MIB)] * 64), "warm.bin")  # first requests load code
        memory = stack.api.psutil.memory_info
        before, peak, done = memory().rss, 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.02):
                peak = max(peak, memory().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        digest = hashlib.sha256()

        def body() -> Iterator[bytes]:
            if form == "multipart":
                yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="big.bin"\r\n\r\n'
            for block in blocks():
                digest.update(block)
                yield block
            if form == "multipart":
                yield b"\r\n--b--\r\n"

        content_type = "multipart/form-data; boundary=b" if form == "multipart" else "application/octet-stream"
        answer = stack.http.post("/v1/models", content=body(), headers={"Content-Type": content_type}, timeout=240)
        done.set()
        watcher.join()
        assert answer.status_code == 201, answer.text
        assert answer.json()["size_bytes"] == SIZE
        assert answer.json()["sha256"] == digest.hexdigest()
        print(f"\n2 GiB {form}: the API grew by {(peak - before) / MIB:.0f} MiB")
        assert peak - before < 64 * MIB
    finally:
        stack.stop()
        shutil.rmtree(stack.folder)
