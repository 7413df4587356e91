from __future__ import annotations

import ast
import hashlib
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
from tests.support.stack import Stack

ROOT = Path(__file__).parents[2]
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


def test_the_compose_file_has_every_service_and_the_gpu_by_choice() -> None:
    assert set(COMPOSE["services"]) == {"api", "worker", "worker-gpu", "migrate", "postgres", "redis"}
    assert COMPOSE["services"]["worker-gpu"]["profiles"] == ["gpu"]
    assert {service["build"]["target"] for service in OURS.values()} == {"service", "worker", "worker-gpu"}


def test_containers_run_the_commands_that_the_end_to_end_tests_run(embedded: Stack) -> None:
    tested = {
        "api": embedded.api.command,
        "worker": embedded.workers[0].command,
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


def test_the_compose_file_has_no_key_that_docker_compose_1_refuses() -> None:
    """Debian's package, which needs no engine, is of version 1: it knows `x-…` and these, and no `name`."""
    known = {"services", "volumes", "networks", "secrets", "configs"}
    assert {key for key in COMPOSE if not key.startswith("x-")} <= known


def test_docker_compose_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    env = {"POSTGRES_PASSWORD": "x", "PATH": str(Path(docker).parent)}
    subprocess.run([docker, "compose", "--profile", "gpu", "config", "--quiet"], cwd=ROOT, env=env, check=True)


def manifests() -> list[dict[str, Any]]:
    folder = ROOT / "deploy" / "kubernetes"
    return [each for path in sorted(folder.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]


def test_kubernetes_runs_the_images_commands_and_settings_of_the_compose_file() -> None:
    deployments = [each for each in manifests() if each["kind"] == "Deployment"]
    pods = {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in deployments}
    assert set(pods) == {"pared-api", "pared-worker", "pared-worker-gpu"}
    (shared,) = (each["data"] for each in manifests() if each["kind"] == "ConfigMap")
    assert {name.removeprefix("PARED_").lower() for name in shared} <= set(Settings.model_fields)
    for name, pod in pods.items():
        compose = OURS[name.removeprefix("pared-")]
        (container,) = pod["containers"]
        assert (container["image"], container["args"]) == (compose["image"], compose["command"])
        own = {each["name"]: each["value"] for each in container.get("env", [])}
        assert own.items() <= compose["environment"].items()
        assert pod["securityContext"]["runAsUser"] == 10001
        for each in [container, *pod.get("initContainers", [])]:
            assert each["securityContext"]["capabilities"] == {"drop": compose["cap_drop"]}
            mounted = {mount["name"]: mount["mountPath"] for mount in each["volumeMounts"]}
            assert mounted == {"objects": "/objects", "data": "/data", "tmp": "/tmp"}
            assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    (migrate,) = pods["pared-api"]["initContainers"]
    assert (migrate["image"], migrate["args"]) == (OURS["migrate"]["image"], OURS["migrate"]["command"])


def test_kubernetes_finds_what_each_manifest_names() -> None:
    named = {(each["kind"], each["metadata"]["name"]) for each in manifests() if "metadata" in each}
    for each in manifests():
        if each["kind"] == "Kustomization":
            listed = set(each["resources"])
            images = {image["name"] for image in each["images"]}
        if each["kind"] == "ScaledObject":
            assert ("Deployment", each["spec"]["scaleTargetRef"]["name"]) in named
        if each["kind"] in ("Service", "PodDisruptionBudget"):
            wanted = each["spec"]["selector"]
            labels = wanted.get("matchLabels", wanted)
            assert any(
                labels.items() <= pod["spec"]["template"]["metadata"]["labels"].items()
                for pod in manifests()
                if pod["kind"] == "Deployment"
            )
    assert ("PersistentVolumeClaim", "pared-objects") in named
    assert images == {service["image"] for service in OURS.values()}
    files = {path.name for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert files - listed == {"worker-gpu.yaml", "autoscaling.yaml"}  # by choice


def test_the_image_that_builds_the_wheel_is_given_every_file_that_the_metadata_names() -> None:
    copied = {
        word for instruction, arguments in stages()["wheel"] if instruction == "COPY" for word in arguments.split()
    }
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    assert {PROJECT["readme"], *PROJECT["license-files"]} <= copied
    assert {PROJECT["readme"], *PROJECT["license-files"]} <= sent


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
    provided_by, required = packages_distributions(), requirements() | {"pared"}
    missing: dict[str, str] = {}
    for path in [path for top in ("pared", "service", "worker", "migrations") for path in (ROOT / top).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
                distributions = {canonical(found) for found in provided_by.get(name, [name])}
                if not distributions & required and name not in ("service", "worker", "migrations"):
                    missing[name] = str(path.relative_to(ROOT))
    assert missing == {}


def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f"make {name} " in done.stdout for name in targets())


# -- make, continuous integration and pages --------------------------------------------------------


def planned(*arguments: str) -> str:
    """What make would run, as if nothing were set up."""
    command = ["make", "--dry-run", "--always-make", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def targets() -> set[str]:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    return set(phony[1].split())


def test_make_fix_mends_before_it_formats_and_says_what_is_left() -> None:
    steps = re.findall(r"ruff (check --fix|format|check)(?: |$)", planned("fix"))
    assert steps == ["check --fix", "format", "check"]


def test_make_lint_checks_what_containers_are_made_from() -> None:
    plan = planned("lint")
    assert "--profile gpu config --quiet" in plan
    assert "hadolint Dockerfile" in plan


def test_every_install_of_make_looks_into_the_index_that_it_was_given() -> None:
    for target in ("test-torch", "bench-torch-pruning"):  # the second sets up what all others need, too
        for index in ("", "file:///an/index"):
            plan = planned(target, f"TORCH_INDEX={index}")
            installs = [line for line in plan.splitlines() if " pip install " in line]
            assert installs, target
            assert all((f"--extra-index-url '{index}'" in line) == bool(index) for line in installs), target
            assert index or not any("index-url" in line for line in installs), target


def test_continuous_integration_runs_targets_of_make_with_exact_actions() -> None:
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    matrix = job["strategy"]["matrix"]
    assert {"lint", "unit", "test"} <= set(matrix["target"]) <= targets()
    assert {"3.11", "3.13"} <= set(matrix["python"])
    commands = [step.get("run", "") for step in job["steps"]]
    assert any(command.startswith("make ${{ matrix.target }} ") for command in commands)
    assert commands[-1] == "tests/first_change.sh"
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert actions
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in actions)


def test_the_first_change_of_the_contributing_page_is_of_a_text_that_tests_hold() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## A first change")[1].split("\n## ")[0]
    block = re.search(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert block
    old, new = re.findall(r"s/([^/]+)/([^/]+)/", block[1])[0]
    for folder in ("pared", "tests"):
        sources = [path.read_text() for path in (ROOT / folder).rglob("*.py")]
        assert any(old in source for source in sources), folder
        assert not any(new in source for source in sources), folder


def test_hooks_are_targets_of_make_and_fetch_nothing() -> None:
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            make, target = hook["entry"].split()
            assert (make, hook["language"]) == ("make", "system")
            assert target in targets()


def test_the_licence_is_in_the_metadata_and_whole() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert hashlib.md5((ROOT / "LICENSE").read_bytes()).hexdigest() == "3b83ef96387f14655fc854ddc3c6bd57"


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def anchors(page: Path) -> set[str]:
    """The names that headings of a page get on the web."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


FILES = {str(path.relative_to(ROOT)) for path in ROOT.glob("*") if path.is_file()} | {
    str(path.relative_to(ROOT))
    for folder in ("pared", "service", "worker", "migrations", "tests", "benchmarks", "docs", "examples", ".github")
    for path in (ROOT / folder).rglob("*")
    if "__pycache__" not in path.parts
}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_source_files_that_a_page_names_exist(page: Path) -> None:
    """Whole paths, or as much of their end as tells which file is meant. What a reader is to write is not there yet."""
    named = re.findall(r"(?<!Write )`([\w./-]+\.(?:py|sh|md))`", page.read_text())
    assert [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in FILES)] == []


@pytest.mark.parametrize("name", ["architecture", "glossary"])
def test_every_path_on_the_pages_about_the_code_exists(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text()
    named = set(re.findall(r"(?<![\w./-])(?:pared|service|worker|migrations)/[\w./-]*\w/?", text))
    assert len(named) > 20
    assert {path for path in named if path.rstrip("/") not in FILES} == set()


def test_the_page_on_architecture_names_every_package() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    packages = {
        str(path.parent.relative_to(ROOT))
        for top in ("pared", "service", "worker")
        for path in (ROOT / top).rglob("__init__.py")
    } - {"pared", "pared/examples", "pared/compression"}
    assert {package for package in packages if f"{package}/" not in text} == set()


def decisions() -> list[Path]:
    return sorted(page for page in (ROOT / "docs/decisions").glob("0*.md") if page.name != "0000-template.md")


@pytest.mark.parametrize("page", decisions(), ids=lambda page: page.stem)
def test_pages_on_decisions_have_the_form_of_the_template_and_a_date(page: Path) -> None:
    def parts(text: str) -> list[str]:
        return [part for part in re.findall(r"^\*\*(.+?)\.\*\*", text, re.MULTILINE) if part in expected]

    expected = ["To decide", "Chosen", "Why", "Cost"]
    text = page.read_text()
    assert re.match(rf"# {page.name[:4]}: [^\n]+\n\nDate: \d{{4}}-\d\d-\d\d\n", text)
    assert parts(text) == parts((page.parent / "0000-template.md").read_text()) == expected
    assert f"]({page.name})" in (page.parent / "README.md").read_text()


def test_numbers_of_decisions_are_used_once() -> None:
    numbers = [page.name[:4] for page in decisions()]
    assert len(numbers) == len(set(numbers))


def test_settings_that_pages_name_exist() -> None:
    ours = {f"PARED_{name.upper()}" for name in Settings.model_fields}
    # Of the client, the compose file, the tests and the benchmarks.
    others = {"PARED_URL", "PARED_API_KEY", "PARED_PUBLISH_PORT", "PARED_TEST_DEVICE", "PARED_MNIST"}
    others |= {"PARED_CAMPAIGN_MINUTES"}
    for page in pages():
        assert set(re.findall(r"PARED_[A-Z_]+[A-Z]", page.read_text())) <= ours | others, page


def test_make_targets_that_pages_name_exist() -> None:
    for page in [*ROOT.glob("*.md"), ROOT / "docs/operations.md"]:
        named = re.findall(r"(?:^|`)make ([a-z][a-z-]*[a-z])(?=[ `]|$)", page.read_text(), re.MULTILINE)
        assert set(named) <= targets(), page


def test_the_page_on_operations_names_every_event_that_processes_log() -> None:
    call = re.compile(r"\blog\.(?:info|warning|error|exception)\(\s*\"(\w+)\"")
    sources = [path for top in ("pared", "service", "worker") for path in (ROOT / top).rglob("*.py")]
    logged = {event for path in sources for event in call.findall(path.read_text())} | {"serving"}
    assert "request" in logged
    text = (ROOT / "docs/operations.md").read_text()
    assert {event for event in logged if f"`{event}`" not in text} == set()
