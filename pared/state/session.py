"""Owns how a process reaches the database: the engine, the sessions, and bringing the tables up to date."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic_core
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from pared.errors import ParedError, Unavailable
from pared.state.data_folder import close_to_others
from pared.state.reading_connections import ReadingConnections
from pared.state.settings import Settings

if TYPE_CHECKING:
    from alembic.config import Config

T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000
CACHE_KIB = 256
ASKED_AGAIN_S = 1.0
"""A connection that lay unused for so long is asked whether it lives before it is used."""
KEYS_AT_ONCE = 200
"""So many keys a query may name: SQLite's statements have bounds."""
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
TABLE_LOCK_S = 3.0
"""How long a migration waits for a table on PostgreSQL. All that want the table after it wait behind it, so then it
lets them by and tries again."""
MIGRATION_TRIES_S = 600.0
_HELD_BY_OTHERS = {"55P03", "40P01"}  # the lock timed out; a deadlock
_MIGRATION_LOCK = 0x70617265  # one number for all of pared's migrators: "pare"


def make_engine(url: str) -> Engine:
    """An engine for SQLite (WAL, every commit on disk) or PostgreSQL through psycopg 3."""
    target = make_url(url)
    if target.drivername == "postgresql":
        target = target.set(drivername="postgresql+psycopg")
    if target.get_backend_name() != "sqlite":
        engine = create_engine(
            target,
            json_serializer=to_json,
            # What is above the pool's size is opened for one use: that takes many times as long as most queries.
            pool_size=20,
            max_overflow=10,
            pool_timeout=10,
            pool_use_lifo=True,
            connect_args={"connect_timeout": 5},
        )
        event.listen(engine, "checkin", _note_use)
        event.listen(engine, "checkout", partial(_look_whether_alive, engine))
        return engine
    _make_parent(target.database)
    engine = create_engine(target, json_serializer=to_json, pool_size=40, max_overflow=15, pool_timeout=10)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


