"""Commands on API keys, on the server's own machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pared.cli.exits import needs_extras
from pared.cli.rendering import out, print_json
from pared.cli.shared_options import AsJson

app = typer.Typer(no_args_is_help=True, help="API keys, on the server's own machine.")


@app.command("add")
def add_key(name: Annotated[str, typer.Argument(help="Whose key it is.")]) -> None:
    """Make an API key and print it; it cannot be shown again."""
    with needs_extras("service"):
        from pared.state.keys import create_key
    out.print(create_key(_sessions(), name), soft_wrap=True)


@app.command("ls")
def list_keys(as_json: AsJson = False) -> None:
    """List the API keys."""
    with needs_extras("service"):
        from pared.state.keys import list_keys as keys
    rows = [{"id": key.id, "name": key.name, "created_at": key.created_at} for key in keys(_sessions())]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(f"{row['id']}  {row['name']}")


@app.command("revoke")
def revoke_key(key_id: str) -> None:
    """Revoke an API key: it works no more."""
    with needs_extras("service"):
        from pared.state.keys import revoke_key as revoke
    if not revoke(_sessions(), key_id):
        raise typer.BadParameter(f"there is no key {key_id} that works; `pared keys ls` lists them")


def _sessions() -> Any:
    with needs_extras("service"):
        from pared.state.session import make_engine, make_sessions, migrate
        from pared.state.settings import settings
    migrate(settings())
    return make_sessions(make_engine(settings().effective_database_url))
