"""Starts a pared for a benchmark, and stops it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def running_pared(data: Path, **settings: str) -> Iterator[str]:
    """The address of a `pared up` with its state in `data`, which begins empty, and other settings by their variables.

    Jobs survive a benchmark that was killed, and would go on beside those of the next run.
    """
    shutil.rmtree(data, ignore_errors=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    # Not the script `pared`: a checkout that is on Python's path has none.
    command = [sys.executable, "-P", "-m", "pared", "up", "--port", str(port), "--data", str(data)]
    up = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | settings)
    try:
        until = time.monotonic() + 120
        while not ready(url):
            if time.monotonic() > until or up.poll() is not None:
                raise RuntimeError(f"pared up did not come up; see {data / 'logs'}")
            time.sleep(0.2)
        yield url
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(30)


def ready(url: str) -> bool:
    """Whether it takes jobs."""
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
