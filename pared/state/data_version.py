"""Owns telling that a database has not changed, so that nobody need ask it the same again."""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import Engine


class DataVersion:
    """SQLite's `data_version`: another number after each commit of another connection, of this process or not."""

    def __init__(self, engine: Engine) -> None:
        """Args: engine: of the database; one that is not SQLite has no such number."""
        self._engine = engine
        self._connection: Any = None
        self._file: tuple[int, int] | None = None

    def open(self) -> None:
        """Have a connection for it alone, which changes nothing itself."""
        if self._engine.dialect.name == "sqlite":
            self._connection = self._engine.raw_connection()
            self._connection.execute("PRAGMA busy_timeout=0")
            self._file = self._present_file()

    def read(self) -> int | None:
        """The number, or None where it is not known. Waits for no lock, and for a disk as good as never.

        What is looked at are the head of the log, which is mapped into memory, and one page if that has changed. A file
        in the place of the one that was opened is another database, of which the number says nothing.
        """
        if self._connection is None:
            return None
        try:
            if self._present_file() != self._file:
                return None
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except (
            OSError,
            self._engine.dialect.loaded_dbapi.Error,
        ):  # gone; or the log is being restored by somebody else
            return None

    def _present_file(self) -> tuple[int, int]:
        found = os.stat(self._engine.url.database or "")
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Give the connection up."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection = None
