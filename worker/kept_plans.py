"""Owns the plans that a worker keeps on its machine's disk, so that the same question is answered at once.

A plan hangs on the uploads' bytes, the spec and the code that makes it, which its key tells; owners share none.
Whatever goes wrong here costs a plan time, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

import pared
from pared.version import __version__
from worker.kept_files import KeptFiles

MOST = 200
"""Plans of all owners; those that were asked for longest ago go."""
MOST_BYTES = 1 << 20
"""Of one plan. Larger ones are made each time."""

log = structlog.get_logger()


def key_of(
    uploads: Iterable[tuple[str, str, str, Mapping[str, Any]]], spec: Mapping[str, Any], where: Any
) -> str | None:
    """Where the plan of a job is kept; None: it is made each time, for it hangs on a latency that is measured.

    Args:
        uploads: (role, filename, SHA-256, what was posted with it) of each.
        spec: the plan's, as JSON.
        where: what else its figures and sentences hang on, as JSON.
    """
    if "latency" in ((spec.get("job") or {}).get("target") or {}):
        return None
    parts = [_made_by(), [list(each) for each in uploads], spec, where]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def _made_by() -> list[Any]:
    """The code that makes plans: a checkout that is worked on has one version for many states of it."""
    folder = Path(pared.__file__).parent
    files = sorted((str(path.relative_to(folder)), path.stat()) for path in folder.rglob("*.py"))
    listed = [(name, status.st_size, status.st_mtime_ns) for name, status in files]
    return [__version__, version("torch"), hashlib.sha256(json.dumps(listed).encode()).hexdigest()]


class KeptPlans:
    """The plans of one machine, a folder for each owner."""

    def __init__(self, folder: Path) -> None:
        self._files = KeptFiles(folder)

    def find(self, owner: str, key: str) -> dict[str, Any] | None:
        """The plan that was kept, if there is one."""
        path = self._files.path(owner, key)
        try:
            plan: dict[str, Any] = json.loads(path.read_bytes())
            os.utime(path)  # what is asked for is the last to go
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("plan_not_found_again", reason=str(error))
            return None
        return plan

    def keep(self, owner: str, key: str, plan: Mapping[str, Any]) -> None:
        """Keep a plan that the worker has checked."""
        content = json.dumps(plan).encode()
        if len(content) > MOST_BYTES:
            return
        try:
            self._make_room()
            with self._files.written(self._files.path(owner, key)) as file:
                file.write(content)
        except OSError as error:
            log.warning("plan_not_kept", reason=str(error))

    def _make_room(self) -> None:
        kept = self._files.by_last_use()
        for each in kept[: max(0, len(kept) + 1 - MOST)]:
            each.path.unlink(missing_ok=True)
