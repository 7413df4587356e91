"""Printing: the two consoles, JSON, tables, and jobs and uploads as they go on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from pared.client import Event, Job
from pared.terminal import plain_console, printable_json

out = plain_console()
err = plain_console(stderr=True)
_errors = plain_console(stderr=True)
"""Where errors go: it is not silenced by `--quiet`."""
_UNCUT = 10_000  # columns


def say(text: str) -> None:
    """Print an error, as text, to standard error."""
    _errors.print(f"pared: {text}", soft_wrap=True, style="red")


def be_quiet(quiet: bool) -> bool:
    """What `--quiet` does: nothing but errors, and JSON that was asked for, is printed from now on."""
    if quiet:
        out.quiet = err.quiet = True
    return quiet


def print_ids(ids: Iterable[str]) -> None:
    """Print ids to standard output, a line each, for another command."""
    for each in ids:
        out.print(each, soft_wrap=True)


def with_bold(before: str, bold: str, after: str = "") -> Text:
    """A line with a part in bold."""
    return Text.assemble(before, (bold, "bold"), after)


def print_json(value: Any) -> None:
    """Print a value to standard output, as JSON and nothing else."""
    sys.stdout.write(printable_json(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def print_json_line(value: Any) -> None:
    """Print a value to standard output as one line of JSON, at once."""
    sys.stdout.write(printable_json(json.dumps(value, ensure_ascii=False)) + "\n")
    sys.stdout.flush()


def list_files(files: Iterable[Path]) -> None:
    """Print files that were written, with their sizes."""
    for file in files:
        out.print(with_bold("", str(file), f" ({file.stat().st_size:,} bytes)"))


def plain_table(*columns: str, give_way: Collection[str] = ()) -> Table:
    """An empty table without lines.

    Args:
        columns: their names.
        give_way: those of them that are broken into lines where the terminal is narrow, so that ids stay whole.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, no_wrap=name not in give_way, overflow="fold" if name in give_way else "ellipsis")
    return table


def print_table(table: Table) -> None:
    """Print a table: cut to the terminal's width, and whole where another program reads it."""
    console = out if out.is_terminal else plain_console(width=_UNCUT)
    console.print(table)


def follow(job: Job, console: Console) -> Job:
    """Draw a job's stages, progress and metrics until it has ended, then look at it once more.

    Raises:
        KeyboardInterrupt: the person detached; the job goes on.
    """
    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=36),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[more]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        display = _JobDisplay(console, bar, bar.add_task("queued", total=1.0, more=""))
        for event in job.events():
            display.show(event)
    return job.refresh()


def event_text(event: Event) -> str | None:
    """What an event of a job says, in a line; None for progress, which only matters while it is new."""
    data = event.data
    match event.event:
        case "status":
            return ", ".join(str(data[name]) for name in ("status", "stage") if data.get(name))
        case "log":
            return str(data.get("text", ""))
        case "metric":
            value = "not finite" if data.get("value") is None else f"{data['value']:.6g}"
            return f"{data.get('phase')}, step {data.get('step')}: {data.get('name')} {value}"
        case "done":
            error = data.get("error") or {}
            return f"{data.get('status')}" + (f" ({error.get('code')}): {error.get('detail')}" if error else "")
    return None


@contextmanager
def counted_bytes(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that is counted in bytes; call what it yields with the bytes done and the bytes in all."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _JobDisplay:
    """One job on the screen."""

    def __init__(self, console: Console, bar: Progress, task: TaskID) -> None:
        self._console, self._bar, self._task = console, bar, task
        self._stage = ""

    def show(self, event: Event) -> None:
        """Draw one event. Metrics are not drawn: the job's own log says them in words, an epoch a line."""
        data = event.data
        match event.event:
            case "status":
                self._enter(str(data.get("stage") or data.get("status") or ""))
            case "progress":
                more = f"epoch {data['epoch']} of {data['epochs']}" if data.get("epoch") is not None else ""
                if data.get("eta_s") is not None:
                    more += f"  about {data['eta_s']:.0f} s left"
                self._bar.update(self._task, completed=data.get("fraction", 0.0), more=more.strip())
            case "log" if self._stage != "export":  # there it is the verdict alone, which the report begins with
                self._console.print(f"  {data.get('text', '')}")

    def _enter(self, stage: str) -> None:
        if stage and stage != self._stage:
            self._stage = stage
            self._console.print(stage, style="bold")
            self._bar.update(self._task, description=stage)
