"""Owns saying why the children of a worker that is root are not another user, and what to do about it."""

from __future__ import annotations

import os
import site
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

import pared
from worker.sandbox import NOBODY, Confinement


def problem(confinement: Confinement, scratch: Path) -> str | None:
    """What whoever runs this worker should know of the user of its children; None: nothing.

    Args:
        confinement: what was shown to hold.
        scratch: where their folders are made.
    """
    if os.geteuid() != 0 or confinement.uid is not None:
        return None
    needed = [Path(sys.executable), Path(sys.base_prefix), Path(pared.__file__), Path(site.__file__), scratch]
    closed = first_closed(needed)
    why = f"that user may not pass through {closed}" if closed else "as that user they did not start"
    open_it = f", or open the way (`chmod o+rx {closed}`)" if closed else ""
    return (
        f"Jobs run as root, without its privileges, and not as user {NOBODY}: {why}. Run the worker as a user of its "
        f"own{open_it}, and start it again."
    )


def first_closed(paths: Iterable[Path]) -> Path | None:
    """The first file or folder on the way to these that other users may not read or pass through."""
    for path in paths:
        for step in [
            *reversed(path.absolute().parents),
            path.absolute(),
            *reversed(path.resolve().parents),
            path.resolve(),
        ]:
            try:
                mode = step.stat().st_mode
            except OSError:
                return step
            if not mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH):
                return step
    return None
