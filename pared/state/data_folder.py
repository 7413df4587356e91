"""Owns who may read the data directory: the user whose processes work in it, and nobody else of the machine."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from pared.state.places import Bucket
from pared.state.settings import Settings

_OTHERS = 0o007
_PASS_THROUGH = 0o001
_SCRATCH = "scratch"


def close_to_others(settings: Settings) -> None:
    """Make the data directory if it is missing, and close it to other users. A group that may read it keeps its rights.

    Root's may be passed through, for children of root's workers are another user and work in its `scratch`; what else
    is in it is closed by itself then.

    Left as it is: a directory of another user, and one that holds objects by a PARED_OBJECTS_URL, which processes of
    other users may share.
    """
    folder = settings.data_dir.resolve()
    root = os.geteuid() == 0
    with suppress(FileExistsError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    place = settings.objects_place
    shared = settings.objects_url and isinstance(place, Path) and place.resolve().is_relative_to(folder)
    if folder.stat().st_uid != os.geteuid() or shared:
        return
    if root:
        _make_what_will_be_there(settings, folder)
    _chmod(folder, _PASS_THROUGH if root else 0)
    for entry in folder.iterdir() if root else ():
        if not entry.is_symlink():
            _chmod(entry, _PASS_THROUGH if entry.name == _SCRATCH else 0)


def _make_what_will_be_there(settings: Settings, folder: Path) -> None:
    """Once these are there, whoever uses them keeps their modes."""
    names = ["logs", "plans", "teacher-answers", _SCRATCH]
    names += [] if settings.objects_url else ["objects"]
    names += [settings.staging_dir.name] if isinstance(settings.objects_place, Bucket) else []
    names += [] if settings.broker_url else ["broker"]
    for name in names:
        (folder / name).mkdir(exist_ok=True)
    if not settings.database_url:
        (folder / "pared.db").touch(mode=0o600)  # of which the files beside it take their mode


def _chmod(path: Path, others: int) -> None:
    with suppress(OSError):  # gone, or another user's
        mode = stat.S_IMODE(path.stat().st_mode)
        if (mode & ~_OTHERS) | others != mode:
            path.chmod((mode & ~_OTHERS) | others)
