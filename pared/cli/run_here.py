"""Runs a job in this process with the library alone, and enters the debugger where it fails."""

from __future__ import annotations

import pdb  # noqa: T100 - what `--pdb` is for
import traceback
from collections.abc import Mapping
from pathlib import Path

import typer
from pydantic import BaseModel

from pared.cli.exits import FAILED
from pared.cli.rendering import err
from pared.client import Report
from pared.compression import SilentObserver, run_spec
from pared.reports import Report as PlainReport
from pared.specs import JobSpec


def run(
    spec: JobSpec, files: Mapping[str, str], folder: Path, *, debug: bool, quiet: bool
) -> tuple[BaseModel, list[Path]]:
    """Run a job, saying its stages and log lines on standard error.

    Args:
        spec: the job; what it names as uploads is not looked at.
        files: the path of each of them, by the field of the spec.
        folder: where the job's files go; made if it is not there.
        debug: whether to enter the debugger at an error.
        quiet: whether to leave stages and log lines out.

    Returns:
        The report, and the files that were written.

    Raises:
        ParedError: what a job on a server would fail with.
    """
    before = _times(folder)
    try:
        report = run_spec(spec, files, folder, SilentObserver() if quiet else PrintingObserver())
    except Exception as error:
        if debug:
            _debug(error)
            raise typer.Exit(FAILED) from None
        raise
    written = [path for path, time in _times(folder).items() if before.get(path) != time]
    printable = Report.model_validate(report.model_dump()) if isinstance(report, PlainReport) else report
    return printable, written


class PrintingObserver(SilentObserver):
    """Prints stages and log lines as they come; a bar would be in a debugger's way."""

    def stage(self, name: str) -> None:
        """A stage begins."""
        err.print(name, style="bold")

    def log(self, text: str) -> None:
        """One line for the person who follows."""
        err.print(f"  {text}")


def _times(folder: Path) -> dict[Path, int]:
    """The files of a folder, and when each was last changed."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.glob("*")) if path.is_file()}


def _debug(error: BaseException) -> None:
    """Show the traceback and enter the debugger where the first of a chain of errors was raised."""
    traceback.print_exception(error)
    while error.__cause__ is not None:
        error = error.__cause__
    pdb.post_mortem(error.__traceback__)
