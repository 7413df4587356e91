"""The `pared` command: every command by its name."""

from __future__ import annotations

from functools import partial

import typer

from pared.cli import compress, doctor, exits, files, housekeeping, jobs, keys, owners, pages, run, server, webhooks
from pared.cli.options import grouped
from pared.cli.uploads import upload_commands

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make trained PyTorch models smaller.",
)

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
    exits.run_command(partial(app, prog_name="pared"))
