"""Tells which of the architectures with a name a state dict without one belongs to, where it fits exactly one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pared.compression.architectures import candidates
from pared.compression.loading.file_format import STATE_DICTS, recognise
from pared.compression.loading.state_dicts import Outline, fits, read_outlines
from pared.compression.work import ModelFile


def recognised(file: ModelFile) -> dict[str, Any] | None:
    """`{"name": …, "kwargs": …}`, or None where nothing fits, several do, or the file needs no architecture.

    This reads the whole of a checkpoint: call it once for each time that a file is opened.

    Raises:
        UnsupportedModel: damaged, or no state dict.
    """
    container = recognise(file.path)
    if container not in STATE_DICTS:
        return None
    found: list[dict[str, Any]] = []
    for outline in read_outlines(file, container):
        found += [each for each in _fitting(outline) if each not in found]
    return found[0] if len(found) == 1 else None


def _fitting(outline: Outline) -> Iterator[dict[str, Any]]:
    for architecture, expected in candidates(outline.shapes):
        if fits(outline.shapes, expected):
            yield architecture


def recognised_note(architecture: dict[str, Any]) -> str:
    """What an inspection says of a model that was opened so."""
    options = "".join(f", {key}={value}" for key, value in architecture.get("kwargs", {}).items()).removeprefix(", ")
    named = f"torchvision's {architecture['name']}" + (f" with {options}" if options else "")
    return (
        f"The names and shapes of these weights are those of {named}, so the file was opened as that. If its layers "
        "compute something else (other strides, dilations or activations), upload it with its own `architecture`."
    )
