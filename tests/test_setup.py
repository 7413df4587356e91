from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from pared.state.settings import Settings
from tests.e2e.processes import Process
from tests.e2e.stack import Stack

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = re.compile(r"[A-Za-z0-9._-]+")


def stages() -> dict[str, list[tuple[str, str]]]:
    """Dockerfile target -> its (instruction, arguments)."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            found[arguments.split(" AS ")[1]] = stage = []
        if instruction.isupper():
            stage.append((instruction, arguments.strip()))
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- containers -----------------------------------------------------------------------------------


def test_the_services_are_those_of_the_design() -> None:
    assert set(COMPOSE["services"]) == {"api", "worker", "worker-gpu", "migrate", "postgres", "redis"}
    assert COMPOSE["services"]["worker-gpu"]["profiles"] == ["gpu"]
    assert {service["build"]["target"] for service in OURS.values()} == {"service", "worker", "worker-gpu"}


def test_containers_run_the_commands_that_the_end_to_end_tests_run(embedded: Stack) -> None:
    def started(process: Process) -> list[str]:
        _, program, *arguments = process.psutil.cmdline()
        return [Path(program).name, *arguments]

    tested = {
        "api": started(embedded.api),
        "worker": started(embedded.workers[0]),
        "migrate": ["pared", "migrate"],
    }
    tested["worker-gpu"] = tested["worker"]
    assert {name: service["command"] for name, service in OURS.items()} == tested
    for name, service in OURS.items():
        if name != "migrate":
            command = dict(stages()[service["build"]["target"]])["CMD"]
            assert ast.literal_eval(command) == service["command"]


@pytest.mark.parametrize("target", ["service", "worker", "worker-gpu"])
def test_images_run_as_nobody_special_and_know_their_health(target: str) -> None:
    instructions = dict(stages()[target])
    assert instructions["USER"].isdigit()
    assert "CMD" in instructions["HEALTHCHECK"]
    assert "--constraint /tmp/constraints.txt" in dict(stages()[target])["RUN"]


def test_only_the_service_image_must_be_free_of_torch() -> None:
    assert "! python -c 'import torch'" in dict(stages()["service"])["RUN"]


def test_the_health_check_of_the_worker_image_is_a_command_of_ours(embedded: Stack) -> None:
    check = ast.literal_eval(dict(stages()["worker"])["HEALTHCHECK"].split("CMD ")[1])
    assert check[0] == "pared"
    embedded.run(*check[1:])


def test_every_variable_in_the_compose_file_is_a_setting() -> None:
    named = {name for service in OURS.values() for name in service["environment"]}
    assert {name.removeprefix("PARED_").lower() for name in named} <= set(Settings.model_fields)


def test_no_secret_is_written_down() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"PASSWORD[^\s@]*", text)) <= {"PASSWORD:", "PASSWORD:?set"}
    assert re.search(r"^POSTGRES_PASSWORD=$", (ROOT / ".env.example").read_text(), re.MULTILINE)


def test_volumes_and_dependencies_are_declared() -> None:
    for name, service in COMPOSE["services"].items():
        volumes = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert volumes <= set(COMPOSE["volumes"]), name
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
    assert "objects:/objects" in OURS["api"]["volumes"]
    assert "objects:/objects" in OURS["worker"]["volumes"]
    for name in ("api", "worker", "worker-gpu"):
        assert OURS[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    for name in ("postgres", "redis"):
        assert "healthcheck" in COMPOSE["services"][name]


def test_docker_compose_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    env = {"POSTGRES_PASSWORD": "x", "PATH": str(Path(docker).parent)}
    subprocess.run([docker, "compose", "--profile", "gpu", "config", "--quiet"], cwd=ROOT, env=env, check=True)


# -- versions -------------------------------------------------------------------------------------


def requirements() -> set[str]:
    listed = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    return {canonical(NAME.match(line)[0]) for line in listed} - {"pared"}  # type: ignore[index]


def test_every_requirement_has_one_exact_version() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^+\s]+", line) for line in lines)
    pinned = [canonical(line.partition("==")[0]) for line in lines]
    assert len(pinned) == len(set(pinned))
    assert requirements() <= set(pinned)


def test_every_package_that_is_imported_is_required() -> None:
    provided_by = packages_distributions()
    missing: dict[str, str] = {}
    for path in [path for room in ("pared", "service", "worker", "migrations") for path in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names):
                distributions = {canonical(found) for found in provided_by.get(name, [name])}
                if not distributions & (requirements() | {"pared"}) and name not in ("service", "worker", "migrations"):
                    missing[name] = str(path.relative_to(ROOT))
    assert missing == {}


def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    assert all(f"make {name} " in done.stdout for name in targets[1].split())
