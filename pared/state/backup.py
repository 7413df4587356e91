"""Owns backups: rows and objects of one moment, copied while the service runs, and put back on an empty machine.

Objects are copied first, then, while none can be deleted, the database, and at last the objects that came meanwhile: so
every object that a row of the copy names is in the copy. Of objects in a bucket
none is copied: the bucket's own versions keep them.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from alembic.script import ScriptDirectory
from sqlalchemy import URL, delete, inspect
from sqlalchemy.engine import make_url

from pared.errors import Conflict, NotFound, Unavailable
from pared.state.objects import CHUNK_BYTES, DirectoryStore, ObjectStore, open_store, sync_folder
from pared.state.session import alembic_config, make_engine, make_sessions, migrate
from pared.state.settings import Settings
from pared.state.tables import PartialUpload
from pared.version import __version__

MANIFEST = "backup.json"
OBJECTS = "objects"
_DATABASES = {"sqlite": "pared.db", "postgresql": "pared.dump"}


@dataclass(frozen=True)
class Manifest:
    """What a backup holds; written last, so that a folder without it is no backup."""

    pared: str
    database: str
    revision: str
    made_at: float
    objects: int
    object_bytes: int


def backup(settings: Settings, folder: Path, progress: Callable[[int], None] | None = None) -> Manifest:
    """Write a backup into a folder, or bring the one that is there up to date.

    Objects are hard links where the folder is on their disk, else copies; those that are there already are left alone.

    Args:
        folder: made if missing.
        progress: called with the number of objects so far.

    Raises:
        Conflict: the folder holds something else.
        Unavailable: PostgreSQL's `pg_dump` is missing, or failed.
    """
    ours = (folder / MANIFEST).is_file() or (folder / OBJECTS).is_dir()
    if not ours and folder.is_dir() and any(folder.iterdir()):
        raise Conflict(f"{folder} is neither empty nor a backup. Name another folder.")
    objects = folder / OBJECTS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    objects.mkdir(exist_ok=True)
    url = make_url(settings.effective_database_url)
    store = _store_of_files(settings)
    _take(store, objects, progress)
    database = folder / _DATABASES[url.get_backend_name()]
    temporary = database.with_name(f".{database.name}")
    temporary.unlink(missing_ok=True)
    with _snapshot(url, temporary, store) as revision:
        kept = _take(store, objects, progress)
    _sync_file(temporary)
    temporary.replace(database)
    # Only now: until here the database of the last backup may need them.
    total = _drop_others(objects, kept)
    manifest = Manifest(__version__, url.get_backend_name(), revision, time.time(), len(kept), total)
    _write(folder / MANIFEST, json.dumps(asdict(manifest), indent=2))
    return manifest


def restore(settings: Settings, folder: Path, progress: Callable[[int], None] | None = None) -> Manifest:
    """Put a backup into an empty data directory or database, and bring it to this version's tables.

    Jobs that were queued or ran are queued; uploads in pieces that were not finished begin again.

    Raises:
        NotFound: the folder holds no backup.
        Conflict: there is a database already, or the backup is of another kind or a newer version.
        Unavailable: PostgreSQL's `pg_restore` is missing, or failed.
    """
    manifest = _read(folder)
    url = make_url(settings.effective_database_url)
    if url.get_backend_name() != manifest.database:
        raise Conflict(f"The backup is of {manifest.database}, and PARED_DATABASE_URL names {url.get_backend_name()}.")
    known = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    if manifest.revision not in {each.revision for each in known}:
        raise Conflict(
            f"The backup was made by pared {manifest.pared}, which is newer than this one. Install that one."
        )
    _must_be_empty(url)
    _put_back(folder / OBJECTS, open_store(settings), progress)
    database = folder / _DATABASES[manifest.database]
    if manifest.database == "sqlite":
        path = Path(str(url.database))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        shutil.copyfile(database, temporary)
        _sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    else:
        command = ["pg_restore", "--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
        with _connected(url) as (_, where):
            _run([*command, f"--dbname={where['PGDATABASE']}", str(database)], where)
    migrate(settings)
    engine = make_engine(settings.effective_database_url)
    with make_sessions(engine).begin() as session:
        session.execute(delete(PartialUpload))
    engine.dispose()
    return manifest


@contextmanager
def _snapshot(url: URL, path: Path, store: DirectoryStore | None) -> Iterator[str]:
    """Copy the database as it is when the block begins; within the block no object goes. Yields the revision."""
    if url.get_backend_name() == "sqlite":
        with _without_deletions(store):
            with closing(sqlite3.connect(str(url.database))) as source, closing(sqlite3.connect(path)) as target:
                source.backup(target)
                target.execute("pragma journal_mode=delete")
                (revision,) = target.execute("select version_num from alembic_version").fetchone()
            yield revision
        return
    with _connected(url) as (connection, where):
        with _without_deletions(store):
            connection.execute("begin isolation level repeatable read, read only")
            (snapshot,) = connection.execute("select pg_export_snapshot()").fetchone() or ("",)
            (revision,) = connection.execute("select version_num from alembic_version").fetchone() or ("",)
            yield str(revision)
        # The snapshot holds; the dump itself may take long, and nobody waits for it.
        _run(["pg_dump", "--format=custom", f"--snapshot={snapshot}", f"--file={path}"], where)


def _store_of_files(settings: Settings) -> DirectoryStore | None:
    """Where objects are copied from; None: they are in a bucket."""
    place = settings.objects_place
    return DirectoryStore(place) if isinstance(place, Path) else None


def _without_deletions(store: DirectoryStore | None) -> AbstractContextManager[None]:
    return nullcontext() if store is None else store.without_deletions()


@contextmanager
def _connected(url: URL) -> Iterator[tuple[psycopg.Connection[Any], dict[str, str]]]:
    """A connection to PostgreSQL, and the environment that takes its own programs there; no secret is an argument."""
    try:
        connection = psycopg.connect(
            url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True, connect_timeout=5
        )
    except psycopg.OperationalError as error:
        raise Unavailable(f"The database does not answer: {error}") from error
    with connection:
        info = connection.info
        where = {"PGHOST": info.host, "PGPORT": str(info.port), "PGUSER": info.user, "PGDATABASE": info.dbname}
        if info.password:
            where["PGPASSWORD"] = info.password
        yield connection, where


def _run(command: list[str], where: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(command, env={**os.environ, **where}, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not installed here. Install PostgreSQL's client programs.") from None
    if done.returncode:
        raise Unavailable(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")


def _take(store: DirectoryStore | None, folder: Path, progress: Callable[[int], None] | None) -> set[str]:
    """Copy the objects that are not in the folder. Returns the keys of all that are in the store."""
    keys: set[str] = set()
    if store is None:
        return keys
    for key in store.list_older_than(-1.0):
        target = folder / key
        with suppress(FileNotFoundError):  # deleted since it was listed
            if not _is_copy(store.path(key), target):
                _link_or_copy(store.path(key), target)
            keys.add(key)
        if progress:
            progress(len(keys))
    return keys


def _put_back(folder: Path, store: ObjectStore, progress: Callable[[int], None] | None) -> None:
    for count, path in enumerate(_files(folder), 1):
        key = path.relative_to(folder).as_posix()
        if not isinstance(store, DirectoryStore):
            with path.open("rb") as file:
                store.put(iter(partial(file.read, CHUNK_BYTES), b""), key=key)
        elif not _is_copy(path, target := store.path(key)):
            _link_or_copy(path, target)
        if progress:
            progress(count)


def _is_copy(path: Path, target: Path) -> bool:
    """Whether the target has the file's bytes: objects never change under their key but by being replaced."""
    try:
        new, old = path.stat(), target.stat()
    except FileNotFoundError:
        path.stat()  # the object itself must be there
        return False
    return os.path.samestat(new, old) or (new.st_size, new.st_mtime_ns) == (old.st_size, old.st_mtime_ns)


