"""Tells which of the architectures with a name a state dict without one belongs to, where it fits exactly one."""

from __future__ import annotations

from typing import Any

from pared.compression.architectures import candidates
from pared.compression.loading.file_format import STATE_DICTS, recognise
from pared.compression.loading.state_dicts import fits, read_shapes
from pared.compression.work import ModelFile


def recognised(file: ModelFile) -> dict[str, Any] | None:
    """`{"name": …, "kwargs": …}`, or None where nothing fits, several do, or the file needs no architecture.

    Raises:
        UnsupportedModel: damaged, no state dict, or several and none is chosen.
    """
    container = recognise(file.path)
    if container not in STATE_DICTS:
        return None
    shapes, _ = read_shapes(file, container)
    found: list[dict[str, Any]] = []
    for architecture, expected in candidates(shapes):
        if architecture not in found and fits(shapes, expected):
            found.append(architecture)
    return found[0] if len(found) == 1 else None


def recognised_note(architecture: dict[str, Any]) -> str:
    """What an inspection says of a model that was opened so."""
    options = "".join(f", {key}={value}" for key, value in architecture.get("kwargs", {}).items()).removeprefix(", ")
    named = f"torchvision's {architecture['name']}" + (f" with {options}" if options else "")
    return (
        f"The names and shapes of these weights are those of {named}, so the file was opened as that. If its layers "
        "compute something else (other strides, dilations or activations), upload it with its own `architecture`."
    )
