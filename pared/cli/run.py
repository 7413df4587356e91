"""The command that runs a job spec from a file: on the server, or here with the library alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import typer

from pared.cli.downloads import check_writable, formats_of, is_folder
from pared.cli.exits import INCOMPLETE, USAGE, needs_extras
from pared.cli.jobs import submit_and_follow
from pared.cli.options import AsJson
from pared.cli.parsers import readable, upload
from pared.cli.rendering import err, list_files, out, print_json, say
from pared.cli.uploads import stored
from pared.client import Client
from pared.specs import BUILTIN_DATASETS, DistillSpec, PruneSpec, compression_spec


class UploadField(NamedTuple):
    """A field of a spec that names an upload."""

    name: str
    kind: Literal["models", "datasets"]
    architecture: str | None = None
    """The field with the architecture of a state dict."""


UPLOAD_FIELDS = (
    UploadField("model", "models", "architecture"),
    UploadField("teacher", "models", "teacher_architecture"),
    UploadField("student", "models", "student_architecture"),
    UploadField("dataset", "datasets"),
)


def run(
    spec_file: Annotated[
        Path,
        typer.Argument(
            parser=readable,
            metavar="SPEC",
            help="A job spec as JSON, whose models and data are paths of files, seen from here, or ids of uploads.",
        ),
    ],
    here: Annotated[
        bool,
        typer.Option(
            "--here",
            help="Run it in this process, without server, sandbox and time limit: only with files that you trust.",
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--pdb", help="--here: enter Python's debugger where the job fails.")] = False,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            help="A folder for all files of the job (with --here, no file), or a file for the model in the format of "
            "its ending.",
            show_default="it stays on the server",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the job in a spec file: upload its files, post it and follow it; or run it here, to debug it."""
    spec = _read(spec_file)
    if here:
        _run_here(spec, output or [], debug=debug, as_json=as_json)
    elif debug:
        raise typer.BadParameter("the debugger needs the job in this process: give --here, too", param_hint="--pdb")
    else:
        _run_on_the_server(spec, output or [], as_json=as_json)


def _read(path: Path) -> dict[str, Any]:
    try:
        spec = json.loads(path.read_text())
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}") from None
    if not isinstance(spec, dict):
        raise typer.BadParameter(f'{path} is not a spec, which is an object, such as {{"type": "prune", …}}')
    return spec


def _files(spec: dict[str, Any]) -> Iterator[tuple[UploadField, str]]:
    """The fields of a spec that name models and data, with the path or the id in each.

    Raises:
        BadParameter: a path leads to no file that can be read.
    """
    for field in UPLOAD_FIELDS:
        if isinstance(spec.get(field.name), str):
            try:
                yield field, upload(spec[field.name])
            except typer.BadParameter as error:
                raise typer.BadParameter(f"{field.name}: {error}") from None


def _run_on_the_server(spec: dict[str, Any], output: list[Path], *, as_json: bool) -> None:
    formats = formats_of([path for path in output if not is_folder(path)])
    if formats and spec.get("outputs") is None:
        spec["outputs"] = formats
    missing = [name for name in formats if name not in spec["outputs"]]
    if missing:
        raise typer.BadParameter(f"the spec does not ask for {missing[0]}: add it to `outputs`", param_hint="-o")
    check_writable(output)
    files = list(_files(spec))  # each is looked for before any is sent
    with Client() as client:
        for field, path in files:
            if not path.startswith("builtin:"):
                uploads = client.models if field.kind == "models" else client.datasets
                architecture = None if field.architecture is None else spec.get(field.architecture)
                spec[field.name] = stored(uploads, path, err, architecture).id
        submit_and_follow(client, spec, output, as_json=as_json)


def _run_here(spec: dict[str, Any], output: list[Path], *, debug: bool, as_json: bool) -> None:
    if len(output) != 1 or not is_folder(output[0]):
        raise typer.BadParameter("with --here, name the one folder for all files of the job", param_hint="-o")
    (folder,) = output
    check_writable(output)
    files = {field.name: path for field, path in _files(spec)}
    for name, path in files.items():
        if path.startswith(("mdl_", "dst_")):
            raise typer.BadParameter(f"{name}: {path} is an upload on a server, and --here asks none: name a file")
        if path.startswith("builtin:") and path not in BUILTIN_DATASETS:
            raise typer.BadParameter(f"{name}: there is no {path}, only {', '.join(BUILTIN_DATASETS)}")
    checked = _checked(spec, files)
    with needs_extras("worker"):
        from pared.cli import run_here
    report, written = run_here.run(checked, files, folder, debug=debug, quiet=as_json)
    if as_json:
        print_json({"report": report.model_dump(mode="json"), "files": [str(file) for file in written]})
    else:
        out.print(report)
        list_files(written)
    for failed in report.failed_outputs:
        say(f"{failed.format} was not written: {failed.detail}")
    if report.failed_outputs:
        raise typer.Exit(INCOMPLETE)


def _checked(spec: dict[str, Any], files: Mapping[str, str]) -> PruneSpec | DistillSpec:
    """The spec; an id that its form demands stands for each file."""
    named = {name: _placeholder(name, path) for name, path in files.items()}
    try:
        return compression_spec.validate_python({**spec, **named})
    except pydantic.ValidationError as error:
        for each in error.errors():
            pointer = "/".join(map(str, each["loc"][1:]))  # the first place is the type of the job
            say(f"/{pointer}: {each['msg']}")
        raise typer.Exit(USAGE) from None


def _placeholder(field: str, path: str) -> str:
    if path in BUILTIN_DATASETS:
        return path
    return f"{'dst' if field == 'dataset' else 'mdl'}_{field.ljust(26, '0')}"
