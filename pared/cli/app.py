"""The `pared` command: every command by its name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import typer

from pared.cli import compress, doctor, exits, files, housekeeping, jobs, keys, owners, pages, run, server, webhooks
from pared.cli.options import grouped
from pared.cli.uploads import upload_commands

_KIND: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "help": "Make trained PyTorch models smaller.",
}
app = typer.Typer(**_KIND)

app.command("prune")(grouped(compress.prune))
app.command("plan", help="Say what `pared prune` would do with these options, in seconds; -o only says the formats.")(
    grouped(compress.prune)
)
app.command("distill")(grouped(compress.distill))
app.command("quantize")(grouped(compress.quantize))
app.command("compress")(grouped(compress.compress))
app.command("run")(run.run)
app.add_typer(jobs.app, name="jobs")
app.command("report")(jobs.report)
app.command("open")(pages.open_page)
app.add_typer(upload_commands("models", "model"), name="models")
app.add_typer(upload_commands("datasets", "data set"), name="datasets")
app.command("unpack")(files.unpack)
app.command("prune-file")(files.prune_file)
app.command("up")(server.up)
app.command("api")(server.api)
app.command("worker")(server.worker)
app.command("migrate")(server.migrate)
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(keys.app, name="keys")
app.command("gc")(housekeeping.gc)
app.command("fsck")(housekeeping.fsck)
app.command("backup")(housekeeping.backup)
app.command("restore")(housekeeping.restore)
app.add_typer(owners.app, name="owners")
app.command("audit")(owners.audit)
app.command("limits")(owners.limits)
app.command("demo")(server.demo)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run a command; what goes wrong becomes one message and an exit code."""
    exits.run_command(partial(_that_knows(sys.argv[1:]), prog_name="pared"))


def _that_knows(typed: Sequence[str]) -> typer.Typer:
    """The command that is typed, alone; all, where it is none of them: to make the options of all takes longer."""
    alone = typer.Typer(**_KIND)
    alone.registered_commands = [command for command in app.registered_commands if command.name == "".join(typed[:1])]
    alone.registered_groups = [group for group in app.registered_groups if group.name == "".join(typed[:1])]
    if not alone.registered_commands and not alone.registered_groups:
        return app
    alone.callback()(_before_the_command)
    return alone


def _before_the_command() -> None:
    """With a callback, typer asks for a command by its name even where there is one alone."""
