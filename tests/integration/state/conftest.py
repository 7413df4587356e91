"""A migrated database of each kind, and settings that keep everything in the test's own folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pared.state.objects import DirectoryStore
from pared.state.session import Sessions, make_engine, make_sessions
from pared.state.settings import Settings
from tests.support.migrated import make_tables


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "postgresql":
        return Settings(data_dir=tmp_path, database_url=request.getfixturevalue("servers").new_migrated_database())
    settings = Settings(data_dir=tmp_path)
    make_tables(settings)
    return settings


@pytest.fixture
def sessions(settings: Settings) -> Iterator[Sessions]:
    engine = make_engine(settings.effective_database_url)
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "objects")
