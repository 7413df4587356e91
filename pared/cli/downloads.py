"""Where results go: the formats that endings name, checks of `-o` before a job begins, and downloads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import typer

from pared.cli.exits import INCOMPLETE, MISSED
from pared.cli.missed_goals import told_of_missed_goal
from pared.cli.rendering import list_files, out, print_json, say
from pared.client import Client, Job

FORMATS = {
    ".pt": "torchscript",
    ".safetensors": "state_dict",
    ".pt2": "exported_program",
    ".onnx": "onnx",
    ".packed": "packed",
    ".ckpt": "checkpoint",
    ".pth": "checkpoint",
    ".tar": "checkpoint",
    ".zip": "huggingface",
}
ARCHITECTURE = "architecture.json"


def formats_of(files: Sequence[Path]) -> list[str]:
    """The formats that the endings of files name, each once.

    Raises:
        BadParameter: an ending names no format.
    """
    unknown = [path.name for path in files if path.suffix not in FORMATS]
    if unknown:
        raise typer.BadParameter(f"the ending of {unknown[0]} names no format; use {', '.join(FORMATS)}")
    return list(dict.fromkeys(FORMATS[path.suffix] for path in files))


def check_writable(paths: Sequence[Path]) -> None:
    """Check before a job, not after hours of it, that files or folders can be written; what is missing will be made.

    Raises:
        BadParameter: one cannot be written.
    """
    for path in paths:
        folder = path if path.is_dir() else next(parent for parent in path.absolute().parents if parent.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise typer.BadParameter(f"{path} cannot be written: {folder} is no folder that you may write to")


def is_folder(path: Path) -> bool:
    """Whether a path given with `-o` is a folder, there already or to be made, and not a file."""
    return path.is_dir() or not path.suffix


def hand_over(job: Job, client: Client, output: list[Path] | None, *, as_json: bool) -> None:
    """Download what was asked for, and print the report of a job that succeeded.

    With its goal missed, exit with 3; else, with a format missing, with 4.
    """
    files = download(job, output or [])
    report = job.report()
    if as_json:
        dumped = {"job": job.model_dump(mode="json"), "report": report.model_dump(mode="json")}
        print_json({**dumped, "files": [str(file) for file in files]})
    else:
        out.print(report)
        list_files(files)
        if not files:
            out.print(f"The result is on the server: {client.url}{job.links.get('artifacts', '')}")
    missed = told_of_missed_goal(report, None if files else job.id)
    if missed:
        say(missed)
    exit_if_incomplete(job, output or [], missed=bool(missed))


def download(job: Job, output: Sequence[Path]) -> list[Path]:
    """Download a job's model to each file, in the format of its ending, and everything that it made to each folder.

    Returns:
        The files that were written. A format that the job could not write is left out.
    """
    missing = {failed.format for failed in job.failed_outputs}
    folders = [path for path in output if is_folder(path)]
    paths = [path for path in output if path not in folders]
    files = [job.download(path) for path in paths if FORMATS.get(path.suffix) not in missing]
    artifacts = [artifact.name for artifact in job.artifacts()]
    if ARCHITECTURE in artifacts:
        # Pruned weights are of use only with the architecture that they now have.
        weights = [file for file in files if file.suffix == ".safetensors"]
        files += [job.download(file.with_suffix(".architecture.json"), name=ARCHITECTURE) for file in weights]
    for folder in folders:
        files += [job.download(folder / name, name=name) for name in artifacts]
    return files


def exit_if_incomplete(job: Job, output: Sequence[Path], *, missed: bool = False) -> None:
    """Exit with 4, and say why, where a job that succeeded could not write each of its formats.

    Args:
        missed: whether it missed its goal: then exit with 3.
    """
    for failed in job.failed_outputs:
        path = next((path for path in output if FORMATS.get(path.suffix) == failed.format), failed.format)
        say(f"{path} was not written: {failed.detail}")
    if missed or job.failed_outputs:
        raise typer.Exit(MISSED if missed else INCOMPLETE)
