"""Commands on owners and the audit log, on the server's own machine, and on the limits that one meets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pared.cli.exits import needs_extras
from pared.cli.rendering import out, plain_table, print_ids, print_json, print_table
from pared.cli.server_state import moment, open_sessions
from pared.cli.shared_options import AsJson, OnlyIds, Quiet
from pared.client import Client

if TYPE_CHECKING:
    from pared.state.session import Sessions
    from pared.state.tables import Owner

app = typer.Typer(no_args_is_help=True, help="Owners of models, data sets and jobs, on the server's own machine.")

OwnerName = Annotated[str, typer.Argument(metavar="OWNER", help="An owner's name, or id.")]


@app.command("add")
def add_owner(name: Annotated[str, typer.Argument(help="What the owner is called.")], as_json: AsJson = False) -> None:
    """Make an owner without a key, and print the id; `pared keys add NAME --owner ID` makes keys."""
    with needs_extras("service"):
        from pared.state.owners import create_owner
    made = create_owner(open_sessions(), name)
    if as_json:
        print_json({"id": made.id, "name": made.name, "created_at": made.created_at})
    else:
        out.print(made.id)


@app.command("ls")
def list_owners(as_json: AsJson = False, quiet: OnlyIds = False) -> None:
    """List the owners."""
    with needs_extras("service"):
        from pared.state import keys, owners
    with open_sessions()() as session:
        counts = keys.key_counts(session)
        found = owners.list_owners(session)
    if as_json:
        print_json([_as_json(each, counts) for each in found])
        return
    if quiet:
        print_ids(each.id for each in found)
        return
    table = plain_table(
        "owner", "name", "keys that work", "kept for", "disabled", give_way=("name", "keys that work", "kept for")
    )
    for each in found:
        kept = {None: "", 0.0: "ever"}.get(each.retention_days, f"{each.retention_days or 0:g} days")
        table.add_row(each.id, each.name, str(counts.get(each.id, 0)), kept, moment(each.disabled_at))
    print_table(table)


@app.command("disable")
def disable_owner(
    owner: OwnerName,
    cancel_jobs: Annotated[
        bool, typer.Option("--cancel-jobs", help="Also cancel all jobs of the owner's that wait or run.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Stop all keys of an owner from working; what the owner made stays."""
    with needs_extras("service"):
        from pared.state import owners
    sessions = open_sessions()
    with sessions() as session:
        owner_id = owners.find_owner(session, owner).id
    canceled = owners.disable_owner(sessions, owner_id, cancel_jobs=cancel_jobs)
    if as_json:
        print_json(_changed(sessions, owner_id) | {"jobs_canceled": canceled})
        return
    out.print(f"disabled {owner_id}")
    if cancel_jobs:
        out.print(f"{canceled} jobs canceled")


@app.command("enable")
def enable_owner(owner: OwnerName, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Let the keys of a disabled owner work again."""
    with needs_extras("service"):
        from pared.state import owners
    sessions = open_sessions()
    with sessions() as session:
        owner_id = owners.find_owner(session, owner).id
    owners.enable_owner(sessions, owner_id)
    if as_json:
        print_json(_changed(sessions, owner_id))
    else:
        out.print(f"enabled {owner_id}")


@app.command("retain")
def retain(
    owner: OwnerName,
    days: Annotated[
        float | None,
        typer.Option(min=0, max=36_500, help="Since a job ended, or a file was uploaded; 0: they stay for ever."),
    ] = None,
    as_service: Annotated[
        bool, typer.Option("--as-service", help="As long as PARED_RETENTION_DAYS says, as for other owners.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say for how long an owner's ended jobs, their files and unused uploads are kept; pinned jobs stay."""
    with needs_extras("service"):
        from pared.state import owners
    if (days is None) != as_service:
        raise typer.BadParameter("give either --days or --as-service")
    sessions = open_sessions()
    with sessions() as session:
        owner_id = owners.find_owner(session, owner).id
    owners.set_retention(sessions, owner_id, days)
    if as_json:
        print_json(_changed(sessions, owner_id))
        return
    kept = "as long as PARED_RETENTION_DAYS says" if days is None else f"for {days:g} days" if days else "for ever"
    out.print(f"what {owner_id} made is kept {kept}", soft_wrap=True)


def _changed(sessions: Sessions, owner_id: str) -> dict[str, Any]:
    from pared.state import keys, owners

    with sessions() as session:
        return _as_json(owners.find_owner(session, owner_id), keys.key_counts(session))


def _as_json(owner: Owner, counts: Mapping[str, int]) -> dict[str, Any]:
    columns = ("id", "name", "created_at", "disabled_at", "retention_days")
    return {name: getattr(owner, name) for name in columns} | {"keys": counts.get(owner.id, 0)}


def audit(
    owner: Annotated[str | None, typer.Option(help="Only what this owner did, by name or id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many entries.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show who did what, newest first, on the server's own machine."""
    with needs_extras("service"):
        from pared.state import audit, owners
    with open_sessions()() as session:
        actor = None if owner is None else owners.find_owner(session, owner).id
        names = {each.id: each.name for each in owners.list_owners(session)}
        rows = audit.entries(session, actor=actor, limit=limit)
    if as_json:
        columns = ("id", "at", "actor", "key_id", "action", "subject", "detail", "request_id")
        print_json([{name: getattr(row, name) for name in columns} for row in rows])
        return
    table = plain_table("time", "who", "with", "did", "to", give_way=("time", "who", "did"))
    for row in rows:
        who = names.get(row.actor, row.actor)
        table.add_row(moment(row.at), who, row.key_id or "", row.action, row.subject or "")
    print_table(table)


def limits(as_json: AsJson = False) -> None:
    """Show your limits on the server, and how much of each is used up."""
    with Client() as client:
        shown = client.limits()
    if as_json:
        print_json(shown)
        return
    table = plain_table("limit", "used", "of", "for each", "meaning", give_way=("meaning",))
    for row in shown["limits"]:
        most = "any number" if row["limit"] is None else f"{row['limit']:,g} {row['unit']}"
        if row["limit"] is not None and row["unit"] == "bytes":
            most = f"{int(row['limit']):,} bytes"
        used = "" if row["used"] is None else f"{row['used']:,}"
        table.add_row(row["name"], used, most, row["of"], row["meaning"])
    print_table(table)
