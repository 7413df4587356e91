"""SQLite files that have their tables, copied from one that was migrated once: that takes a tenth of a second."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy.engine import make_url

from pared.state.data_folder import close_to_others
from pared.state.session import migrate
from pared.state.settings import Settings


def make_tables(settings: Settings) -> None:
    """What `migrate` does, and quicker where it makes a new file."""
    path = _file(settings)
    if path is None or (path.exists() and path.stat().st_size):
        migrate(settings)
        return
    close_to_others(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_migrated_file())


def _file(settings: Settings) -> Path | None:
    """The SQLite file; None: the database is none."""
    url = make_url(settings.effective_database_url)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


@cache
def _migrated_file() -> bytes:
    folder = Path(tempfile.mkdtemp(prefix="pared-migrated-"))
    try:
        settings = Settings(data_dir=folder)
        migrate(settings)
        file = _file(settings)
        assert file is not None
        return file.read_bytes()
    finally:
        shutil.rmtree(folder)