class Sessions(sessionmaker[Session]):
    """`with sessions() as session` reads; `with sessions.begin() as session` writes and commits."""

    def __init__(self, engine: Engine) -> None:
        """Args: engine: from `make_engine`."""
        # At PostgreSQL's READ COMMITTED each query sees what was committed before it, in a transaction or not. Without
        # one there are two messages less to send and to wait for. SQLite's transactions show one state of the database.
        reading = engine if engine.dialect.name == "sqlite" else engine.execution_options(isolation_level="AUTOCOMMIT")
        super().__init__(reading, expire_on_commit=False)
        self.engine = engine
        self.reading_connections = ReadingConnections(engine)
        """Of those who give the driver SQL themselves."""
        # The same pool; the option tells `_begin_sqlite` to take the write lock at once, for a
        # transaction that starts by reading cannot wait for it later.
        self._writing = engine.execution_options(pared_writes=True)

    def in_transaction(self) -> Session:
        """A session that reads in a transaction, as queries need whose rows are fetched a few at a time."""
        return self(bind=self.engine)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction that writes: committed at the end of the block, rolled back on an error."""
        with self(bind=self._writing) as session, session.begin():
            yield session


def _note_use(connection: Any, record: Any) -> None:
    record.info["used_at"] = time.monotonic()


def _look_whether_alive(engine: Engine, connection: Any, record: Any, proxy: Any) -> None:
    """Have connections replaced that died in the pool, without asking the server before each use of a busy one."""
    if time.monotonic() - record.info.get("used_at", time.monotonic()) < ASKED_AGAIN_S:
        return
    alive = False
    with suppress(engine.dialect.loaded_dbapi.Error):
        alive = engine.dialect.do_ping(connection)
    if not alive:
        raise InvalidatePoolError  # for all that were opened before; another one is tried


def make_sessions(engine: Engine) -> Sessions:
    """The session factory of a process."""
    return Sessions(engine)


def migrate(settings: Settings) -> str:
    """Bring the database to the newest revision. Safe when several processes call it at once.

    Returns:
        The revision that the tables have now.

    Raises:
        Unavailable: the database does not answer, or something that runs long keeps the tables.
    """
    from alembic import command  # here, for each process reaches the database, and only `pared migrate` needs it
    from alembic.runtime.migration import MigrationContext

    close_to_others(settings)
    url = make_url(settings.effective_database_url)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite:
        _make_parent(url.database)
    engine = create_engine(url, poolclass=NullPool)
    if sqlite:
        # Rebuilding a table drops the old one; with foreign keys enforced that would cascade to its children.
        event.listen(engine, "connect", _prepare_sqlite_for_migration)
        event.listen(engine, "begin", _begin_sqlite)
    until = time.monotonic() + MIGRATION_TRIES_S
    try:
        while True:
            try:
                with engine.execution_options(pared_writes=True).begin() as connection:
                    if not sqlite:
                        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
                        connection.execute(text(f"set local lock_timeout = '{TABLE_LOCK_S:g}s'"))
                    command.upgrade(alembic_config(connection), "head")
                    return str(MigrationContext.configure(connection).get_current_revision())
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in _HELD_BY_OTHERS:
                    raise database_problem(error) from error
                if time.monotonic() > until:
                    raise Unavailable(
                        "The tables cannot be changed: something that runs long uses them, such as a backup. Run "
                        "`pared migrate` again when it has ended."
                    ) from error
            time.sleep(TABLE_LOCK_S)
    finally:
        engine.dispose()


def to_json(value: Any) -> str:
    """JSON that every database takes: a metric that is NaN becomes null, a NUL in a log line the replacement mark."""
    try:
        encoded = pydantic_core.to_json(value, inf_nan_mode="null").decode()
    except pydantic_core.PydanticSerializationError:  # half a surrogate pair, from JSON that escapes one
        encoded = pydantic_core.to_json(_without_surrogates(value), inf_nan_mode="null").decode()
    return _NUL.sub(r"\1\\ufffd", encoded)


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without a file, so that an installed wheel migrates too."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def database_problem(error: Exception) -> ParedError:
    """The named error for a database that does not answer; any other error is the programmer's and is raised again."""
    if isinstance(error, PoolTimeout):
        return Unavailable("The database is too busy. Try again in a few seconds.")
    if isinstance(error, DBAPIError) and (error.connection_invalidated or _is_outage(error)):
        return Unavailable("The database does not answer. Try again in a few seconds.")
    raise error


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return [_without_surrogates(item) for item in value] if isinstance(value, list | tuple) else value


def _is_outage(error: DBAPIError) -> bool:
    if type(error).__name__ not in {"OperationalError", "InterfaceError"}:
        return False
    # SQLite files every missing table under "operational" too; that one waiting does not cure.
    return not (isinstance(error.orig, sqlite3.OperationalError) and "no such" in str(error.orig))


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # pysqlite's own implicit BEGIN is deferred; with None the "begin" event decides.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    _enter_wal(connection)
    connection.execute("PRAGMA synchronous=FULL")
    # Each connection has a cache of its own, in place of the usual 2 MB; the system's holds the file for all of them.
    connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    connection.execute("PRAGMA foreign_keys=ON")


def _prepare_sqlite_for_migration(connection: sqlite3.Connection, record: Any) -> None:
    _prepare_sqlite(connection, record)
    connection.execute("PRAGMA foreign_keys=OFF")


def _enter_wal(connection: sqlite3.Connection) -> None:
    # Switching a new file to WAL needs it alone and does not honour the busy timeout.
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("pared_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_parent(database: str | None) -> None:
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)


def _migrations_folder() -> Path:
    spec = find_spec("migrations")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package `migrations` is not installed beside pared")
    return Path(spec.origin).parent


def batches(keys: Iterable[T], most: int = KEYS_AT_ONCE) -> Iterator[list[T]]:
    """The keys in lists that a query may name at once, or in others of at most so many."""
    left = iter(keys)
    while some := list(islice(left, most)):
        yield some
