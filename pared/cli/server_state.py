"""How commands on the server's own machine reach its database, and show times of it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pared.cli.exits import needs_extras

if TYPE_CHECKING:
    from pared.state.session import Sessions


def open_sessions() -> Sessions:
    """The database that `PARED_…` variables name, brought up to date."""
    with needs_extras("service"):
        from pared.state.session import make_engine, make_sessions, migrate
        from pared.state.settings import settings
    migrate(settings())
    return make_sessions(make_engine(settings().effective_database_url))


def moment(seconds: float | None) -> str:
    """A time of the database, by this machine's clock; nothing for None."""
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M}"
