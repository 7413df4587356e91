"""What pages say to type is held against the code: commands parse, requests have routes, specs are valid, names exist.

The README, the tutorial and the page about Python are run as they stand by `tests/e2e/test_readme.py`.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Match
from typer import Exit
from typer._click.exceptions import BadOptionUsage, MissingParameter
from typer.main import get_command

from pared.cli.app import app
from pared.error_help import error_help
from pared.job_types import LISTED, listed_spec
from pared.specs.uploads import EXAMPLE_DATASET_ID, EXAMPLE_MODEL_ID
from pared.state.session import migrate
from pared.state.settings import Settings
from service.app import create_app

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PARED = get_command(app)
SENTENCES = (DOCS.parent / "README.md", DOCS.parent / "SECURITY.md", DOCS.parent / "pared/error_help.md")
PAGES = {page: BLOCK.findall(page.read_text()) for page in sorted(DOCS.rglob("*.md"))}


def blocks(*languages: str) -> list[Any]:
    """Each block of these languages, named by its page."""
    found = [
        (f"{page.stem}-{at}", text)
        for page, those in PAGES.items()
        for at, (language, text) in enumerate(those)
        if language in languages
    ]
    return [pytest.param(text, id=name) for name, text in found]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of pared in a block."""
    for line in text.replace("\\\n", " ").splitlines():
        found = re.match(r"(?:\$ |[A-Z_]+=\$\(|[A-Z_]+=\S+ )*(pared .*)", line)
        if found:
            yield shlex.split(re.split(r" && | \| |\)$", found[1])[0], comments=True)


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    migrate(settings)
    return create_app(settings).routes


def test_only_known_languages_are_named() -> None:
    assert {language for those in PAGES.values() for language, _ in those} == {
        "", "bash", "console", "js", "json", "python", "text",
    }  # fmt: skip


@pytest.mark.parametrize("text", blocks("bash", "console"))
def test_commands_parse(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands(text):
        make_files(words)
        parse(PARED, words)


def make_files(words: list[str]) -> None:
    """The files that a command would upload: they must be there."""
    for word in words:
        if re.fullmatch(r"[\w-]+\.[\w.]+", word):
            Path(word).write_text("{}")
        elif re.fullmatch(r"\./[\w-]+/", word):
            Path(word).mkdir(exist_ok=True)
            Path(word, "config.json").write_text("{}")


def parse(command: Any, words: list[str]) -> None:
    """Read the words as the command would, down to the last one of its subcommands; wrong usage raises."""
    name, *rest = words
    if hasattr(command, "commands"):
        if rest:  # a sentence may name all of them at once
            parse(command.commands[rest[0]], rest)
    else:
        command.make_context(name, rest)


@pytest.mark.parametrize("page", [*sorted(DOCS.glob("*.md")), *SENTENCES], ids=lambda page: page.stem)
def test_commands_in_sentences_are_known(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence may leave out what a command needs, but names no option or subcommand that there is not."""
    monkeypatch.chdir(tmp_path)
    sentences = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for command in re.findall(r"`(pared [a-z][^`…]*)`", sentences):
        words = shlex.split(command, comments=True)
        make_files(words)
        with suppress(BadOptionUsage, MissingParameter, Exit):
            parse(PARED, words)


@pytest.mark.parametrize("text", blocks("bash", "console"))
def test_requests_have_routes(text: str, routes: Any) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        for path in re.findall(r"curl .*?(?:\$S|://[^/ ]+)(/[^?\"' ]*)", line):
            posts = re.search(r" (-X POST|-d) ", line)
            scope = {"type": "http", "path": path, "method": "POST" if posts else "GET"}
            assert any(route.matches(scope)[0] is Match.FULL for route in routes), line


@pytest.mark.parametrize("text", blocks("json"))
def test_specs_are_valid(text: str) -> None:
    value = json.loads(text.replace("mdl_…", EXAMPLE_MODEL_ID).replace("dst_…", EXAMPLE_DATASET_ID))
    if "kind" in value:  # one term of a loss
        loss = {"kind": "combined", "terms": [value]}
        value = {"type": "distill", "student": {"from_teacher": {"width": 0.5}}, "loss": loss}
    if "type" not in value:  # fields of any job
        value |= {"type": "prune", "model": EXAMPLE_MODEL_ID, "amount": 0.5}
    if value["type"] == "distill":
        value.setdefault("teacher", EXAMPLE_MODEL_ID)
    listed_spec.validate_python(value | {"dataset": EXAMPLE_DATASET_ID})


@pytest.mark.parametrize(
    "text", [each for each in blocks("python") if not each.id.startswith(("python-api", "tutorial"))]
)
def test_what_python_imports_exists(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_pages_made_from_the_code_have_all_of_it() -> None:
    source = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(source)
    source.loader.exec_module(generate)
    pages = generate.pages()
    assert {path for path in pages if path.startswith("problems/")} == {
        f"problems/{name}.md" for name in [*error_help(), "index"]
    }
    assert all(f"`PARED_{name.upper()}`" in pages["reference/settings.md"] for name in Settings.model_fields)
    assert all(f"\n## pared {name}\n" in pages["reference/cli.md"] for name in PARED.commands)
    assert all(f"`{name}`" in pages["reference/specs.md"] for each in LISTED for name in each.spec.model_fields)
    assert "`POST /v1/jobs`" in pages["reference/http.md"]
