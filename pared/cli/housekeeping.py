"""Commands that keep a server's house, on its own machine: collecting, checking, backing up and restoring."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pared.cli.exits import FAILED, needs_extras
from pared.cli.rendering import counted_bytes, err, out, print_json
from pared.cli.shared_options import AsJson, Quiet

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the backup.")]


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Delete what is past its age and what nobody needs, as the service does by itself every few minutes."""
    with needs_extras("service"):
        from pared.state.retention import collect
    sessions, store, settings = _opened()
    gone = collect(sessions, store, settings, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **asdict(gone)})
        return
    for kind, ids in (("job", gone.jobs), ("upload", gone.uploads)):
        for each in ids:
            out.print(f"{kind} {each}")
    verb = "would go" if dry_run else "gone"
    out.print(
        f"{len(gone.jobs):,} jobs, {len(gone.uploads):,} uploads, {gone.partial_uploads:,} unfinished uploads and "
        f"{gone.objects:,} objects of {gone.object_bytes:,} bytes {verb}"
    )


def fsck(
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended, and remove what no row names.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check every stored file's digest, and that rows and files fit; exit code 1 where something is wrong."""
    with needs_extras("service"):
        from pared.state.fsck import check
    sessions, store, settings = _opened()
    with counted_bytes("reading", err) as progress:
        checked = check(sessions, store, settings, repair=repair, progress=lambda done: progress(done, done))
    bad = [finding for finding in checked.findings if not finding.repaired and finding.problem != "unnamed"]
    if as_json:
        print_json(asdict(checked))
    else:
        for finding in checked.findings:
            mended = " (repaired)" if finding.repaired else ""
            out.print(f"{finding.problem} {finding.what}: {finding.detail}{mended}", soft_wrap=True)
        out.print(
            f"{checked.objects:,} objects of {checked.object_bytes:,} bytes read, {len(checked.findings)} findings"
            f"{f', {checked.waiting:,} objects that no row names (yet)' if checked.waiting else ''}"
        )
    if bad:
        raise typer.Exit(FAILED)


def backup(folder: Folder, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Copy rows and files of one moment into a folder, while the service runs; once more, only what is new."""
    with needs_extras("service"):
        from pared.state.backup import backup as write
        from pared.state.settings import settings
    manifest = write(settings(), folder)
    if as_json:
        print_json({**asdict(manifest), "folder": str(folder)})
    elif isinstance(settings().objects_place, Path):
        out.print(f"{manifest.objects:,} objects of {manifest.object_bytes:,} bytes and the database are in {folder}")
    else:
        out.print(f"the database is in {folder}; objects stay in {settings().objects_url}, whose versions keep them")


def restore(folder: Folder, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Put a backup where there is no database yet; then start the service, and its queued jobs go on."""
    with needs_extras("service"):
        from pared.state.backup import restore as put_back
        from pared.state.settings import settings
    manifest = put_back(settings(), folder)
    if as_json:
        print_json(asdict(manifest))
    else:
        out.print(f"{manifest.objects:,} objects and the database are back; start the service, and its jobs go on")


def _opened() -> tuple[Any, Any, Any]:
    """The server's database and store, and its settings."""
    with needs_extras("service"):
        from pared.state.objects import open_store
        from pared.state.session import make_engine, make_sessions, migrate
        from pared.state.settings import settings
    migrate(settings())
    sessions = make_sessions(make_engine(settings().effective_database_url))
    return sessions, open_store(settings()), settings()
