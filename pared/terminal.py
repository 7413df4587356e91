"""Owns how uploads and jobs are drawn in a terminal: stages, the job's log and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from pared.client import Event, Job, Upload, Uploads


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
        drawn = _Drawn(console, bar, bar.add_task("queued", total=1.0, more=""))
        for event in job.events():
            drawn.take(event)
    return job.refresh()


def stored(uploads: Uploads, path_or_id: str, console: Console, architecture: Any = None) -> Upload:
    """Upload a file (or look an id up) and wait until the service has looked into it.

    Raises:
        UploadRejected: the service cannot use the file.
    """
    if path_or_id.startswith(("mdl_", "dst_")):
        return uploads.get(path_or_id).wait()
    path = Path(path_or_id)
    with counted_bytes(f"uploading {path.name}", console) as progress:
        upload = uploads.upload(path, architecture, progress)
    console.print(f"uploaded [bold]{escape(path.name)}[/] as {upload.id}")
    upload.wait()
    for warning in (upload.inspection or {}).get("warnings", []):
        console.print(f"  Note: {warning}", markup=False)
    return upload


@contextmanager
def counted_bytes(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that is counted in bytes; call what it yields with the bytes done and the bytes in all."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Drawn:
    """One job on the screen."""

    def __init__(self, console: Console, bar: Progress, task: TaskID) -> None:
        self._console, self._bar, self._task = console, bar, task
        self._stage = ""

    def take(self, event: Event) -> None:
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
                self._console.print(f"  {data.get('text', '')}", markup=False)

    def _enter(self, stage: str) -> None:
        if stage and stage != self._stage:
            self._stage = stage
            self._console.print(stage, style="bold", markup=False)
            self._bar.update(self._task, description=stage)
