"""What the end-to-end tests share beside the running services."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.clean_process import CleanProcess


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanProcess]:
    """A process that has torch and not this repository."""
    started = CleanProcess(tmp_path_factory.mktemp("clean"))
    yield started
    started.process.kill()
    started.process.wait()
