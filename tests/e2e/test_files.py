"""Model files as people hold them, over HTTP: from the upload to results that load without pared, or to a true refusal.

`make files` prints the table.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import files
from tests.support.campaign import each_nth
from tests.support.files.base import HeldFile
from tests.support.stack import Stack

PARTS = [name for _, name, _ in pkgutil.iter_modules(files.__path__) if name != "base"]
ROWS: dict[str, HeldFile] = {
    row.name: row for part in PARTS for row in importlib.import_module(f"tests.support.files.{part}").ROWS
}
TRIED = "test_a_file_ends_in_results_that_load_or_is_refused_for_its_true_reason"
TRIED_OF = 8  # rows, one in every run
LOADABLE = {".pt", ".pt2", ".onnx", ".safetensors", ".zip", ".pth", ".ckpt"}


@pytest.fixture(scope="module")
def loading() -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Loads a file in a process that cannot import this project."""
    script = Path(files.__file__).parents[1] / "load_file.py"
    process = subprocess.Popen(
        [sys.executable, "-I", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def load(path: Path) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        reply: dict[str, Any] = json.loads(process.stdout.readline())
        assert "error" not in reply, f"{path.name}: {reply['error']}"
        return reply

    yield load
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def posted(
    request: pytest.FixtureRequest, embedded: Stack, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[httpx.Response]]:
    """What the service answers to each row's upload and to its job, posted up front so that the worker is busy."""
    answers = {}
    tried = [item.callspec.params["name"] for item in request.session.items if item.originalname == TRIED]
    for number, name in enumerate(tried):
        row = ROWS[name]
        path = uploaded(row.write(tmp_path_factory.mktemp(f"file{number}")))
        query = {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.upload.items()}
        answers[name] = [embedded.post_model(path.read_bytes(), path.name, **query)]
        if answers[name][0].is_success:
            spec = {"type": "prune", "model": answers[name][0].json()["id"]} | dict(row.spec)
            answers[name].append(embedded.http.post("/v1/jobs", json=spec))
    return answers


def uploaded(path: Path) -> Path:
    """What a client sends: a folder goes as a zip."""
    if not path.is_dir():
        return path
    archive = path.with_name(f"{path.name}.zip")
    with zipfile.ZipFile(archive, "w") as content:
        for file in sorted(path.rglob("*")):
            content.write(file, file.relative_to(path))
    return archive


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """A line for each row, printed by the last test."""
    return []


@pytest.mark.parametrize("name", each_nth(ROWS, TRIED_OF))
def test_a_file_ends_in_results_that_load_or_is_refused_for_its_true_reason(
    name: str,
    embedded: Stack,
    posted: dict[str, list[httpx.Response]],
    loading: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    lines: list[str],
) -> None:
    row = ROWS[name]
    problem = refusal(embedded, posted[name])
    if row.refused is not None:
        assert problem is not None, f"{name} was accepted"
        assert row.refused in problem
        lines.append(f"{name:<70} refused: {problem[:90]}")
        return
    assert problem is None, problem
    job = posted[name][1].json()["id"]
    report, results = embedded.report(job), {}
    for artifact in embedded.artifacts(job):
        results[artifact["name"]] = tmp_path / artifact["name"]
        results[artifact["name"]].write_bytes(embedded.download(job, artifact["name"]))
    loaded = {each: loading(path) for each, path in results.items() if path.suffix in LOADABLE}
    assert loaded, f"no result among {list(results)}"
    for each, told in loaded.items():
        assert told["parameters"] in {None, report["after"]["parameters"]}, each
    if row.check is not None:
        row.check(results)
    lines.append(f"{name:<70} {', '.join(loaded)}")


def refusal(stack: Stack, answers: Sequence[httpx.Response]) -> str | None:
    """Why an upload or its job came to nothing; None: the job succeeded."""
    for answer in answers:
        if not answer.is_success:
            return answer.text
    model = stack.inspected(answers[0].json()["id"])
    if model["status"] != "ready":
        return str(model["reason"]["detail"])
    job = stack.ended(answers[1].json()["id"])
    return None if job["status"] == "succeeded" else str(job["error"]["detail"])


def test_every_row_is_told(lines: list[str]) -> None:
    print("\n" + "\n".join(sorted(lines)))
    assert len(lines) >= len(ROWS) / TRIED_OF
    assert len(ROWS) >= 60
