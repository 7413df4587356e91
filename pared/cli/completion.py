"""Owns what shells complete: ids of jobs, models and data sets, as the server lists them, beside names of files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import typer

from pared.client.reachability import recent

_ID = re.compile(r"(?:job|mdl|dst)_[0-9A-Z]{26}")
# Some shells evaluate what they are given, and others wrote names of files and reasons of failures.
_NOT_PLAIN = re.compile(r"[^\w .,+%/@=-]", re.ASCII)


def job_ids(incomplete: str) -> list[tuple[str, str]]:
    """Ids of jobs that begin so, newest first, each with its type and state."""
    return list(_ids("jobs", "job_", incomplete, ("type", "status")))


def model_ids(incomplete: str) -> list[tuple[str, str]]:
    """Ids of models that begin so, each with the name of its file."""
    return list(_ids("models", "mdl_", incomplete, ("filename",)))


def dataset_ids(incomplete: str) -> list[tuple[str, str]]:
    """The same of data sets."""
    return list(_ids("datasets", "dst_", incomplete, ("filename",)))


def page_ids(incomplete: str) -> list[tuple[str, str]]:
    """Those of all of them."""
    return job_ids(incomplete) + model_ids(incomplete) + dataset_ids(incomplete)


def upload_ids(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Those of the commands `models` or `datasets`, whichever this is one of."""
    of_models = context.parent is not None and context.parent.info_name == "models"
    return model_ids(incomplete) if of_models else dataset_ids(incomplete)


def models_and_files(incomplete: str) -> list[tuple[str, str]]:
    """What may stand for a model; nothing where only files may be meant, for shells complete those by themselves."""
    return _beside_files(model_ids(incomplete), incomplete) if incomplete else []


def datasets_and_files(incomplete: str) -> list[tuple[str, str]]:
    """The same of a data set."""
    return _beside_files(dataset_ids(incomplete), incomplete) if incomplete else []


def _ids(
    kind: Literal["jobs", "models", "datasets"], prefix: str, incomplete: str, told: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    if not (prefix.startswith(incomplete) or incomplete.startswith(prefix)):
        return  # the server is not asked for what it cannot know
    for row in recent(kind):
        job_id = str(row.get("id"))
        if _ID.fullmatch(job_id) and job_id.startswith(incomplete):
            yield job_id, _NOT_PLAIN.sub("_", " ".join(str(row.get(name)) for name in told))[:60]


def _beside_files(ids: list[tuple[str, str]], incomplete: str) -> list[tuple[str, str]]:
    """The ids, and the files of this folder that begin so too."""
    if not ids:
        return []
    files = sorted(path.name for path in Path().iterdir() if path.name.startswith(incomplete))
    return ids + [(name, "") for name in files if not _NOT_PLAIN.search(name)]
