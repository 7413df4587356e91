"""The built wheel, installed in a clean environment outside the repository, runs `pared up` and finishes a job."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.models import zoo
from tests.support.processes import Processes, environment, wait_for
from tests.support.servers import free_port

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment that has the wheel with its service and worker extras."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY)]
    run(build, cwd=folder)
    (wheel,) = folder.glob("pared-*.whl")
    run([sys.executable, "-m", "venv", str(folder / "venv")], cwd=folder)
    constraints = str(REPOSITORY / "constraints.txt")
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    # Compiling what is used, instead of all that is installed, takes a minute less.
    run([*pip, "--no-compile", "-c", constraints, f"{wheel}[service,worker]"], cwd=folder)
    run([pip[0], "-c", "import pared.compression.jobs, service.app, worker.tasks"], cwd=folder)
    return folder / "venv/bin"


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_wheel_carries_its_licence(installed: Path) -> None:
    look = (
        "from importlib.metadata import files, metadata as m; print(m('pared')['License-Expression'], *files('pared'))"
    )
    expression, *files = run([str(installed / "python"), "-c", look], cwd=installed).split()
    assert expression == "Apache-2.0"
    assert any(file.endswith(".dist-info/licenses/LICENSE") for file in files)


@pytest.mark.timeout(900)
def test_the_wheel_runs_outside_the_repository(installed: Path, processes: Processes, tmp_path: Path) -> None:
    port = free_port()
    env = environment(PATH=f"{installed}:{os.environ['PATH']}", PARED_URL=f"http://127.0.0.1:{port}")
    command = [str(installed / "pared"), "up", "--port", str(port), "--data", str(tmp_path / "data")]
    up = processes.start(command, name="pared up", log=tmp_path / "up.log", cwd=tmp_path, env=env)
    try:
        wait_for(lambda: ready(port), 90, f"pared up is ready\n{up.tail()}")
        model, small = tmp_path / "mlp.pt", tmp_path / "small.pt"
        model.write_bytes(zoo.upload("mlp", "scripted"))
        (tmp_path / "mlp.npz").write_bytes(zoo.dataset("mlp"))
        prune = ["prune", "mlp.pt", "--data", "mlp.npz", "--channels", "50%", "--epochs", "1", "-o", "small.pt"]
        done = subprocess.run(
            [str(installed / "pared"), *prune], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{up.tail()}"
        assert small.stat().st_size < model.stat().st_size
        page = httpx.get(f"http://127.0.0.1:{port}/docs").text
        script = re.findall(r'src="(/static/[^"]+\.js)"', page)
        assert httpx.get(f"http://127.0.0.1:{port}{script[0]}").status_code == 200
        where = [str(installed / "python"), "-c", "import pared, service, worker, migrations; print(pared.__file__)"]
        assert str(installed.parent) in run(where, cwd=tmp_path)
    finally:
        up.popen.send_signal(signal.SIGINT)
        status = up.popen.wait(30)
    assert status == 0, up.tail()


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False
