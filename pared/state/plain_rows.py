"""Owns reading rows as the driver gives them, for queries that are asked many times a second.

SQLAlchemy makes the SQL, once. For it to run the query and to wrap the rows takes several times as long as the
database does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
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
        self.sessions, self._query = sessions, query
        state = query.compile(dialect=sessions.engine.dialect).construct_expanded_state(dict.fromkeys(names))
        self._sql, self._order = state.statement, state.positiontup
        self._constants = {name: value for name, value in state.parameters.items() if name not in names}

    def read(self, **values: Any) -> Sequence[Sequence[Any]]:
        """The rows that there are. Raises as a session does."""
        return read_each([(self, values)])[0]

    def asked_with(self, values: dict[str, Any]) -> tuple[str, Sequence[Any] | Mapping[str, Any]]:
        """What the driver is given."""
        given = self._constants | values
        return self._sql, [given[name] for name in self._order] if self._order is not None else given

    def by_a_session(self, values: dict[str, Any]) -> Sequence[Sequence[Any]]:
        """The rows, as a session reads them."""
        with self.sessions() as session:
            return session.execute(self._query, values).all()


def read_each(asked: Sequence[tuple[PlainQuery, dict[str, Any]]]) -> list[Sequence[Sequence[Any]]]:
    """The rows of some queries of one database, each with its values, in their order. Raises as a session does.

    PostgreSQL is sent all of them before the first answer is waited for.
    """
    sessions = asked[0][0].sessions
    try:
        with sessions.reading_connections.one() as connection:
            driven = connection.dbapi_connection
            together = len(asked) > 1 and sessions.engine.dialect.name == "postgresql"
            with driven.pipeline() if together else nullcontext():
                cursors = []
                for query, values in asked:
                    cursors.append(driven.cursor())
                    cursors[-1].execute(*query.asked_with(values))
            found = [cursor.fetchall() for cursor in cursors]
            for cursor in cursors:
                cursor.close()
            return found
    except sessions.engine.dialect.loaded_dbapi.Error:
        # A session tries another connection where this one has died, and has names for what else is wrong.
        return [query.by_a_session(values) for query, values in asked]


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
