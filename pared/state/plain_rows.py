"""Owns reading rows as the driver gives them, for queries that are asked many times a second.

SQLAlchemy makes the SQL, once. For it to run the query and to wrap the rows takes several times as long as the
database does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam

from pared.state.session import KEYS_AT_ONCE, Sessions


class PlainQuery:
    """A query of columns that need no types of ours: texts and numbers, and JSON as `Text`."""

    def __init__(self, sessions: Sessions, query: Select[*tuple[Any, ...]], names: Sequence[str]) -> None:
        """Make the SQL.

        Args:
            sessions: of the database that is asked.
            names: of the `bindparam`s in the query, each of which gets one value at each call.
        """
        self._sessions, self._query = sessions, query
        self._dialect = sessions.engine.dialect
        state = query.compile(dialect=self._dialect).construct_expanded_state(dict.fromkeys(names))
        self._sql, self._order = state.statement, state.positiontup
        self._constants = {name: value for name, value in state.parameters.items() if name not in names}

    def read(self, **values: Any) -> Sequence[Sequence[Any]]:
        """The rows that there are. Raises as a session does."""
        given = self._constants | values
        try:
            return self._rows([given[name] for name in self._order] if self._order is not None else given)
        except self._dialect.loaded_dbapi.Error:
            # A session tries another connection where this one has died, and has names for what else is wrong.
            with self._sessions() as session:
                return session.execute(self._query, values).all()

    def _rows(self, given: Sequence[Any] | Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        with self._sessions.reading_connections.one() as connection:
            cursor = connection.cursor()
            cursor.execute(self._sql, given)
            rows: Sequence[Sequence[Any]] = cursor.fetchall()
            cursor.close()
            return rows


class PlainQueryByKeys:
    """A query as `PlainQuery` has them, of the rows whose column is one of some texts: at most `KEYS_AT_ONCE`."""

    def __init__(self, sessions: Sessions, query: Select[*tuple[Any, ...]], column: ColumnElement[str]) -> None:
        """Args: column: by which the rows are looked up."""

        def of_so_many(count: int) -> PlainQuery:
            names = [f"key{index}" for index in range(count)]
            return PlainQuery(sessions, query.where(column.in_([bindparam(name) for name in names])), names)

        self._of_so_many = lru_cache(maxsize=KEYS_AT_ONCE)(of_so_many)

    def read(self, keys: Collection[str]) -> Sequence[Sequence[Any]]:
        """The rows that there are, in any order. Raises as a session does."""
        return self._of_so_many(len(keys)).read(**{f"key{index}": key for index, key in enumerate(keys)})
