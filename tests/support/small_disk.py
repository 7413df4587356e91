"""A file system of a few megabytes, which a test can fill up and make room on again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_BLOCK = bytes(1 << 20)


class SmallDisk:
    """What is written in `folder` shares so many bytes; made by `small_disk`."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder, self._size_bytes = folder, size_bytes
        # Of the disk itself, for once it is unmounted the folder is one of the machine's own disk.
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def fill(self) -> None:
        """Leave no byte free."""
        ballast = os.open("ballast", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600, dir_fd=self._root)
        try:
            block = _BLOCK
            while block and os.fstat(ballast).st_size <= self._size_bytes:
                try:
                    os.write(ballast, block)
                except OSError:
                    block = block[: len(block) // 2]
        finally:
            os.close(ballast)

    def fill_for(self, seconds: float) -> None:
        """Keep it full for so long, whatever room others make, and then make room."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.fill()
            time.sleep(0.05)
        self.empty()

    def empty(self) -> None:
        """Make room again."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink("ballast", dir_fd=self._root)

    def close(self) -> None:
        """Let go of the disk."""
        os.close(self._root)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """A disk that is mounted at the folder; the test is skipped where nothing can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(folder)]
    if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    disk = SmallDisk(folder, megabytes << 20)
    try:
        yield disk
    finally:
        disk.close()
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
