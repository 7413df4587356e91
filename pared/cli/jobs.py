"""Commands on jobs: listed, followed, canceled, read and downloaded."""

from __future__ import annotations

import shlex
import tempfile
import webbrowser
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from pared.cli.downloads import check_writable, download, exit_if_incomplete, hand_over
from pared.cli.exits import DETACHED, FAILED
from pared.cli.rendering import (
    err,
    event_text,
    follow,
    list_files,
    out,
    plain_table,
    print_ids,
    print_json,
    print_json_line,
    print_table,
    say,
    with_bold,
)
from pared.cli.shared_options import AsJson, JobId, OnlyIds, OutputOrFolder, Quiet
from pared.client import Client, Job, JobFailed
from pared.job_types import ListedName
from pared.statuses import JobStatus

app = typer.Typer(no_args_is_help=True, help="List, follow, cancel and download jobs.")


@app.command("ls")
def list_jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.", show_default="any")] = None,
    type: Annotated[  # noqa: A002 - the option's name
        ListedName | None, typer.Option(help="Only jobs of this type.", show_default="any")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
    quiet: OnlyIds = False,
) -> None:
    """List jobs, newest first."""
    with Client() as client:
        rows = list(islice(client.jobs.list(status, type), limit))
    if as_json:
        print_json([job.model_dump(mode="json") for job in rows])
        return
    if quiet:
        print_ids(job.id for job in rows)
        return
    table = plain_table("job", "type", "status", "created")
    table.add_column()  # gives way where the terminal is narrow
    for job in rows:
        created = f"{job.created_at:%Y-%m-%d %H:%M:%S}" if job.created_at else ""
        verdict = (job.result or {}).get("verdict") or (job.error or {}).get("detail") or ""
        table.add_row(job.id, job.type, job.status, created, Text(str(verdict), no_wrap=True, overflow="ellipsis"))
    print_table(table)


