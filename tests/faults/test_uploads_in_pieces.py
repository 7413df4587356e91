"""Large files over an API that is killed at random bytes, and a backup put back elsewhere while jobs were queued."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tusclient.client import TusClient

import pared
from pared.client import uploading
from tests.support.campaign import counted
from tests.support.models import zoo
from tests.support.processes import Processes, wait_for
from tests.support.stack import Stack, new_stack

TUS_JS = Path(__file__).with_name("tus_js")


@pytest.fixture
def stack(processes: Processes, scratch: Path) -> Iterator[Stack]:
    """A stack of the test's own, without a worker."""
    started = new_stack(scratch / "in pieces", processes, workers=0, lease_s="8", heartbeat_s="0.5")
    yield started
    started.stop()


class Killer(threading.Thread):
    """Kills the API each time so many bytes are on disk, at random, and starts it again."""

    def __init__(self, stack: Stack, size: int, kills: int) -> None:
        super().__init__(daemon=True)
        self.stack, self.killed_at = stack, []
        self._points = sorted(random.randrange(size) for _ in range(kills))

    def run(self) -> None:
        folder = self.stack.data / "objects" / ".partial"
        for point in self._points:
            while max((path.stat().st_size for path in folder.glob("upl_*")), default=0) < point:
                time.sleep(0.002)
            self.stack.api.kill()
            self.killed_at.append(point)
            self.stack.start_api()
            self.stack.wait_ready(need_worker=False)


def send_in_pieces(stack: Stack, client: str, path: Path, progress: Any) -> str:
    """Upload a file by one of the clients; returns the SHA-256 that the service has."""
    if client == "pared":
        with pared.Client(stack.url) as ours:
            return str(ours.models.upload(path, progress=progress).sha256)
    said = {"kind": "model", "filename": path.name}
    if client == "tus-js-client":
        done = subprocess.run(
            ["node", str(TUS_JS / "upload.js"), f"{stack.url}/v1/uploads", str(path), json.dumps(said)],
            capture_output=True,
            text=True,
            timeout=600,
            env=os.environ | {"NO_PROXY": "127.0.0.1"},
        )
        assert done.returncode == 0, done.stderr
        url = done.stdout.strip()
    else:
        uploader = TusClient(f"{stack.url}/v1/uploads").uploader(
            str(path), chunk_size=1 << 20, metadata=said, retries=100, retry_delay=1
        )
        uploader.upload()
        url = uploader.url
    row = httpx.get(url).json()
    return str(stack.get(row["result"])["sha256"])


def killed_again_and_again(stack: Stack, client: str, size: int, kills: int, path: Path) -> None:
    path.write_bytes(random.randbytes(size))
    killer = Killer(stack, size, kills)
    killer.start()
    seen: list[int] = []
    got = send_in_pieces(stack, client, path, lambda done, total: seen.append(done))
    killer.join(120)
    assert len(killer.killed_at) == kills
    with path.open("rb") as file:
        assert got == hashlib.file_digest(file, "sha256").hexdigest()
    (row,) = stack.rows("SELECT count(*) FROM models")
    assert row[0] == 1, "it became one model"
    if client == "pared":
        again = sum(first - then for first, then in itertools.pairwise(seen) if then < first)
        assert again <= kills * (uploading.CHUNK_BYTES + (24 << 20)), "what was acknowledged is not sent again"
    assert not list((stack.data / "objects" / ".partial").iterdir())
    print(f"{client}: {size:,} bytes, API killed {kills} times, at {killer.killed_at}: whole, one model")


@counted(3, 200)
def test_an_upload_survives_an_api_that_is_killed_at_random_bytes(
    stack: Stack, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "RESUMABLE_ABOVE", 1 << 20)
    monkeypatch.setattr(uploading, "backoff_s", lambda tries: 0.1)
    monkeypatch.setattr(uploading, "_MAX_FAILURES", 1000)
    killed_again_and_again(stack, "pared", (96 << 20) if count > 3 else (40 << 20), count, tmp_path / "m.pt")


@pytest.mark.campaign
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("client", ["tuspy", "tus-js-client"])
def test_other_clients_survive_it_too(stack: Stack, client: str, tmp_path: Path) -> None:
    if client == "tus-js-client":
        npm = shutil.which("npm")
        if npm is None or shutil.which("node") is None:
            pytest.skip("there is no node here")
        subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--silent"], cwd=TUS_JS, check=True, timeout=300)
    killed_again_and_again(stack, client, 64 << 20, 10, tmp_path / "m.pt")


def test_jobs_that_were_queued_finish_on_the_machine_where_a_backup_is_put_back(
    stack: Stack, processes: Processes, scratch: Path
) -> None:
    spec = {
        "type": "prune",
        "model": stack.upload_model(zoo.upload("mlp", "scripted"), "mlp.pt"),
        "example_inputs": [{"shape": [2, 16]}],
        "granularity": "weight",
        "amount": 0.5,
    }
    jobs = [stack.submit(spec) for _ in range(2)]
    copy = scratch / "copy"
    stack.run("backup", str(copy))
    stack.stop()
    elsewhere = scratch / "elsewhere"
    stack.data.rename(scratch / "lost")
    stack.folder, stack.data = elsewhere, elsewhere / "data"
    elsewhere.mkdir()
    stack.env["PARED_DATA_DIR"] = str(stack.data)
    stack.http = httpx.Client(base_url=stack.url, timeout=60)
    stack.run("restore", str(copy))
    stack.start_api()
    stack.start_worker()
    stack.wait_ready()
    for job in jobs:
        stack.succeeded(job)
    wait_for(lambda: stack.inspected(spec["model"])["status"] == "ready", "the upload was inspected too")
    assert "0 findings" in stack.run("fsck")
