"""Owns connections that read without a transaction, and that are kept for that."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Engine, event


class ReadingConnections:
    """The driver's own connections, out of the engine's pool and counted there: so many as were ever used at once.

    To take one out of the pool, to have it begin no transaction and to give it back takes longer than PostgreSQL's
    driver takes for a row.
    """

    def __init__(self, engine: Engine) -> None:
        """Args: engine: of the database. That it is disposed of closes these too."""
        self._engine = engine
        self._free: deque[Any] = deque()
        event.listen(engine, "engine_disposed", self._close)

    @contextmanager
    def one(self) -> Iterator[Any]:
        """A connection that begins no transaction, which nobody else has. After an error it is not used again."""
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._open()
        try:
            yield connection
        except BaseException:
            with suppress(self._engine.dialect.loaded_dbapi.Error):
                connection.invalidate()
            raise
        self._free.append(connection)

    def _open(self) -> Any:
        connection = self._engine.raw_connection()
        if self._engine.dialect.name != "sqlite":  # whose driver begins none by itself
            driven: Any = connection.dbapi_connection
            self._engine.dialect.set_isolation_level(driven, "AUTOCOMMIT")
        return connection

    def _close(self, _: Engine) -> None:
        while self._free:
            with suppress(self._engine.dialect.loaded_dbapi.Error):
                self._free.pop().invalidate()