@app.command("show")
def show_job(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job as it is now."""
    with Client() as client:
        job = client.jobs.get(job_id)
    if as_json:
        print_json(job.model_dump(mode="json"))
    else:
        out.print(str(job))
        if job.result:
            out.print(str(job.result.get("verdict")))
        if page := page_of(job, client):
            out.print(page, soft_wrap=True)


@app.command("watch")
def watch_job(job_id: JobId, output: OutputOrFolder = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Follow a job until it has ended, and download its result."""
    with Client() as client:
        job = client.jobs.get(job_id)
        watch_to_the_end(job, client, output, as_json=as_json)


@app.command("cancel")
def cancel_job(job_id: JobId, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Cancel a job."""
    with Client() as client:
        job = client.jobs.cancel(job_id)
    if as_json:
        print_json(job.model_dump(mode="json"))
    else:
        out.print(str(job))


@app.command("pin")
def pin_job(job_id: JobId, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Keep a job, its files and its uploads whatever their age, where the server forgets old ones."""
    with Client() as client:
        job = client.jobs.get(job_id)
        job.pin()
    if as_json:
        print_json(job.model_dump(mode="json"))
    else:
        out.print(f"pinned {job_id}")


@app.command("unpin")
def unpin_job(job_id: JobId, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Let a job go with its age as others do."""
    with Client() as client:
        job = client.jobs.get(job_id)
        job.unpin()
    if as_json:
        print_json(job.model_dump(mode="json"))
    else:
        out.print(f"unpinned {job_id}")


@app.command("logs")
def show_logs(
    job_id: JobId,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each event, a line each.")] = False,
) -> None:
    """Print a job's events from the first: stages, log lines and metrics. Follows a job that has not ended."""
    try:
        with Client() as client:
            for event in client.jobs.get(job_id).events():
                if as_json:
                    print_json_line(event.model_dump(mode="json"))
                elif (text := event_text(event)) is not None:
                    out.print(f"{event.id:>5}  {event.event:<6}  {text}", soft_wrap=True)
    except KeyboardInterrupt:
        err.print("The job goes on.")
        raise typer.Exit(DETACHED) from None


@app.command("download")
def download_job(
    job_id: JobId,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            help="A folder for all files of the job, or a file for the model in the format of its ending.",
            show_default="a folder that is called as the job",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Download the files that a job made; its report is one of them."""
    paths = output or [Path(job_id)]
    check_writable(paths)
    with Client() as client:
        job = client.jobs.get(job_id)
        if job.status != "succeeded":
            advice = "" if job.ended else f"; `pared jobs watch {job.id} -o …` waits for its files"
            say(f"{job_id} has made no files: it is {job.status}{advice}")
            raise typer.Exit(FAILED)
        files = download(job, paths)
    if as_json:
        print_json({"files": [str(file) for file in files]})
    else:
        list_files(files)
    exit_if_incomplete(job, paths)


def report(
    job_id: JobId,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write it as a page, one file to read, print and pass on."),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Show it as a page in the browser; without --html from a temporary file.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print the before/after report of a job, or write it as an HTML page."""
    check_writable([] if html is None else [html])
    with Client() as client:
        job_report = client.jobs.get(job_id).report()
    page = _page_file(job_id, html) if html or open_page else None
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(job_report.to_html(), encoding="utf-8")
    if as_json:
        print_json(job_report.model_dump(mode="json"))
    elif page:
        list_files([page])
    else:
        out.print(job_report)
    if page and open_page and not webbrowser.open(page.absolute().as_uri()):
        say(f"no browser could be started; open {page} yourself")
        raise typer.Exit(FAILED)


def _page_file(job_id: str, named: Path | None) -> Path:
    """Where the page goes: the file that was named, or one in a folder of its own that only this user can read."""
    if named is None:
        return Path(tempfile.mkdtemp(prefix="pared-")) / "report.html"
    return named / f"{job_id}.html" if named.is_dir() else named


def submit_and_follow(client: Client, spec: dict[str, Any], output: list[Path] | None, *, as_json: bool) -> None:
    """Post a job, draw it until it has ended, download its result and print its report."""
    job = client.jobs.submit(spec)
    err.print(with_bold("submitted ", job.id))
    if page := page_of(job, client):
        err.print(f"  its page:  {page}", soft_wrap=True)
    watch_to_the_end(job, client, output, as_json=as_json)


def watch_to_the_end(job: Job, client: Client, output: list[Path] | None, *, as_json: bool) -> None:
    """Draw a job until it has ended, download its result and print its report."""
    follow_to_the_end(job, client, output, as_json=as_json)
    try:
        hand_over(job, client, output, as_json=as_json)
    except KeyboardInterrupt:
        err.print(
            f"\nStopped; the job has ended, and its files stay on the server.\n  get them:  {_watch(job, output)}"
        )
        raise typer.Exit(DETACHED) from None


def page_of(job: Job, client: Client) -> str:
    """The address of a job's page; empty where the server, an older one, has no pages."""
    path = job.links.get("web") or ""
    return f"{client.url}{path}" if path.startswith("/") else ""


def _watch(job: Job, output: list[Path] | None) -> str:
    """The line that follows the job, and downloads what was asked for."""
    return f"pared jobs watch {job.id}" + "".join(f" -o {shlex.quote(str(path))}" for path in output or [])


def follow_to_the_end(job: Job, client: Client, output: list[Path] | None, *, as_json: bool) -> None:
    """Draw the job until it ended; exits with 1 if not well, and with 130 when the person detaches."""
    try:
        if as_json:
            job.wait()
        else:
            follow(job, err)
    except KeyboardInterrupt:
        err.print(f"\nDetached; the job goes on.\n  come back:  {_watch(job, output)}", soft_wrap=True)
        err.print(f"  cancel it:  pared jobs cancel {job.id}")
        raise typer.Exit(DETACHED) from None
    except JobFailed:
        pass  # told below, in the form that was asked for
    if job.status != "succeeded":
        if as_json:
            print_json({"job": job.model_dump(mode="json")})
        page = page_of(job, client) or f"{client.url}{job.links.get('self', '')}"
        say(f"{job}\n{page}\n  next: pared jobs logs {job.id}")
        raise typer.Exit(FAILED)
