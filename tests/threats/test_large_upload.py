"""Large uploads: memory stays flat, and the digest is that of the bytes."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.campaign import counted
from tests.support.processes import Processes, meanwhile
from tests.support.stack import new_stack

MIB = 1 << 20


def blocks(count: int) -> Iterator[bytes]:
    """So many MiB of numbered random blocks."""
    block = bytearray(random.Random(0).randbytes(MIB))
    for number in range(count):
        block[:8] = number.to_bytes(8, "big")
        yield bytes(block)


@counted(512, 4096)
@pytest.mark.parametrize("form", ["raw", "multipart"])
def test_large_uploads_grow_the_api_by_less_than_64_mib(
    count: int, form: str, processes: Processes, scratch: Path
) -> None:
    stack = new_stack(scratch / "large", processes, workers=0)
    try:
        stack.upload_model(b"".join([bytes(MIB)] * 64), "warm.bin")  # first requests load code
        memory = stack.api.psutil.memory_info
        before, peak = memory().rss, 0

        def watch() -> None:
            nonlocal peak
            peak = max(peak, memory().rss)

        digest = hashlib.sha256()

        def body() -> Iterator[bytes]:
            if form == "multipart":
                yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="big.bin"\r\n\r\n'
            for block in blocks(count):
                digest.update(block)
                yield block
            if form == "multipart":
                yield b"\r\n--b--\r\n"

        content_type = "multipart/form-data; boundary=b" if form == "multipart" else "application/octet-stream"
        with meanwhile(watch, every_s=0.02):
            answer = stack.http.post("/v1/models", content=body(), headers={"Content-Type": content_type}, timeout=600)
        assert answer.status_code == 201, answer.text
        assert answer.json()["size_bytes"] == count * MIB
        assert answer.json()["sha256"] == digest.hexdigest()
        print(f"\n{count} MiB {form}: the API grew by {(peak - before) / MIB:.0f} MiB")
        assert peak - before < 64 * MIB
    finally:
        stack.stop()
        shutil.rmtree(stack.folder)