def _link_or_copy(path: Path, target: Path) -> None:
    """Make the target the same file where that can be, else a copy with its times; it appears whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copy2(path, temporary)
        _sync_file(temporary)
    temporary.replace(target)
    sync_folder(target.parent)


def _drop_others(folder: Path, kept: set[str]) -> int:
    """Remove what is no longer needed. Returns the bytes of the rest."""
    total = 0
    for path in _files(folder):
        if path.relative_to(folder).as_posix() in kept:
            total += path.stat().st_size
        else:
            path.unlink()
    return total


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _read(folder: Path) -> Manifest:
    try:
        return Manifest(**json.loads((folder / MANIFEST).read_text()))
    except FileNotFoundError:
        raise NotFound(f"{folder} holds no backup: there is no {MANIFEST} in it.") from None
    except (ValueError, TypeError) as error:
        raise Conflict(f"{folder / MANIFEST} cannot be read: {error}") from error


def _must_be_empty(url: URL) -> None:
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite and not Path(str(url.database)).exists():
        return
    engine = make_engine(url.render_as_string(hide_password=False))
    try:
        with engine.connect() as connection:
            if not inspect(connection).get_table_names():
                return
    finally:
        engine.dispose()
    raise Conflict(
        f"There is a database at {url.render_as_string()} already. A backup is restored only where there is none: name "
        "another PARED_DATA_DIR or PARED_DATABASE_URL, or move the old one away."
    )


def _write(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(content)
    _sync_file(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
