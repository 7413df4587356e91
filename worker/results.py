"""Owns storing what a successful child left: only files that a row will name, of sizes that were looked at first."""

from __future__ import annotations

import mimetypes
import os
import re
import stat
from pathlib import Path
from typing import Any

from pared.errors import ParedError, StorageFull, Unavailable
from pared.state.failpoints import failpoint
from pared.state.inspections import MAX_PREVIEW_BYTES, files_to_keep
from pared.state.objects import ObjectStore
from pared.state.tables import Artifact, new_id
from pared.weights.safetensors import BadSafetensors, read_header
from worker.attempt_types import Claim, Quota
from worker.recorder import UntrustworthyFile, discard, store_file

_MAX_ARTIFACTS = 100
_MAX_HEADER_BYTES = 2**20
"""Of a safetensors file that is held against its report; more would cost this process too much memory."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class NoRoom(Exception):
    """The store does not take a file now."""

    def __init__(self, error: ParedError) -> None:
        super().__init__(error.detail)
        self.error = error


class Results:
    """The files of one attempt, stored under its own keys. They become artifacts with the job's end, or never."""

    def __init__(self, store: ObjectStore, claim: Claim, quota: Quota, out: Path) -> None:
        """Look at what is there; nothing is copied.

        Raises:
            UntrustworthyFile: there are too many files, or one has a name that no result of ours has.
        """
        self._store, self._claim = store, claim
        self._waiting = _paths(claim, out)
        self._most_bytes = quota.file_bytes
        self.artifacts: list[Artifact] = []
        """Those that are stored."""

    def save(self) -> None:
        """Store what is not yet stored.

        Raises:
            NoRoom: the store has no room, or fails; call it again later.
            UntrustworthyFile: a file is not a plain one.
        """
        while self._waiting:
            path = self._waiting[0]
            key = f"jobs/{self._claim.job_id}/{self._claim.fence}/{path.name}"
            try:
                stored = store_file(self._store, path, key, most_bytes=self._most_bytes)
            except (StorageFull, Unavailable) as error:
                raise NoRoom(error) from error
            except OSError as error:
                raise NoRoom(Unavailable("The results could not be stored.")) from error
            self._waiting.pop(0)
            self.artifacts.append(
                Artifact(
                    id=new_id("art"),
                    job_id=self._claim.job_id,
                    name=path.name,
                    media_type=mimetypes.types_map.get(path.suffix, "application/octet-stream"),
                    object_key=stored.key,
                    sha256=stored.sha256,
                    size_bytes=stored.size_bytes,
                )
            )
        failpoint("results.stored")

    def discard(self) -> None:
        """Delete what is stored: no row will name it."""
        for artifact in self.artifacts:
            discard(self._store, artifact.object_key)


def check_report(report: dict[str, Any], artifacts: list[Artifact], out: Path) -> None:
    """Hold what a child said of its files against the files.

    Digests, sizes and names always; how many parameters there are, where a small header tells how many there can be.

    Args:
        report: of any type of job; only the fields of a `Report` are looked at.
        artifacts: what was stored.
        out: where the files lie.

    Raises:
        UntrustworthyFile: they disagree.
    """
    outputs = report.get("reproduce", {}).get("outputs", {})
    digests = {artifact.name: artifact.sha256 for artifact in artifacts}
    for name, sha256 in outputs.items():
        if digests.get(name) != sha256:
            raise UntrustworthyFile(f"its report gives {name[:200]!a} another SHA-256 than the file has")
    if not outputs:
        return
    after, steps = report["after"], report.get("steps", [])
    sizes = {artifact.size_bytes for artifact in artifacts}
    if after["file_bytes"] not in sizes:
        raise UntrustworthyFile(f"its report tells of a file of {after['file_bytes']} bytes, and there is none")
    for step in steps:
        name = step["artifact"]
        if name is not None and name not in digests:
            raise UntrustworthyFile(f"its report names {name[:200]!a}, which is not there")
    for name in outputs:
        if name.endswith(".safetensors"):
            _check_parameters(after, out / name)


def _check_parameters(after: dict[str, Any], path: Path) -> None:
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > _MAX_HEADER_BYTES:
            return
    try:
        numbers = sum(tensor.elements for tensor in read_header(path).tensors)
    except BadSafetensors as error:
        raise UntrustworthyFile(f"{path.name} is damaged: {error}") from error
    if not after["nonzero_parameters"] <= after["parameters"] <= numbers:
        raise UntrustworthyFile(
            f"its report tells of {after['parameters']} parameters, and {path.name} holds {numbers} numbers"
        )


def _paths(claim: Claim, out: Path) -> list[Path]:
    if claim.type.report_goes_to == "upload":
        wanted = files_to_keep(claim.type.references(claim.spec)[0].id)
        return [path for name in wanted if _is_small_enough(path := out / name)]
    if not claim.type.keeps_files:
        return []
    names: list[str] = []
    try:
        with os.scandir(out) as entries:
            for entry in entries:
                if len(names) == _MAX_ARTIFACTS:
                    raise UntrustworthyFile(f"more than {_MAX_ARTIFACTS} files, which no job makes")
                if not _NAME.fullmatch(entry.name):
                    raise UntrustworthyFile(f"{entry.name[:200]!a} is not a name for a result")
                names.append(entry.name)
    except OSError as error:
        raise UntrustworthyFile(f"the folder itself cannot be listed: {error.strerror}") from error
    return [out / name for name in sorted(names)]


def _is_small_enough(preview: Path) -> bool:
    """Whether a preview is there that is kept."""
    try:
        status = os.lstat(preview)
    except OSError:
        return False
    return not stat.S_ISREG(status.st_mode) or status.st_size <= MAX_PREVIEW_BYTES
