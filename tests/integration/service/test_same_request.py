"""What the form of a new job shows beside it posts the very spec that the form does: run, not read."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pared.job_types import listed_spec
from service.job_specs import shortest
from service.pages.command_lines import command_line
from service.pages.snippets import snippets_of
from tests.integration.service.conftest import Api, serving
from tests.support.campaign import each_nth
from tests.support.forks import run_pared
from tests.support.processes import meanwhile
from tests.support.specs_of_all_kinds import EXAMPLE_DATASET_ID, EXAMPLE_MODEL_ID, OF_ALL_KINDS

NEEDS_NO_GPU = [name for name, spec in OF_ALL_KINDS.items() if spec.get("device") != "cuda"]
BY_OPTIONS = [
    name
    for name in NEEDS_NO_GPU
    if "spec.json" not in command_line(shortest(listed_spec.validate_python(OF_ALL_KINDS[name])))
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("api"), max_waiting_jobs=0) as api:
        yield api


@pytest.fixture(scope="module")
def uploads(api: Api) -> dict[str, str]:
    """The ids in examples -> those of uploads that are there."""
    model, data = api.upload()["id"], api.upload(b"data", "d.npz", "datasets")["id"]
    for each in (model, data):
        api.inspected(each)
    return {EXAMPLE_MODEL_ID: model, EXAMPLE_DATASET_ID: data}


@pytest.fixture
def snippets(api: Api, uploads: dict[str, str], name: str) -> dict[str, str]:
    return {each.name: each.text for each in snippets_of(spec_called(name, uploads), url(api), with_key=False)}


def url(api: Api) -> str:
    return str(api.base_url).rstrip("/")


def spec_called(name: str, uploads: dict[str, str]) -> Any:
    text = json.dumps(OF_ALL_KINDS[name])
    for example, there in uploads.items():
        text = text.replace(example, there)
    return listed_spec.validate_json(text)


def newest(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = api.get("/v1/jobs", params={"limit": 1}).json()["data"][0]
    return found


@contextlib.contextmanager
def nothing_goes_on(api: Api) -> Iterator[None]:
    """Jobs are canceled as they come, so that a command that follows its own one ends."""

    def cancel() -> None:
        for job in api.get("/v1/jobs", params={"status": "queued"}).json()["data"]:
            api.post(f"/v1/jobs/{job['id']}/cancel")

    with meanwhile(cancel, every_s=0.1):
        yield


@pytest.mark.parametrize("name", each_nth(NEEDS_NO_GPU, 4))
def test_the_python_code_posts_the_spec(api: Api, uploads: dict[str, str], snippets: dict[str, str], name: str):
    found: dict[str, Any] = {}
    exec(snippets["Python"], found)
    assert newest(api)["id"] == found["job"].id
    assert newest(api)["spec"] == spec_called(name, uploads).model_dump(mode="json")


@pytest.mark.parametrize("name", each_nth([*BY_OPTIONS, "pipeline: assistant"], 4))
def test_the_command_posts_the_spec(
    api: Api, uploads: dict[str, str], snippets: dict[str, str], name: str, tmp_path: Path
):
    exported, _, rest = snippets["Command line"].partition("\n")
    assert exported == f"export PARED_URL={url(api)}"
    written = re.fullmatch(r"cat > spec.json <<'JSON'\n(.*)\nJSON\n(pared run spec.json)", rest, re.DOTALL)
    if written:
        (tmp_path / "spec.json").write_text(written[1])
    arguments = shlex.split(written[2] if written else rest.replace(" \\\n  ", " "))[1:]
    before = api.get("/v1/jobs").json()["data"][:1]
    with nothing_goes_on(api):
        done = run_pared(arguments, cwd=tmp_path, env={**os.environ, "PARED_URL": url(api)})
    assert done.returncode == 1, done.stderr  # it was canceled
    assert [newest(api)] != before
    assert newest(api)["spec"] == spec_called(name, uploads).model_dump(mode="json")


@pytest.mark.parametrize("name", ["hostile names", "chosen with epochs"])
@pytest.mark.parametrize("way", ["curl", "Command line"])
def test_a_shell_runs_it(
    api: Api, uploads: dict[str, str], snippets: dict[str, str], name: str, way: str, tmp_path: Path
):
    if way == "curl" and shutil.which("curl") is None:
        pytest.skip("no curl")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    before = api.get("/v1/jobs").json()["data"][:1]
    with nothing_goes_on(api):
        subprocess.run(
            ["bash", "-c", snippets[way]], cwd=tmp_path, env={**os.environ, "PATH": path}, check=False, timeout=120
        )
    assert [newest(api)] != before
    assert newest(api)["spec"] == spec_called(name, uploads).model_dump(mode="json")


def test_what_a_command_has_options_for_needs_no_file():
    usual = {"prune: goal", "distill: distill", "quantize: quantize", "chosen for bytes", "packed", "adam taught"}
    assert usual <= set(BY_OPTIONS)
