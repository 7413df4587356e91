"""A disk without room is known as such, in whatever error a library tells it."""

from __future__ import annotations

import errno
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pared.compression.export.formats import Formats
from pared.compression.loading.loaded import LoadedModel
from pared.errors import Unavailable
from pared.full_disk import no_room
from tests.support.small_disk import small_disk

STATE = {"weight": torch.zeros(1024, 1024)}


def _in_a_file(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(STATE, file)


def _as_rows(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table samples (x)")
        connection.execute("insert into samples values (?)", (bytes(4 << 20),))


def _nowhere(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(path.parent)])
        patch.setattr(tempfile, "tempdir", None)
        tempfile.gettempdir()


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save(STATE, path),
        _in_a_file,
        lambda path: save_file(STATE, path),
        lambda path: np.save(path, np.zeros(1 << 20)),
        lambda path: np.savez(path, x=np.zeros(1 << 20)),
        lambda path: np.zeros(1 << 20).tofile(path),
        _as_rows,
        _nowhere,
    ],
    ids=["torch.save", "torch.save to a file", "safetensors", "npy", "npz", "tofile", "sqlite", "tempfile"],
)
def test_a_full_disk_is_known_by_what_each_library_says_of_it(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        disk.fill()
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
            write(disk.folder / "file")
        assert no_room(caught.value, disk.folder) == errno.ENOSPC


def test_what_else_fails_is_no_full_disk(tmp_path: Path) -> None:
    assert (
        no_room(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 896 vs 790"), tmp_path) is None
    )
    assert no_room(OSError(errno.ENOENT, "No such file"), tmp_path) is None
    assert no_room(ValueError("3 values are requested and 2 given"), tmp_path) is None


def test_a_result_that_finds_no_room_is_worth_another_try(tmp_path: Path) -> None:
    module = nn.Linear(1024, 1024).eval()
    loaded = LoadedModel(module, "state_dict", "state_dict")
    formats = Formats(["state_dict"], [torch.zeros(1, 1024)])
    with (
        small_disk(tmp_path / "disk", 1) as disk,
        pytest.raises(Unavailable, match=r"no room on the disk\. state_dict"),
    ):
        formats.write(loaded, disk.folder)
