"""Turns named architectures and JSON layer lists into modules, and fits them to shrunk weights."""

from __future__ import annotations

from pared.compression.architectures.building import LayeredModule, build
from pared.compression.architectures.named import ARCHITECTURES
from pared.compression.architectures.recognising import candidates, current_name, tensor_shapes
from pared.compression.architectures.residuals import without_residuals
from pared.compression.architectures.resizing import resize

__all__ = [
    "ARCHITECTURES",
    "LayeredModule",
    "build",
    "candidates",
    "current_name",
    "resize",
    "tensor_shapes",
    "without_residuals",
]
