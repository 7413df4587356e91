"""The command that runs a job spec from a file: on the server, or here with the library alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
import typer

from pared.cli.downloads import check_writable, formats_of, is_folder
from pared.cli.exits import INCOMPLETE, MISSED, USAGE, needs_extras
from pared.cli.jobs import submit_and_follow
from pared.cli.missed_goals import told_of_missed_goal
from pared.cli.parsers import model_upload, readable, upload
from pared.cli.rendering import err, list_files, out, print_json, say
from pared.cli.shared_options import AsJson, Quiet
from pared.cli.uploads import stored
from pared.client import Client, Report
from pared.job_types import BY_NAME, LISTED
from pared.specs import BUILTIN_DATASETS, JobSpec, Reference

LISTED_NAMES = tuple(each.name for each in LISTED)


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
    quiet: Quiet = False,
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


def _named(spec: dict[str, Any]) -> list[Reference]:
    """The models and data that a spec names by path or id; none where only the server knows the type of job."""
    job_type = BY_NAME.get(str(spec.get("type")))
    return [] if job_type is None else job_type.references(spec)


def _files(spec: dict[str, Any]) -> dict[str, str]:
    """The paths and ids of models and data that a spec names, by what they are to the job.

    Raises:
        BadParameter: a path leads to no file that can be read.
    """
    files = {}
    for each in _named(spec):
        try:
            files[each.role] = (model_upload if each.kind == "model" else upload)(each.id)
        except typer.BadParameter as error:
            raise typer.BadParameter(f"{each.role}: {error}") from None
    return files


def _holder(spec: dict[str, Any], pointer: str) -> tuple[Any, str]:
    """What holds the value at a JSON pointer, and the value's name or number there."""
    *steps, last = pointer.removeprefix("/").split("/")
    holder: Any = spec
    for step in steps:
        holder = holder[int(step)] if isinstance(holder, list) else holder[step]
    return holder, last


def _put(spec: dict[str, Any], pointer: str, value: str) -> None:
    holder, last = _holder(spec, pointer)
    holder[int(last) if isinstance(holder, list) else last] = value


def _run_on_the_server(spec: dict[str, Any], output: list[Path], *, as_json: bool) -> None:
    formats = formats_of([path for path in output if not is_folder(path)])
    if formats and spec.get("outputs") is None:
        spec["outputs"] = formats
    asked = spec.get("outputs")
    missing = [name for name in formats if isinstance(asked, list) and name not in asked]
    if missing:
        raise typer.BadParameter(f"the spec does not ask for {missing[0]}: add it to `outputs`", param_hint="-o")
    check_writable(output)
    named, files = _named(spec), _files(spec)  # each file is looked for before any is sent
    with Client() as client:
        for each in named:
            if not files[each.role].startswith("builtin:"):
                uploads = client.models if each.kind == "model" else client.datasets
                holder, name = _holder(spec, each.pointer)
                beside = holder if isinstance(holder, dict) else {}
                architecture = beside.get("architecture" if name == "model" else f"{name}_architecture")
                _put(spec, each.pointer, stored(uploads, files[each.role], err, architecture).id)
        submit_and_follow(client, spec, output, as_json=as_json)


def _run_here(spec: dict[str, Any], output: list[Path], *, debug: bool, as_json: bool) -> None:
    if len(output) != 1 or not is_folder(output[0]):
        raise typer.BadParameter("with --here, name the one folder for all files of the job", param_hint="-o")
    (folder,) = output
    check_writable(output)
    if spec.get("type") not in LISTED_NAMES:
        raise typer.BadParameter(f"`type` is {spec.get('type')!r}, and must be one of {', '.join(LISTED_NAMES)}")
    files = _files(spec)
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
    failed_outputs = report.failed_outputs if isinstance(report, Report) else []
    for failed in failed_outputs:
        say(f"{failed.format} was not written: {failed.detail}")
    missed = told_of_missed_goal(report)
    if missed:
        say(missed)
    if missed or failed_outputs:
        raise typer.Exit(MISSED if missed else INCOMPLETE)


def _checked(spec: dict[str, Any], files: Mapping[str, str]) -> JobSpec:
    """The spec, with ids of the right form in place of paths."""
    spec = copy.deepcopy(spec)
    for each in _named(spec):
        if files[each.role] not in BUILTIN_DATASETS:
            _put(spec, each.pointer, _placeholder(each))
    try:
        return BY_NAME[spec["type"]].spec.model_validate(spec)
    except pydantic.ValidationError as error:
        for wrong in error.errors():
            say(f"/{'/'.join(map(str, wrong['loc']))}: {wrong['msg']}")
        raise typer.Exit(USAGE) from None


def _placeholder(named: Reference) -> str:
    letters = "".join(each for each in named.role if each.isalnum())[:26]
    return f"{'mdl' if named.kind == 'model' else 'dst'}_{letters.ljust(26, '0')}"
