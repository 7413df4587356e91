"""Named architectures and JSON layer lists: turned into modules, and fitted to shrunk weights."""

from __future__ import annotations

from pared.compression.architectures.building import LayeredModule, build
from pared.compression.architectures.named import ARCHITECTURES
from pared.compression.architectures.residuals import without_residuals
from pared.compression.architectures.resizing import resize

__all__ = ["ARCHITECTURES", "LayeredModule", "build", "resize", "without_residuals"]
