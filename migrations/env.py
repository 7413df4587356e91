"""Runs the revisions on the connection that `pared.state.session.migrate` opened, inside its transaction."""

from __future__ import annotations

from alembic import context

from pared.state.session import make_engine
from pared.state.settings import settings
from pared.state.tables import Base

connection = context.config.attributes.get("connection")
if connection is None:  # the alembic command itself, when a developer writes a revision
    connection = make_engine(settings().effective_database_url).connect()
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
