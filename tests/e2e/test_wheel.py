"""The built wheel, installed in a clean environment outside the repository, runs `pared up` and finishes a job."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from tests.support.models import zoo
from tests.support.processes import Processes, environment, wait_for
from tests.support.servers import free_port

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment in which the Dockerfile's own commands installed the service, then the worker."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for instruction, words in stage("wheel"):
        if instruction == "COPY":
            *names, _ = words.split()
            for name in names:
                copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
                copy(REPOSITORY / name, source / name)
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], cwd=folder)
    look = "import sysconfig; print(sysconfig.get_path('platlib'))"
    site_packages = Path(run([str(folder / "venv/bin/python"), "-c", look], cwd=folder).strip())
    lend({"pip", "setuptools"}, site_packages)
    pip = folder / "venv/bin/pip"
    pip.write_text(
        f"#!{folder / 'venv/bin/python'}\nfrom pip._internal.cli.main import main\n\nraise SystemExit(main())\n"
    )
    pip.chmod(0o755)
    for name, cwd in (("wheel", source), ("service", folder), ("worker", folder)):
        for instruction, words in stage(name):
            if instruction == "RUN":
                if extras := re.search(r"\[([a-z0-9,]+)\]", words):
                    (wheel,) = (folder / "dist").glob("*.whl")
                    lend(required(wheel, extras[1].split(",")), site_packages)
                run(["sh", "-euc", in_folder(words, folder)], cwd=cwd, **pip_settings(folder))
    run([str(pip), "check"], cwd=folder, **pip_settings(folder) | {"PIP_QUIET": "0"})
    return folder / "venv/bin"


def required(wheel: Path, extras: Iterable[str]) -> set[str]:
    """The packages that the wheel's own requirements name with these extras, and what those require in turn."""
    name = wheel.name.partition("-")[0]
    inside = next(path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    asked = [Requirement(f"{name}[{','.join(extras)}]")]
    found: dict[str, set[str]] = {}
    while asked:
        requirement = asked.pop()
        wanted = {"", *requirement.extras} - found.setdefault(requirement.name, set())
        found[requirement.name] |= wanted
        is_wheel = requirement.name == name
        for line in (PathDistribution(inside) if is_wheel else distribution(requirement.name)).requires or ():
            part = Requirement(line)
            if any(part.marker is None or part.marker.evaluate({"extra": extra}) for extra in wanted):
                asked.append(part)
    return found.keys() - {name}


def lend(packages: Iterable[str], site_packages: Path) -> None:
    """Install packages from the files that they have in this environment: unpacking them takes pip minutes.

    So pip finds what the wheel requires, and nothing else.
    """
    made: set[Path] = set()
    for package in packages:
        for file in distribution(package).files or ():
            target = site_packages / file
            if ".." in file.parts or target.exists():
                continue
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            try:
                os.link(file.locate(), target)
            except OSError:  # on another disk
                shutil.copy2(file.locate(), target)  # compiled code names the time of its source


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage of the Dockerfile: `[("RUN", "pip install …"), …]`."""
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    (body,) = re.findall(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    instructions = [line.split(maxsplit=1) for line in body.splitlines() if line and not line.startswith("#")]
    return [(instruction, words) for instruction, words in instructions]


def in_folder(command: str, folder: Path) -> str:
    """A command of the Dockerfile with the image's paths below a folder, and with pip's cache."""
    constraints = str(REPOSITORY / "constraints.txt")
    command = command.replace("--no-cache-dir ", "").replace("/tmp/constraints.txt", constraints)
    return command.replace("/dist", str(folder / "dist"))


def pip_settings(folder: Path) -> dict[str, str]:
    """The environment in which commands find the new Python, and no second index: torch is there already."""
    return {
        "PATH": f"{folder / 'venv/bin'}:{os.environ['PATH']}",
        "TORCH_INDEX": folder.as_uri(),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_QUIET": "1",
        # Compiling what is used, instead of all that is installed, takes a minute less; so does a check at the end that
        # all is there that was required, instead of a search for it.
        "PIP_NO_COMPILE": "1",
        "PIP_NO_DEPS": "1",
        # The wheel is built by what is lent, which pip holds against pyproject.toml, and not in one more environment.
        "PIP_NO_BUILD_ISOLATION": "0",  # which turns isolation off: pip reads it so
        "PIP_CHECK_BUILD_DEPENDENCIES": "1",
    }


def run(command: list[str], cwd: Path, **variables: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=540)
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
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}")
    try:
        wait_for(lambda: ready(client), f"pared up is ready\n{up.tail()}")
        model, small = tmp_path / "mlp.pt", tmp_path / "small.pt"
        model.write_bytes(zoo.upload("mlp", "scripted"))
        (tmp_path / "mlp.npz").write_bytes(zoo.dataset("mlp"))
        prune = ["prune", "mlp.pt", "--data", "mlp.npz", "--channels", "50%", "--epochs", "1", "-o", "small.pt"]
        done = subprocess.run(
            [str(installed / "pared"), *prune], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{up.tail()}"
        assert small.stat().st_size < model.stat().st_size
        page = client.get("/docs").text
        script = re.findall(r'src="(/static/[^"]+\.js)"', page)
        assert client.get(script[0]).status_code == 200
        where = "import onnx, pared, service, worker, migrations; print(pared.__file__)"
        assert str(installed.parent) in run([str(installed / "python"), "-c", where], cwd=tmp_path)
    finally:
        client.close()
        up.popen.send_signal(signal.SIGINT)
        status = up.popen.wait(30)
    assert status == 0, up.tail()


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
