"""Commands on API keys, on the server's own machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pared.cli.durations import duration
from pared.cli.exits import needs_extras
from pared.cli.rendering import out, plain_table, print_ids, print_json, print_table
from pared.cli.server_state import moment, open_sessions
from pared.cli.shared_options import AsJson, OnlyIds, Quiet

app = typer.Typer(no_args_is_help=True, help="API keys, on the server's own machine.")

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The id of a key, as `pared keys ls` prints it.")]


@app.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="What the key is called; without --owner, also the new owner.")],
    owner: Annotated[
        str | None,
        typer.Option(help="Whose key it is: an owner's name or id.", show_default="a new owner of this name"),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it is for: read, submit, admin or metrics. Repeat it for more.", show_default="read and submit"
        ),
    ] = None,
    expires: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="90d", help="How long it works.", show_default="until it is revoked"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it; it cannot be shown again."""
    with needs_extras("service"):
        from pared.state import keys, owners
    scopes = [each for each in keys.SCOPES if each in (scope or keys.USUAL_SCOPES)]
    if unknown := sorted(set(scope or ()) - set(keys.SCOPES)):
        raise typer.BadParameter(f"{unknown[0]} is no scope; there are {', '.join(keys.SCOPES)}", param_hint="--scope")
    sessions = open_sessions()
    if owner is None:
        whose = owners.create_owner(sessions, name).id
    else:
        with sessions() as session:
            whose = owners.find_owner(session, owner).id
    made = keys.add_key(sessions, whose, name, scopes=scopes, valid_s=expires)
    _print_new(made, as_json=as_json)


@app.command("ls")
def list_keys(
    owner: Annotated[str | None, typer.Option(help="Only those of this owner, by name or id.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that work no more.")] = False,
    as_json: AsJson = False,
    quiet: OnlyIds = False,
) -> None:
    """List the API keys."""
    with needs_extras("service"):
        from pared.state import keys, owners
    sessions = open_sessions()
    with sessions() as session:
        whose = None if owner is None else owners.find_owner(session, owner).id
        names = {each.id: each.name for each in owners.list_owners(session)}
    found = keys.list_keys(sessions, whose, all_=all_)
    if as_json:
        print_json([_as_json(key) for key in found])
        return
    if quiet:
        print_ids(key.id for key in found)
        return
    others = ("owner", "name", "scopes", "expires", "last used")
    table = plain_table("key", *others, give_way=others)
    for key in found:
        expires = "revoked" if key.revoked_at is not None else moment(key.expires_at)
        row = (key.id, names[key.owner_id], key.name, key.scopes.replace(" ", ","), expires, moment(key.last_used_at))
        table.add_row(*row)
    print_table(table)


@app.command("rotate")
def rotate_key(
    key_id: KeyId,
    old_works_for: Annotated[
        float | None,
        typer.Option(
            parser=duration, metavar="24h", help="How long the old key goes on working.", show_default="not at all"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replace an API key by a new one that sees and may do the same, and print it."""
    with needs_extras("service"):
        from pared.state import keys
    made = keys.rotate_key(open_sessions(), key_id, old_works_s=old_works_for or 0.0)
    if made is None:
        raise typer.BadParameter(f"there is no key {key_id} that works; `pared keys ls` lists them")
    _print_new(made, as_json=as_json)


@app.command("revoke")
def revoke_key(
    key_id: KeyId,
    cancel_jobs: Annotated[
        bool, typer.Option("--cancel-jobs", help="Also cancel what waits and runs of the jobs submitted with it.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Revoke an API key: it works no more, and streams that it holds open end within seconds."""
    with needs_extras("service"):
        from pared.state import keys
    if not keys.revoke_key(open_sessions(), key_id, cancel_jobs=cancel_jobs):
        raise typer.BadParameter(f"there is no key {key_id} that works; `pared keys ls` lists them")
    if as_json:
        print_json({"revoked": key_id})
    else:
        out.print(f"revoked {key_id}")


def _print_new(made: Any, *, as_json: bool) -> None:
    if as_json:
        print_json({**_as_json(made.key), "secret": made.secret})
    else:
        out.print(made.secret, soft_wrap=True)


def _as_json(key: Any) -> dict[str, Any]:
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "last_used_at", "revoked_at")}
    return {"id": key.id, "owner": key.owner_id, "name": key.name, "scopes": key.scopes.split(), **times}
