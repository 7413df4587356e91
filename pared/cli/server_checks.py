"""Owns what `pared doctor` finds out about a server's own machine, by its `PARED_…` settings; it changes nothing."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pydantic
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from pared.cli.checks import Check
from pared.errors import Unavailable
from pared.state.objects import open_store
from pared.state.places import Bucket
from pared.state.queue import make_app, messages_waiting
from pared.state.session import alembic_config, make_engine
from pared.state.settings import Settings

LEAST_FREE_BYTES = 2**30
"""With less room, a job may fail for want of it."""


def of_this_machine() -> Iterator[Check]:
    """Settings, folders, port, database and broker."""
    try:
        settings = Settings()
    except pydantic.ValidationError as error:
        for each in error.errors():
            name = "_".join(map(str, each["loc"])).upper()
            yield Check("settings", "wrong", f"PARED_{name}: {each['msg']}", f"export PARED_{name}=… as it says")
        return
    yield _folder("data directory", settings.data_dir.resolve(), private=not settings.objects_url)
    if isinstance(settings.objects_place, Bucket):
        yield _bucket(settings)
    elif settings.objects_url:
        yield _folder("objects", settings.objects_place, private=False)
    yield _port(settings)
    yield _database(settings)
    yield _broker(settings)


def sandbox() -> Iterator[Check]:
    """What this machine can hold a job to, found by attempts in a real child. Needs the extra `worker`."""
    from worker import children_user, landlock, sandbox_probe

    settings = Settings()
    scratch = settings.data_dir.resolve() / "scratch"
    there = scratch.is_dir() and os.access(scratch, os.W_OK)
    try:
        # What is logged meanwhile belongs into the logs of workers.
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory(prefix="pared-doctor-") as name:
            folder = scratch if there else Path(name)
            folder.chmod(0o711)
            found = sandbox_probe.probe(folder)
            as_root = children_user.problem(found.confinement, folder)
    except OSError as error:
        cure = f"see to room on the disk of {scratch if there else tempfile.gettempdir()} and to memory, and try again"
        yield Check("sandbox", "wrong", f"it could not be probed: {error}", cure)
        return
    if found.confinement.level == "standard":
        yield Check("sandbox", "ok", found.confinement.in_words())
    else:
        escaped = "; ".join(f"{level}: {', '.join(names)}" for level, names in found.escaped.items())
        lacks = "Landlock is missing" if landlock.abi_version() < 1 else f"not refused were, at {escaped}"
        cure = (
            "add landlock to the kernel's `lsm=` (Linux 5.13 or newer), and in a container let its runtime's seccomp "
            "profile pass it"
        )
        allowed = settings.allow_weak_sandbox
        if not allowed:
            cure += "; or set PARED_ALLOW_WEAK_SANDBOX=1, if you trust all uploads"
        detail = f"{found.confinement.in_words()}, not standard: {lacks}"
        yield Check("sandbox", "note" if allowed else "wrong", detail, cure)
    if as_root is not None:
        yield Check("user of jobs", "note", as_root, "run the worker as a user of its own, where others may upload")


def _folder(name: str, folder: Path, *, private: bool) -> Check:
    """Whether a folder is there or can be made, is closed to others, and has room."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Check(
            name, "wrong", f"{there} may not be written to", f"chown {os.geteuid()} {there}, or set PARED_DATA_DIR"
        )
    free = shutil.disk_usage(there).free
    room = f"{free / 2**30:,.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        return Check(name, "wrong", f"{folder}: {room}", "pared gc, or a larger disk")
    if there != folder:
        return Check(name, "ok", f"{folder} will be made; {room}")
    mode = stat.S_IMODE(folder.stat().st_mode)
    allowed = stat.S_IXOTH if os.geteuid() == 0 else 0
    if private and mode & 0o007 & ~allowed and folder.stat().st_uid == os.geteuid():
        return Check(name, "wrong", f"{folder} is open to other users (mode {mode:04o})", f"chmod o= {folder}")
    return Check(name, "ok", f"{folder}, {room}")


def _bucket(settings: Settings) -> Check:
    """Whether objects can be put into the bucket, read and deleted."""
    try:
        with tempfile.TemporaryDirectory(prefix="pared-doctor-") as name:
            store = open_store(settings.model_copy(update={"data_dir": Path(name)}))
            stored = store.put([b"pared doctor"], key=f"doctor/{secrets.token_hex(8)}")
            whole = b"".join(store.read(stored.key)) == b"pared doctor"
            store.delete(stored.key)
    except Unavailable as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        cure = "mend PARED_OBJECTS_URL, AWS_ENDPOINT_URL, AWS_REGION or the credentials, or what they may do there"
        return Check("objects", "wrong", f"{settings.objects_url}: {reason}", cure)
    if not whole:
        return Check(
            "objects", "wrong", f"{settings.objects_url} gives back other bytes than were put", "ask its operator"
        )
    return Check("objects", "ok", f"{settings.objects_url} takes objects, gives them back and deletes them")


def _port(settings: Settings) -> Check:
    where = f"{settings.host}:{settings.port}"
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        detail = f"{where}: {error.strerror or error}; right if that is pared itself"
        return Check("port", "note", detail, "pared up --port N, or set PARED_PORT, if it is another program")
    return Check("port", "ok", f"{where} is free")


def _database(settings: Settings) -> Check:
    url = make_url(settings.effective_database_url)
    shown = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).exists()):
        return Check("database", "ok", f"{shown} is made at the first start")
    engine = make_engine(settings.effective_database_url)
    try:
        with engine.connect() as connection:
            present = MigrationContext.configure(connection).get_current_revision()
    except (SQLAlchemyError, Unavailable) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        return Check("database", "wrong", f"{shown}: {reason}", "start it, or mend PARED_DATABASE_URL")
    finally:
        engine.dispose()
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if present != head:
        return Check(
            "database", "wrong", f"{shown} has the tables of {present or 'no version'}, not {head}", "pared migrate"
        )
    return Check("database", "ok", f"{shown}, tables of {present}")


def _broker(settings: Settings) -> Check:
    if not settings.broker_url:
        return Check("broker", "ok", "files in the data directory")
    address = urlsplit(settings.broker_url)
    shown = f"{address.scheme}://{address.hostname}:{address.port or ''}"
    try:
        count = messages_waiting(queue=make_app(settings))
    except Unavailable as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        return Check("broker", "wrong", f"{shown}: {reason}", "start it, or mend PARED_BROKER_URL")
    return Check("broker", "ok", f"{shown}, {count:,} messages")
